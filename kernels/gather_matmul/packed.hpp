// gather_matmul with lanes over the batch: sources come packed from a cache, weights are repeated over the lanes.
//
// Needs no weights that fill a vector, and takes both orders of them. A vector holds G = W / Q batches times Q neighbouring weights
// of a row: Q outputs, or, with transposed weights, Q inputs, whose products are added at the end.
#pragma once

#include "sources.hpp"

namespace SCISPARSE_NAMESPACE {
namespace {

template <class R, bool TRANSPOSED, int Q>
class Packed {
 public:
  static constexpr int W = width<R>, G = W / Q, UNIT = TRANSPOSED ? 1 : Q, FOLD = TRANSPOSED ? Q : 1;
  using V = Vec<R, W>;

  explicit Packed(const Forward<R>& p)
      : p_(p), cache_(p), weights_(p), groups_(ceil_div(p.batch, G)), columns_(p.out / UNIT),
        site_step_(p.out >= W ? 1 : int64_t(1) << log2_of(int(W / p.out))),
        results_pitch_((round_up(site_step_ * columns_, W / UNIT) + Q) * G * UNIT), results_(groups_ * results_pitch_) {}

  explicit operator bool() const { return cache_ && weights_ && results_; }

  void sites(int64_t first, int64_t last) {
    for (int64_t i = first; i < last; i += site_step_) {
      const int64_t count = min_of(site_step_, last - i);
      for (int64_t s = 0; s < count; s++) site(i + s, s * columns_);
      write(i, count);
    }
  }

 private:
  // Results from `row` on: those of site i, [columns, G, UNIT] for each group.
  void site(int64_t i, int64_t row) {
    const int64_t first = p_.pattern.row_ptr[i], end = p_.pattern.row_ptr[i + 1];
    int64_t e = first;
    do {
      add_ = e > first;
      e += read(e, end);
      int64_t g = 0;
      if constexpr (Q == 1)
        for (; g + 2 <= groups_; g += 2) tiles<2>(g, row);
      for (; g < groups_; g++) tiles<1>(g, row);
    } while (e < end);
  }

  // Takes the next edges of a row, as many as slots allow.
  SCISPARSE_INLINE int read(int64_t e, int64_t end) {
    const int count = int(min_of(end - e, weights_.slots()));
    cache_.release();
    for (piece_.count = 0; piece_.count < count; piece_.count++) {
      const R* x = cache_.find(at(p_.pattern.col, e + piece_.count));
      if (!x) break;
      piece_.x[piece_.count] = x;
    }
    weights_.read(e, piece_);
    return piece_.count;
  }

  // Columns in tiles of nearly equal size.
  template <int NV>
  SCISPARSE_INLINE void tiles(int64_t g, int64_t row) {
    constexpr int most = SCISPARSE_ISA == 3 || NV == 1 ? 8 : 4;  // sums that fit into registers
    const int64_t units = ceil_div(columns_, FOLD), count = ceil_div(units, most / FOLD);
    for (int64_t t = 0; t < count; t++) {
      const int64_t o = units * t / count * FOLD, end = min_of(units * (t + 1) / count * FOLD, columns_);
      tile_of<NV, most>(end - o, {t, count}, g, o, results_.get() + g * results_pitch_ + (row + o) * G * UNIT);
    }
  }

  template <int NV, int NO>
  SCISPARSE_INLINE void tile_of(int64_t size, Share share, int64_t g, int64_t o, R* to) {
    if constexpr (NO > 1)
      if (size < NO) return tile_of<NV, NO - 1>(size, share, g, o, to);
    tile<NV, NO>(share, g, o, to);
  }

