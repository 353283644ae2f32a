// edge_outer of single numbers (C = O = 1): lanes over sites where these read neighbouring sources, else plain loads.
#pragma once

#include "lanes.hpp"
#include "sinks.hpp"

namespace SCISPARSE_NAMESPACE {
namespace {

template <class T>
class OuterSingles {
 public:
  using R = Real<T>;
  static constexpr int W = width<R>;
  using V = Vec<R, W>;

  OuterSingles(const Outer<R>& p, Sink<R>& sink)
      : pattern_(p.pattern), batch_(p.batch), x_(p.x.template as<T>()), grad_(p.grad.template as<T>()), sink_(sink),
        results_(SiteLanes<R>::most_taps * W) {}
  explicit operator bool() const { return bool(results_); }

  void sites(int64_t first, int64_t last) {
    for (int64_t i = first; i < last; i += W) {
      if (group_.take(pattern_, i)) {
        along_runs(i);
      } else {
        for (int64_t s = i; s < min_of(i + W, last); s++) row(s);
      }
    }
  }

 private:
  void along_runs(int64_t i) {
    R* space = sink_.space();
    for (int64_t line = 0; line < group_.edges(); line += 64 / int64_t(sizeof(R))) ask_to_write(space + 2 * group_.edges() + line);
    int64_t k = 0;
    for (; k + 4 <= group_.taps; k += 4) taps<4>(i, k);
    for (; k < group_.taps; k++) taps<1>(i, k);
    group_.by_edge(results_.get(), space);
    sink_.take(group_.first_edge, group_.edges(), 1);
  }

  template <int N>
  void taps(int64_t i, int64_t k) {
    V sum[N] = {};
    for (int64_t b = 0; b < batch_; b++) {
      const T* x = x_ + b * pattern_.sources;
      const T* grad = grad_ + b * pattern_.sites + i;
      const V g = load<W>(grad);
      if (k == 0) {
        ask_to_read(x + group_.source[group_.taps - 1] + 2 * W);
        ask_to_read(grad + 2 * W);
      }
      unrolled<N>([&](auto j) SCISPARSE_INLINE_LAMBDA { sum[j] += g * load<W>(x + group_.source[k + j]); });
    }
    std::memcpy(results_.get() + k * W, sum, sizeof sum);
  }

  void row(int64_t i) {
    constexpr int64_t most = 1024;
    const int64_t end = pattern_.row_ptr[i + 1];
    for (int64_t e = pattern_.row_ptr[i]; e < end; e += most) {
      const int64_t count = min_of(most, end - e);
      R* to = sink_.space();
      with_indices(pattern_.col, e, [&](const auto& col) {
        for (int64_t b = 0; b < batch_; b++) {
          const T* x = x_ + b * pattern_.sources;
          const R g = widen_one(grad_[b * pattern_.sites + i]);
          if (b == 0) {
            for (int64_t k = 0; k < count; k++) to[k] = g * read_one(x + col[k]);
          } else {
            for (int64_t k = 0; k < count; k++) to[k] += g * read_one(x + col[k]);
          }
        }
      });
      sink_.take(e, count, 1);
    }
  }

  const Pattern pattern_;
  int64_t batch_;
  const T *x_, *grad_;
  Sink<R>& sink_;
  SiteLanes<R> group_;
  Buffer<R> results_;
};

template <class T>
Status outer_singles_of(const Outer<Real<T>>& p, Sink<Real<T>>& sink, int64_t first, int64_t last) {
  OuterSingles<T> kernel(p, sink);
  if (!kernel) return Status::no_memory;
  kernel.sites(first, last);
  return Status::ok;
}

template <class R>
Status outer_singles(const Outer<R>& p, Sink<R>& sink, int64_t first, int64_t last) {
  if (p.x.are_reals()) return outer_singles_of<R>(p, sink, first, last);
  if constexpr (std::is_same_v<R, float>)
    return p.x.dtype == DType::bfloat16 ? outer_singles_of<Bfloat16>(p, sink, first, last)
                                        : outer_singles_of<Float16>(p, sink, first, last);
  return Status::bad_dtype;
}

}  // namespace
}  // namespace SCISPARSE_NAMESPACE
