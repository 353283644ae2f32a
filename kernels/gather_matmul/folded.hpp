// gather_matmul with lanes over a few inputs times all outputs, where these are too few to fill vectors.
//
// A vector holds the weights of P = W / O neighbouring inputs, one line of memory that is read once for a tile of the batch. Its lanes
// are brought into the order [O, P], in which the inputs of a batch entry are a chunk of memory, over and over: no input is packed.
#pragma once

#include "rows.hpp"

namespace SCISPARSE_NAMESPACE {
namespace {

template <class R, int O>
class Folded {
 public:
  static constexpr int W = width<R>, P = W / O;
  using V = Vec<R, W>;

  explicit Folded(const Forward<R>& p) : p_(p), rows_(p), results_(p.batch * W) {}
  explicit operator bool() const { return rows_ && results_; }

  void sites(int64_t first, int64_t last) {
    for (int64_t i = first; i < last; i += P) {
      const int count = int(min_of(P, last - i));
      for (int s = 0; s < count; s++)
        rows_.pieces(i + s, [&](const Piece<R>& piece, bool add) SCISPARSE_INLINE_LAMBDA { batches(piece, s * O, add); });
      write(i, count * O);
    }
  }

 private:
  void batches(const Piece<R>& piece, int place, bool add) {
    int64_t b = 0;
    if constexpr (SCISPARSE_ISA == 3)
      for (; b + 16 <= p_.batch; b += 16) tile<16>(piece, b, place, add);
    for (; b + 8 <= p_.batch; b += 8) tile<8>(piece, b, place, add);
    for (; b + 4 <= p_.batch; b += 4) tile<4>(piece, b, place, add);
    for (; b < p_.batch; b++) tile<1>(piece, b, place, add);
  }

  // NB batch entries from b0 on. Where the sums are too few to hide the latency of the multiply-add, several sets of them run side by
  // side.
  template <int NB>
  __attribute__((noinline)) void tile(const Piece<R>& piece, int64_t b0, int place, bool add) {
    constexpr int SETS = NB < 8 ? 8 / NB : 1;
    const int64_t in = p_.in, pitch = rows_.x_pitch();
    V sum[SETS][NB] = {};
    for (int j = 0; j < piece.count; j++) {
      rows_.weights.ask(piece, j, {b0 / NB, ceil_div(p_.batch, NB)});
      const R* x = piece.x[j] + b0 * pitch;
      const R* w = piece.w[j];
      int64_t c = 0;
      for (; c + SETS * P <= in; c += SETS * P)
        unrolled<SETS>([&](auto s) SCISPARSE_INLINE_LAMBDA {
          step<NB>(x + c + s * P, pitch, load<W>(w + (c + s * P) * O), sum[s]);
        });
      if constexpr (SETS > 1)
        for (; c + P <= in; c += P) step<NB>(x + c, pitch, load<W>(w + c * O), sum[0]);
      if (c < in) last_step<NB>(x + c, pitch, w + c * O, int(in - c), sum[0]);
    }
    unrolled<NB>([&](auto b) SCISPARSE_INLINE_LAMBDA {
      unrolled<SETS - 1>([&](auto s) SCISPARSE_INLINE_LAMBDA { sum[0][b] += sum[s + 1][b]; });
    });
    keep<NB>(sum[0], results_.get() + b0 * W + place, add);
  }

  template <int NB>
  static SCISPARSE_INLINE void step(const R* x, int64_t pitch, V row, V (&sum)[NB]) {
    const V weight = pick<Transposed<W, P>>(row, row);
    unrolled<NB>([&](auto b) SCISPARSE_INLINE_LAMBDA { sum[b] += repeat<P, V>(x + b * pitch) * weight; });
  }

  // Fewer than P inputs; what lies behind them may be infinite.
  template <int NB>
  static SCISPARSE_INLINE void last_step(const R* x, int64_t pitch, const R* w, int n, V (&sum)[NB]) {
    R inputs[NB][P] = {};
    for (int b = 0; b < NB; b++)
      for (int c = 0; c < n; c++) inputs[b][c] = x[b * pitch + c];
    step<NB>(inputs[0], P, load<W>(w, n * O), sum);
  }

  // Adds the P lanes of each output.
  template <int NB>
  static SCISPARSE_INLINE void keep(const V (&sum)[NB], R* to, bool add) {
    constexpr int JOIN = P < NB ? P : NB;
    unrolled<NB / JOIN>([&](auto n) SCISPARSE_INLINE_LAMBDA {
      V part[JOIN];
      unrolled<JOIN>([&](auto k) SCISPARSE_INLINE_LAMBDA { part[k] = sum[n * JOIN + k]; });
      R total[W];
      store(total, join_neighbours<log2_of(P)>(part, Add()));
      unrolled<JOIN>([&](auto k) SCISPARSE_INLINE_LAMBDA {
        R* place = to + (n * JOIN + k) * W;
        const auto values = load<O>(total + k * O);
        store(place, add ? values + load<O>(place) : values);
      });
    });
  }

  // `count` results of each batch entry to y, from site i on.
  void write(int64_t i, int count) {
    R* y = p_.y.template as<R>() + i * O;
    for (int64_t b = 0; b < p_.batch; b++)
      store_in_turn(y + b * rows_.y_pitch(), load<W>(results_.get() + b * W), count, p_.streaming);
  }

