// gather_matmul with lanes over the inputs, for transposed weights: each output is a dot product with a weight row.
//
// Best where the batch is too small to fill vectors (see packed.hpp).
#pragma once

#include "rows.hpp"

namespace SCISPARSE_NAMESPACE {
namespace {

template <class R, int L>
class Dots {
 public:
  using V = Vec<R, L>;

  Dots(const Forward<R>& p, const Rows<R>& rows)
      : weights_(rows.weights), batch_(p.batch), in_(p.in), out_(p.out), x_pitch_(rows.x_pitch()), y_pitch_(rows.y_pitch()) {}

  SCISPARSE_INLINE void operator()(const Piece<R>& piece, R* y, bool add) const {
    int64_t b = 0;
    for (; b + 8 <= batch_; b += 8) batches<8>(piece, b, y + b * y_pitch_, add);
    for (; b + 4 <= batch_; b += 4) batches<4>(piece, b, y + b * y_pitch_, add);
    for (; b < batch_; b++) batches<1>(piece, b, y + b * y_pitch_, add);
  }

 private:
  template <int NB>
  SCISPARSE_INLINE void batches(const Piece<R>& piece, int64_t b0, R* y, bool add) const {
    constexpr int NO = (SCISPARSE_ISA == 3 ? 16 : 8) / NB;  // sums that fit into registers
    int64_t o = 0;
    for (; o + NO <= out_; o += NO) tile<NB, NO>(piece, b0, o, y, add);
    if constexpr (NO > 4)
      for (; o + 4 <= out_; o += 4) tile<NB, 4>(piece, b0, o, y, add);
    for (; o < out_; o++) tile<NB, 1>(piece, b0, o, y, add);
  }

  // NB batches from b0 on and NO outputs from o0 on.
  template <int NB, int NO>
  __attribute__((noinline)) void tile(const Piece<R>& piece, int64_t b0, int64_t o0, R* y, bool add) const {
    constexpr int N = NB * NO, GROUP = N < L ? N : L;
    V sum[N / GROUP][GROUP] = {};
    for (int j = 0; j < piece.count; j++) {
      if (o0 == 0) weights_.ask(piece, j, {b0 / NB, ceil_div(batch_, NB)});
      const R* x = piece.x[j] + b0 * x_pitch_;
      const R* w = piece.w[j] + o0 * in_;
      int64_t c = 0;
      for (; c + L <= in_; c += L) step<true, NB, NO>(x + c, w + c, L, sum);
      if (c < in_) step<false, NB, NO>(x + c, w + c, int(in_ - c), sum);
    }
    R total[N < L ? L : N];
    unrolled<N / GROUP>([&](auto n) SCISPARSE_INLINE_LAMBDA { store(total + n * GROUP, sum_lanes(sum[n])); });
    for (int b = 0; b < NB; b++)
      for (int o = 0; o < NO; o++) {
        R* to = y + b * y_pitch_ + o0 + o;
        *to = add ? *to + total[b * NO + o] : total[b * NO + o];
      }
  }

  // Sum b * NO + o gains x[b] * w[o] for n inputs, all L of them when FULL.
  template <bool FULL, int NB, int NO, int GROUPS, int GROUP>
  SCISPARSE_INLINE void step(const R* x, const R* w, int n, V (&sum)[GROUPS][GROUP]) const {
    V value[NB];
    unrolled<NB>([&](auto b) SCISPARSE_INLINE_LAMBDA {
      value[b] = FULL ? load<L>(x + b * x_pitch_) : load<L>(x + b * x_pitch_, n);
    });
    unrolled<NO>([&](auto o) SCISPARSE_INLINE_LAMBDA {
      const V weight = FULL ? load<L>(w + o * in_) : load<L>(w + o * in_, n);
      unrolled<NB>([&](auto b) SCISPARSE_INLINE_LAMBDA {
        constexpr int k = b * NO + o;
        sum[k / GROUP][k % GROUP] += value[b] * weight;
      });
    });
  }

  const Weights<R>& weights_;
  int64_t batch_, in_, out_, x_pitch_, y_pitch_;
};

template <class R>
Status dots(const Forward<R>& p, int64_t first, int64_t last) {
  constexpr int W = width<R>, HALF = W >= 4 ? W / 2 : W;
  Rows<R> rows(p);
  if (!rows) return Status::no_memory;
  if (p.in <= HALF) {
    const Dots<R, HALF> tiles(p, rows);
    for (int64_t i = first; i < last; i++) rows.site(i, tiles);
  } else {
    const Dots<R, W> tiles(p, rows);
    for (int64_t i = first; i < last; i++) rows.site(i, tiles);
  }
  return Status::ok;
}

}  // namespace
}  // namespace SCISPARSE_NAMESPACE
