// gather_matmul of single numbers (C = O = 1).
//
// Where neighbouring sites read neighbouring sources, as in a stencil, lanes run over sites. Elsewhere they run over the batch
// (packed.hpp) if it is large; if it is small, plain loads are faster than the gathers that vectors would need.
#pragma once

#include "lanes.hpp"
#include "packed.hpp"

namespace SCISPARSE_NAMESPACE {
namespace {

template <class T>
class Singles {
 public:
  using R = Real<T>;
  static constexpr int W = width<R>;
  using V = Vec<R, W>;

  explicit Singles(const Forward<R>& p)
      : pattern_(p.pattern), batch_(p.batch), x_(p.x.template as<T>()), weight_(p.weight.template as<T>()),
        y_(p.y.template as<T>()), streaming_(p.streaming), weights_(SiteLanes<R>::most_taps * W) {}
  explicit operator bool() const { return bool(weights_); }

  // Sites [i, i + W), or false, with nothing done, where they do not read neighbouring sources.
  SCISPARSE_INLINE bool sites(int64_t i) {
    if (!group_.take(pattern_, i)) return false;
    take_weights();
    int64_t b = 0;
    for (; b + 4 <= batch_; b += 4) along_runs<4>(i, b);
    for (; b < batch_; b++) along_runs<1>(i, b);
    return true;
  }

  // A site of any kind.
  SCISPARSE_INLINE void site(int64_t i) const {
    const int64_t first = pattern_.row_ptr[i], count = pattern_.row_ptr[i + 1] - first;
    with_indices(pattern_.col, first, [&](const auto& col) {
      with_indices(pattern_.tie, first, [&](const auto& tie) {
        for (int64_t b = 0; b < batch_; b++) narrow_one(sum(col, tie, count, b), y_[b * pattern_.sites + i]);
      });
    });
  }

 private:
  SCISPARSE_INLINE void take_weights() {
    if (pattern_.tie.bits == 0) return group_.by_tap(weight_, weights_.get());
    R* to = weights_.get();
    const T* weight = weight_;
    const int64_t taps = group_.taps;
    with_indices(pattern_.tie, group_.first_edge, [=](const auto& tie) {
      for (int64_t s = 0; s < W; s++)
        for (int64_t k = 0; k < taps; k++) to[k * W + s] = read_one(weight + tie[s * taps + k]);
    });
  }

  // Lanes over sites.
  template <int NB>
  SCISPARSE_INLINE void along_runs(int64_t i, int64_t b0) {
    const T* x = x_ + b0 * pattern_.sources;
    T* y = y_ + b0 * pattern_.sites + i;
    const int64_t x_pitch = pattern_.sources, y_pitch = pattern_.sites;
    const T* next = x + group_.source[group_.taps - 1] + 2 * W;
    unrolled<NB>([&](auto b) SCISPARSE_INLINE_LAMBDA { ask_to_read(next + b * x_pitch); });
    V sum[NB] = {};
    for (int64_t k = 0; k < group_.taps; k++) {
      const V weight = load<W>(weights_.get() + k * W);
      const T* from = x + group_.source[k];
      unrolled<NB>([&](auto b) SCISPARSE_INLINE_LAMBDA { sum[b] += weight * load<W>(from + b * x_pitch); });
    }
    unrolled<NB>([&](auto b) SCISPARSE_INLINE_LAMBDA { store_in_turn(y + b * y_pitch, sum[b], W, streaming_); });
  }

  // The products of `count` edges in four sums, so that they do not wait for each other.
  template <class Col, class Tie>
  SCISPARSE_INLINE R sum(const Col& col, const Tie& tie, int64_t count, int64_t b) const {
    const T* x = x_ + b * pattern_.sources;
    R sum[4] = {};
    int64_t k = 0;
    for (; k + 4 <= count; k += 4)
      unrolled<4>([&](auto s) SCISPARSE_INLINE_LAMBDA { sum[s] += read_one(weight_ + tie[k + s]) * read_one(x + col[k + s]); });
    for (; k < count; k++) sum[0] += read_one(weight_ + tie[k]) * read_one(x + col[k]);
    return (sum[0] + sum[1]) + (sum[2] + sum[3]);
  }

  const Pattern pattern_;
  int64_t batch_;
  const T *x_, *weight_;
  T* y_;
  bool streaming_;
  SiteLanes<R> group_;
  Buffer<R> weights_;
};

// Groups of W sites along runs of sources where there are any; others(i, end) does the rest.
template <class T, class F>
SCISPARSE_INLINE Status singles_with(const Forward<Real<T>>& p, Singles<T>& kernel, int64_t first, int64_t last, const F& others) {
  constexpr int W = width<Real<T>>;
  for (int64_t i = first; i < last; i += W)
    if (p.scattered || !kernel.sites(i)) others(i, min_of(i + W, last));
  finish_streams();
  return Status::ok;
}

template <class T>
Status singles_of(const Forward<Real<T>>& p, int64_t first, int64_t last) {
  constexpr int W = width<Real<T>>;
  Singles<T> kernel(p);
  if (!kernel) return Status::no_memory;
  if (p.batch < max_of(W / 4, 2))
    return singles_with<T>(p, kernel, first, last, [&](int64_t i, int64_t end) {
      for (int64_t s = i; s < end; s++) kernel.site(s);
    });
  Packed<Real<T>, false, 1> packed(p);
  if (!packed) return Status::no_memory;
  return singles_with<T>(p, kernel, first, last, [&](int64_t i, int64_t end) { packed.sites(i, end); });
}

template <class R>
Status singles(const Forward<R>& p, int64_t first, int64_t last) {
  if (p.x.are_reals()) return singles_of<R>(p, first, last);
  if constexpr (std::is_same_v<R, float>)
    return p.x.dtype == DType::bfloat16 ? singles_of<Bfloat16>(p, first, last) : singles_of<Float16>(p, first, last);
  return Status::bad_dtype;
}

}  // namespace
}  // namespace SCISPARSE_NAMESPACE
