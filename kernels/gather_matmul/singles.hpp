// gather_matmul of single numbers (C = O = 1).
//
// Where neighbouring sites read neighbouring sources, as in a stencil, lanes run over sites and inputs need no gather. Elsewhere
// lanes run over the batch (packed.hpp) if it is large, else over sites of like fan-in, or along the row.
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
  using Index = Vec<int32_t, W>;

  explicit Singles(const Forward<R>& p)
      : pattern_(p.pattern), batch_(p.batch), x_(p.x.template as<T>()), weight_(p.weight.template as<T>()),
        y_(p.y.template as<T>()), weights_(SiteLanes<R>::most_taps * W), index_(SiteLanes<R>::most_taps * W) {}
  explicit operator bool() const { return weights_ && index_; }

  // Sites [i, i + W). With `runs_only` it returns false, with nothing done, where inputs would need gathers.
  bool sites(int64_t i, bool runs_only) {
    const bool fits = group_.take(pattern_, i);
    if (runs_only && !(fits && group_.runs)) return false;
    if (!fits) {
      for (int64_t s = i; s < i + group_.sites; s++) batches<false>(s);
      return true;
    }
    const auto weights = [this](int64_t e, int n) { return load_weights(e, n); };
    const auto columns = [this](int64_t e, int n) { return load_indices<W>(pattern_.col, e, n); };
    group_.by_tap(weights, weights_.get());
    if (!group_.runs) group_.by_tap(columns, index_.get());
    batches<true>(i);
    return true;
  }

 private:
  template <bool BY_TAP>
  SCISPARSE_INLINE void batches(int64_t i) {
    int64_t b = 0;
    for (; b + 4 <= batch_; b += 4) BY_TAP ? along_taps<4>(i, b) : along_row<4>(i, b);
    for (; b < batch_; b++) BY_TAP ? along_taps<1>(i, b) : along_row<1>(i, b);
  }

  template <int NB>
  void along_taps(int64_t i, int64_t b0) {
    const T* x = x_ + b0 * pattern_.sources;
    V sum[NB] = {};
    for (int64_t k = 0; k < group_.taps; k++) {
      const V weight = load<W>(weights_.get() + k * W);
      if (group_.runs) {
        const int64_t source = at(pattern_.col, group_.first_edge + k);
#pragma GCC unroll 4
        for (int b = 0; b < NB; b++) sum[b] += weight * load<W>(x + b * pattern_.sources + source);
      } else {
        const Index index = load_bits<int32_t, W>(index_.get() + k * W, W);
#pragma GCC unroll 4
        for (int b = 0; b < NB; b++) sum[b] += weight * gather<W>(x + b * pattern_.sources, index);
      }
    }
#pragma GCC unroll 4
    for (int b = 0; b < NB; b++) store(y_ + (b0 + b) * pattern_.sites + i, sum[b], group_.sites);
  }

  template <int NB>
  void along_row(int64_t i, int64_t b0) {
    const T* x = x_ + b0 * pattern_.sources;
    const int64_t end = pattern_.row_ptr[i + 1];
    V sum[NB] = {};
    for (int64_t e = pattern_.row_ptr[i]; e < end; e += W) {
      const int n = int(min_of(W, end - e));
      const V weight = load_weights(e, n);
      const Index index = load_indices<W>(pattern_.col, e, n);
#pragma GCC unroll 4
      for (int b = 0; b < NB; b++) sum[b] += weight * gather<W>(x + b * pattern_.sources, index);
    }
#pragma GCC unroll 4
    for (int b = 0; b < NB; b++) narrow_one(sum_lanes<1>(&sum[b])[0], y_[(b0 + b) * pattern_.sites + i]);
  }

  // The weights of n edges from e on, 0 in the other lanes.
  SCISPARSE_INLINE V load_weights(int64_t e, int n) const {
    if (pattern_.tie.bits == 0) return load<W>(weight_ + e, n);
    if (pattern_.tie.bits == 32) return gather<W>(weight_, load_indices<W>(pattern_.tie, e, n));
    R values[W];
    for (int l = 0; l < W; l++) values[l] = l < n ? widen_one(weight_[at(pattern_.tie, e + l)]) : R(0);
    return load<W>(values);
  }

  const Pattern pattern_;
  int64_t batch_;
  const T *x_, *weight_;
  T* y_;
  SiteLanes<R> group_;
  Buffer<R> weights_;
  Buffer<int32_t> index_;
};

template <class T>
Status singles_of(const Forward<Real<T>>& p, int64_t first, int64_t last) {
  constexpr int W = width<Real<T>>;
  Singles<T> kernel(p);
  if (!kernel) return Status::no_memory;
  if (p.batch < max_of(W / 4, 2)) {
    for (int64_t i = first; i < last; i += W) kernel.sites(i, false);
    return Status::ok;
  }
  Packed<Real<T>, false, 1> by_batch(p);
  if (!by_batch) return Status::no_memory;
  for (int64_t i = first; i < last; i += W)
    if (!kernel.sites(i, true)) by_batch.sites(i, min_of(i + W, last));
  return Status::ok;
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