  const Forward<R>& p_;
  Rows<R> rows_;
  Buffer<R> results_;
};

// The same for transposed weights: a vector holds the weights of P = W / C neighbouring outputs, and the inputs of a batch entry are
// loaded over and over.
template <class R, int C>
class FoldedDots {
 public:
  static constexpr int W = width<R>, P = W / C;
  using V = Vec<R, W>;

  FoldedDots(const Forward<R>& p, const Rows<R>& rows)
      : weights_(rows.weights), batch_(p.batch), out_(p.out), x_pitch_(rows.x_pitch()), y_pitch_(rows.y_pitch()) {}

  SCISPARSE_INLINE void operator()(const Piece<R>& piece, R* y, bool add) const {
    int64_t b = 0;
    if constexpr (most >= 16)
      for (; b + 8 <= batch_; b += 8) batches<8>(piece, b, y + b * y_pitch_, add);
    for (; b + 4 <= batch_; b += 4) batches<4>(piece, b, y + b * y_pitch_, add);
    for (; b < batch_; b++) batches<1>(piece, b, y + b * y_pitch_, add);
  }

 private:
  static constexpr int most = SCISPARSE_ISA == 3 ? 16 : 8;  // sums that fit into registers

  template <int NB>
  SCISPARSE_INLINE void batches(const Piece<R>& piece, int64_t b0, R* y, bool add) const {
    constexpr int NO = most / NB < 8 ? most / NB : 8;
    int64_t o = 0;
    for (; o + NO * P <= out_; o += NO * P) tile<true, NB, NO>(piece, b0, o, P, y, add);
    for (; o + P <= out_; o += P) tile<true, NB, 1>(piece, b0, o, P, y, add);
    if (o < out_) tile<false, NB, 1>(piece, b0, o, int(out_ - o), y, add);
  }

  // NB batch entries from b0 on and NO * P outputs from o0 on, of which the last vector has `last`, all P when FULL.
  template <bool FULL, int NB, int NO>
  __attribute__((noinline)) void tile(const Piece<R>& piece, int64_t b0, int64_t o0, int last, R* y, bool add) const {
    constexpr int N = NB * NO, JOIN = N < C ? N : C;
    V sum[N] = {};
    for (int j = 0; j < piece.count; j++) {
      if (b0 == 0)
        for (int64_t o = 0; o < NO; o++) weights_.ask(piece, j, {o0 / P + o, ceil_div(out_, P)});
      const R* x = piece.x[j] + b0 * x_pitch_;
      const R* w = piece.w[j] + o0 * C;
      V value[NB];
      unrolled<NB>([&](auto b) SCISPARSE_INLINE_LAMBDA { value[b] = repeat<C, V>(x + b * x_pitch_); });
      unrolled<NO>([&](auto o) SCISPARSE_INLINE_LAMBDA {
        const V weight = FULL ? load<W>(w + o * W) : load<W>(w + o * W, last * C);
        unrolled<NB>([&](auto b) SCISPARSE_INLINE_LAMBDA { sum[b * NO + o] += value[b] * weight; });
      });
    }
    R total[N / JOIN][W];
    unrolled<N / JOIN>([&](auto n) SCISPARSE_INLINE_LAMBDA {
      V part[JOIN];
      unrolled<JOIN>([&](auto k) SCISPARSE_INLINE_LAMBDA { part[k] = sum[n * JOIN + k]; });
      store(total[n], join_neighbours<log2_of(C)>(part, Add()));
    });
    unrolled<N>([&](auto k) SCISPARSE_INLINE_LAMBDA {
      const auto values = load<P>(total[k / JOIN] + k % JOIN * P);
      R* to = y + k / NO * y_pitch_ + o0 + k % NO * P;
      for (int o = 0; o < (FULL ? P : last); o++) to[o] = add ? to[o] + values[o] : values[o];
    });
  }

  const Weights<R>& weights_;
  int64_t batch_, out_, x_pitch_, y_pitch_;
};

template <int O, class R>
Status folded_to(const Forward<R>& p, int64_t first, int64_t last) {
  Folded<R, O> kernel(p);
  if (!kernel) return Status::no_memory;
  kernel.sites(first, last);
  finish_streams();
  return Status::ok;
}

template <int C, class R>
Status folded_dots(const Forward<R>& p, int64_t first, int64_t last) {
  Rows<R> rows(p);
  if (!rows) return Status::no_memory;
  const FoldedDots<R, C> tiles(p, rows);
  for (int64_t i = first; i < last; i++) rows.site(i, tiles);
  return Status::ok;
}

template <class R>
Status folded(const Forward<R>& p, int64_t first, int64_t last) {
  const int64_t n = p.transposed ? p.in : p.out;
  if constexpr (width<R> > 8)
    if (n == 8) return p.transposed ? folded_dots<8>(p, first, last) : folded_to<8>(p, first, last);
  if constexpr (width<R> > 4)
    if (n == 4) return p.transposed ? folded_dots<4>(p, first, last) : folded_to<4>(p, first, last);
  return p.transposed ? folded_dots<2>(p, first, last) : folded_to<2>(p, first, last);
}

}  // namespace
}  // namespace SCISPARSE_NAMESPACE
