// edge_outer of single numbers (C = O = 1) where sources are scattered: dot products over panels of the batch (panels.hpp).
#pragma once

#include "panels.hpp"

namespace SCISPARSE_NAMESPACE {
namespace {

template <class T>
class OuterPanels {
 public:
  using R = Real<T>;
  static constexpr int W = width<R>;
  static constexpr int64_t TILE = 16;  // sites whose gradients are transposed at once
  using V = Vec<R, W>;

  // Results go to sums [E], added to what is there if `add`.
  OuterPanels(const scisparse::EdgeOuter& p, const Panel& x, R* sums, bool add)
      : pattern_(p.pattern), grad_({p.grad, p.dtype, p.batch, p.pattern.sites}, x), lanes_(x.lanes),
        vectors_(vectors_of<R>(x, p.batch)), values_(static_cast<const R*>(x.values)), sums_(sums), add_(add),
        grads_(TILE * x.lanes) {}
  explicit operator bool() const { return bool(grads_); }

  void sites(int64_t first, int64_t last) const {
    for (int64_t i = first; i < last; i += TILE) {
      const int64_t end = min_of(i + TILE, last);
      grad_.read(i, end, grads_.get());
      for (int64_t s = i; s < end; s++) row(s, grads_.get() + (s - i) * lanes_);
    }
  }

 private:
  SCISPARSE_INLINE void row(int64_t i, const R* grad) const {
    const int64_t first = pattern_.row_ptr[i], count = pattern_.row_ptr[i + 1] - first;
    with_indices(pattern_.col, first, [&](const auto& col) {
      if (vectors_ == 4) return dots<4>(col, count, grad, sums_ + first);
      if (vectors_ == 3) return dots<3>(col, count, grad, sums_ + first);
      if (vectors_ == 2) return dots<2>(col, count, grad, sums_ + first);
      return dots<1>(col, count, grad, sums_ + first);
    });
  }

  // W edges at once, so that their vectors are summed up together.
  template <int NV, class Col>
  SCISPARSE_INLINE void dots(const Col& col, int64_t count, const R* grad, R* sums) const {
    V g[NV];
    unrolled<NV>([&](auto v) SCISPARSE_INLINE_LAMBDA { g[v] = load<W>(grad + v * W); });
    const auto dot = [&](int64_t k) SCISPARSE_INLINE_LAMBDA {
      const R* x = values_ + int64_t(col[k]) * lanes_;
      V sum = g[0] * load<W>(x);
      unrolled<NV - 1>([&](auto v) SCISPARSE_INLINE_LAMBDA { sum += g[v + 1] * load<W>(x + (v + 1) * W); });
      return sum;
    };
    int64_t k = 0;
    for (; k + W <= count; k += W) {
      V t[W];
      unrolled<W>([&](auto j) SCISPARSE_INLINE_LAMBDA { t[j] = dot(k + j); });
      const V sum = sum_square(t);
      store(sums + k, add_ ? load<W>(sums + k) + sum : sum);
    }
    if (k == count) return;
    V t[W];
    const int rest = int(count - k);
    unrolled<W>([&](auto j) SCISPARSE_INLINE_LAMBDA { t[j] = dot(min_of(k + j, count - 1)); });
    const V sum = sum_square(t);
    store(sums + k, add_ ? load<W>(sums + k, rest) + sum : sum, rest);
  }

  const Pattern pattern_;
  const PanelReader<T> grad_;
  int64_t lanes_, vectors_;
  const R* values_;
  R* sums_;
  bool add_;
  Buffer<R> grads_;
};

template <class R>
Status outer_panel(const scisparse::EdgeOuter& p, const Panel& x, int64_t first, int64_t last, bool add, void* sums) {
  return with_type<R>(p.dtype, [&](auto* type) {
    OuterPanels<std::remove_pointer_t<decltype(type)>> kernel(p, x, static_cast<R*>(sums), add);
    if (!kernel) return Status::no_memory;
    kernel.sites(first, last);
    return Status::ok;
  });
}

}  // namespace
}  // namespace SCISPARSE_NAMESPACE