  // NV groups from g on and NO columns from o0 on. Where the sums are too few to hide the latency of the multiply-add, several sets
  // of them run side by side.
  template <int NV, int NO>
  __attribute__((noinline)) void tile(Share share, int64_t g, int64_t o0, R* to) {
    const int64_t across = TRANSPOSED ? p_.in : Q, down = TRANSPOSED ? Q : p_.out, steps = TRANSPOSED ? p_.in / Q : p_.in;
    const int64_t pitch = cache_.group_pitch();
    constexpr int SETS = NV * NO >= 8 ? 1 : NV * NO >= 3 ? 2 : 4;
    V sum[SETS][NV][NO] = {};
    const auto step = [&](const R* x, const R* w, V(&to)[NV][NO]) SCISPARSE_INLINE_LAMBDA {
      V value[NV];
      unrolled<NV>([&](auto v) SCISPARSE_INLINE_LAMBDA {
        value[v] = load<W>(x + v * pitch);
        if constexpr (UNIT > 1) value[v] = pick<Stretch<Q>>(value[v], value[v]);
      });
      unrolled<NO>([&](auto o) SCISPARSE_INLINE_LAMBDA {
        const V weight = repeat<Q, V>(w + o * across);
        unrolled<NV>([&](auto v) SCISPARSE_INLINE_LAMBDA { to[v][o] += value[v] * weight; });
      });
    };
    for (int j = 0; j < piece_.count; j++) {
      if (g == 0) weights_.ask(piece_, j, share);
      const R* x = piece_.x[j] + g * pitch;
      const R* w = piece_.w[j] + o0 * across;
      int64_t k = 0;
      for (; k + SETS <= steps; k += SETS)
        unrolled<SETS>([&](auto s) SCISPARSE_INLINE_LAMBDA { step(x + (k + s) * (G * FOLD), w + (k + s) * down, sum[s]); });
      if constexpr (SETS > 1)
        for (; k < steps; k++) step(x + k * (G * FOLD), w + k * down, sum[0]);
    }
    unrolled<NV>([&](auto v) SCISPARSE_INLINE_LAMBDA {
      unrolled<NO>([&](auto o) SCISPARSE_INLINE_LAMBDA {
        unrolled<SETS - 1>([&](auto s) SCISPARSE_INLINE_LAMBDA { sum[0][v][o] += sum[s + 1][v][o]; });
      });
    });
    unrolled<NV>([&](auto v) SCISPARSE_INLINE_LAMBDA { keep<NO>(sum[0][v], to + v * results_pitch_); });
  }

  // Sums to results. With transposed weights the products of Q inputs are added, which makes one vector of Q sums.
  template <int NO>
  SCISPARSE_INLINE void keep(const V (&sum)[NO], R* to) {
    unrolled<(NO + FOLD - 1) / FOLD>([&](auto n) SCISPARSE_INLINE_LAMBDA {
      V part[FOLD];
      unrolled<FOLD>([&](auto k) SCISPARSE_INLINE_LAMBDA { part[k] = n * FOLD + k < NO ? sum[(n * FOLD + k) % NO] : V{}; });
      const V total = join_neighbours<log2_of(FOLD)>(part, Add());
      R* place = to + n * FOLD * G * UNIT;
      store(place, add_ ? total + load<W>(place) : total);
    });
  }

  // Results of `count` sites to y.
  void write(int64_t i, int64_t count) {
    const int64_t values = count * p_.out;
    for (int64_t g = 0; g < groups_; g++)
      for (int64_t k = 0; k < values; k += W) {
        V t[G];
        const R* from = results_.get() + g * results_pitch_ + k * G;
        unrolled<G>([&](auto b) SCISPARSE_INLINE_LAMBDA { t[b] = load<W>(from + b * W); });
        transpose<log2_of(W / UNIT), UNIT>(t);
        for (int b = 0; b < min_of(G, p_.batch - g * G); b++)
          write_row(t[b], int(min_of(W, values - k)), ((g * G + b) * p_.pattern.sites + i) * p_.out + k);
      }
  }

  SCISPARSE_INLINE void write_row(V values, int n, int64_t offset) {
    if (p_.y.are_reals()) return store_in_turn(p_.y.template as<R>() + offset, values, n, p_.streaming);
    R row[W];
    store(row, values);
    p_.y.write(row, n, offset);
  }

  const Forward<R>& p_;
  SourceCache<R, Q, FOLD> cache_;
  Weights<R> weights_;
  Piece<R> piece_;
  bool add_ = false;  // results hold sums of earlier pieces of the row
  int64_t groups_, columns_, site_step_, results_pitch_;
  Buffer<R> results_;
};

template <bool TRANSPOSED, int Q, class R>
Status packed_with(const Forward<R>& p, int64_t first, int64_t last) {
  Packed<R, TRANSPOSED, Q> kernel(p);
  if (!kernel) return Status::no_memory;
  kernel.sites(first, last);
  finish_streams();
  return Status::ok;
}

// How many neighbouring weights a vector takes: a divisor of a weight row that leaves fewest lanes beyond the batch.
template <class R>
int weights_per_vector(const Forward<R>& p) {
  constexpr int W = width<R>;
  int best = 1;
  for (int q = 2; q <= 4 && q < W; q *= 2)
    if ((p.transposed ? p.in : p.out) % q == 0 && round_up(p.batch, W / q) < round_up(p.batch, W / best)) best = q;
  return best;
}

template <class R>
Status packed(const Forward<R>& p, int64_t first, int64_t last) {
  constexpr int W = width<R>;
  const int q = weights_per_vector(p);
  if constexpr (W > 4)
    if (q == 4) return p.transposed ? packed_with<true, 4>(p, first, last) : packed_with<false, 4>(p, first, last);
  if constexpr (W > 2)
    if (q == 2) return p.transposed ? packed_with<true, 2>(p, first, last) : packed_with<false, 2>(p, first, last);
  return p.transposed ? packed_with<true, 1>(p, first, last) : packed_with<false, 1>(p, first, last);
}

}  // namespace
}  // namespace SCISPARSE_NAMESPACE
