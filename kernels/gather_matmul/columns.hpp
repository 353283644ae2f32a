// gather_matmul with lanes over the outputs: a weight row is read once and multiplied by one input of every batch.
//
// Best where the outputs fill vectors, and where the batch is too small to fill them (see packed.hpp).
#pragma once

#include "rows.hpp"

namespace SCISPARSE_NAMESPACE {
namespace {

template <class R, int L>
class Columns {
 public:
  using V = Vec<R, L>;

  Columns(const Forward<R>& p, const Rows<R>& rows)
      : weights_(rows.weights), batch_(p.batch), in_(p.in), out_(p.out), x_pitch_(rows.x_pitch()), y_pitch_(rows.y_pitch()) {}

  SCISPARSE_INLINE void operator()(const Piece<R>& piece, R* y, bool add) const {
    int64_t b = 0;
    if (SCISPARSE_ISA == 3 || out_ < 2 * L)
      for (; b + 8 <= batch_; b += 8) batches<8>(piece, b, y + b * y_pitch_, add);
    for (; b + 4 <= batch_; b += 4) batches<4>(piece, b, y + b * y_pitch_, add);
    for (; b < batch_; b++) batches<1>(piece, b, y + b * y_pitch_, add);
  }

 private:
  template <int NB>
  SCISPARSE_INLINE void batches(const Piece<R>& piece, int64_t b0, R* y, bool add) const {
    constexpr int most = (SCISPARSE_ISA == 3 ? 16 : 8) / NB, NO = most < 4 ? most : 4;  // sums that fit into registers
    int64_t o = 0;
    if constexpr (NO > 1 && L == width<R>)
      for (; o + NO * L <= out_; o += NO * L) tile<true, NB, NO>(piece, b0, o, L, y, add);
    if constexpr (NO > 2 && L == width<R>)
      for (; o + 2 * L <= out_; o += 2 * L) tile<true, NB, 2>(piece, b0, o, L, y, add);
    for (; o + L <= out_; o += L) tile<true, NB, 1>(piece, b0, o, L, y, add);
    if (o < out_) tile<false, NB, 1>(piece, b0, o, int(out_ - o), y, add);
  }

  // NB batches from b0 on and NO * L outputs from o0 on, of which the last vector has `last`, all L when FULL. Where the sums are too
  // few to hide the latency of the multiply-add, several sets of them run side by side.
  template <bool FULL, int NB, int NO>
  __attribute__((noinline)) void tile(const Piece<R>& piece, int64_t b0, int64_t o0, int last, R* y, bool add) const {
    constexpr int SETS = NB * NO >= 8 ? 1 : NB * NO >= 4 ? 2 : 4;
    V sum[SETS][NB][NO] = {};
    for (int j = 0; j < piece.count; j++) {
      if (o0 == 0) weights_.ask(piece, j, {b0 / NB, ceil_div(batch_, NB)});
      const R* x = piece.x[j] + b0 * x_pitch_;
      const R* w = piece.w[j] + o0;
      int64_t c = 0;
      for (; c + SETS <= in_; c += SETS)
        unrolled<SETS>([&](auto s) SCISPARSE_INLINE_LAMBDA {
          step<FULL, NB, NO>(x + c + s, w + (c + s) * out_, last, sum[s]);
        });
      if constexpr (SETS > 1)
        for (; c < in_; c++) step<FULL, NB, NO>(x + c, w + c * out_, last, sum[0]);
    }
    unrolled<NB>([&](auto b) SCISPARSE_INLINE_LAMBDA {
      unrolled<NO>([&](auto v) SCISPARSE_INLINE_LAMBDA {
        V total = sum[0][b][v];
        unrolled<SETS - 1>([&](auto s) SCISPARSE_INLINE_LAMBDA { total += sum[s + 1][b][v]; });
        R* to = y + b * y_pitch_ + o0 + v * L;
        const int n = FULL || v < NO - 1 ? L : last;
        store(to, add ? total + load<L>(to, n) : total, n);
      });
    });
  }

  // sum[b][v] += x[b] * w[v] for one input
  template <bool FULL, int NB, int NO>
  SCISPARSE_INLINE void step(const R* x, const R* w, int last, V (&sum)[NB][NO]) const {
    V row[NO];
    unrolled<NO>([&](auto v) SCISPARSE_INLINE_LAMBDA {
      row[v] = FULL || v < NO - 1 ? load<L>(w + v * L) : load<L>(w + v * L, last);
    });
    unrolled<NB>([&](auto b) SCISPARSE_INLINE_LAMBDA {
      unrolled<NO>([&](auto v) SCISPARSE_INLINE_LAMBDA { sum[b][v] += splat<V>(x[b * x_pitch_]) * row[v]; });
    });
  }

  const Weights<R>& weights_;
  int64_t batch_, in_, out_, x_pitch_, y_pitch_;
};

template <class R>
Status columns(const Forward<R>& p, int64_t first, int64_t last) {
  constexpr int W = width<R>, HALF = W >= 4 ? W / 2 : W;
  Rows<R> rows(p);
  if (!rows) return Status::no_memory;
  if (p.out <= HALF) {
    const Columns<R, HALF> tiles(p, rows);
    for (int64_t i = first; i < last; i++) rows.site(i, tiles);
  } else {
    const Columns<R, W> tiles(p, rows);
    for (int64_t i = first; i < last; i++) rows.site(i, tiles);
  }
  return Status::ok;
}

}  // namespace
}  // namespace SCISPARSE_NAMESPACE
