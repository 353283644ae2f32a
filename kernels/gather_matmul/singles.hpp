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

  explicit Singles(const Forward<R>& p)
      : pattern_(p.pattern), batch_(p.batch), x_(p.x.template as<T>()), weight_(p.weight.template as<T>()),
        y_(p.y.template as<T>()), streaming_(p.streaming), weights_(SiteLanes<R>::most_taps * W), index_(SiteLanes<R>::most_taps * W) {}
  explicit operator bool() const { return weights_ && index_; }

  // Sites [i, i + W). With `runs_only` it returns false, with nothing done, where inputs would need gathers.
  bool sites(int64_t i, bool runs_only) {
    const bool fits = group_.take(pattern_, i) && are_short(pattern_.tie, group_.first_edge, group_.edges);
    if (runs_only && !(fits && group_.runs)) return false;
    if (!fits) {
      for (int64_t s = i; s < i + group_.sites; s++)
        for (int64_t b = 0; b < batch_; b++) along_row(s, b);
      return true;
    }
    if (pattern_.tie.bits == 0) {
      group_.by_tap([this](int64_t e, int n) { return load<W>(weight_ + e, n); }, weights_.get());
    } else {
      take_indices(pattern_.tie);
      for (int64_t k = 0; k < group_.taps; k++) store(weights_.get() + k * W, gather<W>(weight_, index(k)));
    }
    int64_t b = 0;
    if (group_.runs) {
      for (; b + 4 <= batch_; b += 4) along_runs<4>(i, b);
      for (; b < batch_; b++) along_runs<1>(i, b);
    } else {
      take_indices(pattern_.col);
      for (; b < batch_; b++) along_taps(i, b);
    }
    return true;
  }

 private:
  // Index values of the edges by tap.
  void take_indices(const Indices& indices) {
    group_.by_tap([&](int64_t e, int n) { return load_indices<W>(indices, e, n); }, index_.get());
  }
  SCISPARSE_INLINE Vec<int32_t, W> index(int64_t k) const { return load_bits<int32_t, W>(index_.get() + k * W, W); }

  // Lanes over sites whose taps read sources in a row.
  template <int NB>
  void along_runs(int64_t i, int64_t b0) {
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

  // Lanes over sites whose taps read sources anywhere.
  void along_taps(int64_t i, int64_t b) {
    V sum = {};
    for (int64_t k = 0; k < group_.taps; k++) {
      sum += load<W>(weights_.get() + k * W) * gather<W>(x_ + b * pattern_.sources, index(k));
    }
    store(y_ + b * pattern_.sites + i, sum, group_.sites);
  }

  // Lanes over the edges of a row.
  void along_row(int64_t i, int64_t b) {
    const int64_t end = pattern_.row_ptr[i + 1];
    V sum[1] = {};
    for (int64_t e = pattern_.row_ptr[i]; e < end; e += W) {
      const int n = int(min_of(W, end - e));
      sum[0] += load_weights(e, n) * gather<W>(x_ + b * pattern_.sources, load_indices<W>(pattern_.col, e, n));
    }
    narrow_one(sum_lanes(sum)[0], y_[b * pattern_.sites + i]);
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
  bool streaming_;
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
    finish_streams();
    return Status::ok;
  }
  Packed<Real<T>, false, 1> by_batch(p);
  if (!by_batch) return Status::no_memory;
  for (int64_t i = first; i < last; i += W)
    if (!kernel.sites(i, true)) by_batch.sites(i, min_of(i + W, last));
  finish_streams();
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
