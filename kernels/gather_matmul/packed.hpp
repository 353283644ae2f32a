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
      : p_(p), cache_(p), weights_(p.weight, {1, p.in * p.out, 0}), groups_(ceil_div(p.batch, G)), columns_(p.out / UNIT),
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
    cache_.release();
    const int count = int(min_of(end - e, weights_.slots()));
    for (piece_.count = 0; piece_.count < count; piece_.count++) {
      const int j = piece_.count;
      piece_.x[j] = cache_.find(at(p_.pattern.col, e + j));
      if (!piece_.x[j]) break;
      piece_.w[j] = weights_.read(at(p_.pattern.tie, e + j) * p_.in * p_.out, j);
    }
    return piece_.count;
  }

  // Columns in tiles of nearly equal size.
  template <int NV>
  SCISPARSE_INLINE void tiles(int64_t g, int64_t row) {
    constexpr int most = SCISPARSE_ISA == 3 || NV == 1 ? 8 : 4;  // sums that fit into registers
    const int64_t units = ceil_div(columns_, FOLD), count = ceil_div(units, most / FOLD);
    for (int64_t t = 0; t < count; t++) {
      const int64_t o = units * t / count * FOLD, end = min_of(units * (t + 1) / count * FOLD, columns_);
      tile_of<NV, most>(end - o, g, o, results_.get() + g * results_pitch_ + (row + o) * G * UNIT);
    }
  }

  template <int NV, int NO>
  SCISPARSE_INLINE void tile_of(int64_t size, int64_t g, int64_t o, R* to) {
    if constexpr (NO > 1)
      if (size < NO) return tile_of<NV, NO - 1>(size, g, o, to);
    tile<NV, NO>(g, o, to);
  }

  // NV groups from g on and NO columns from o0 on.
  template <int NV, int NO>
  __attribute__((noinline)) void tile(int64_t g, int64_t o0, R* to) {
    const int64_t across = TRANSPOSED ? p_.in : Q, down = TRANSPOSED ? Q : p_.out, steps = TRANSPOSED ? p_.in / Q : p_.in;
    const int64_t pitch = cache_.group_pitch();
    V sum[NV][NO] = {};
    for (int j = 0; j < piece_.count; j++) {
      const R* x = piece_.x[j] + g * pitch;
      const R* w = piece_.w[j] + o0 * across;
      for (int64_t k = 0; k < steps; k++, x += G * FOLD, w += down) {
        V value[NV];
#pragma GCC unroll 2
        for (int v = 0; v < NV; v++) {
          value[v] = load<W>(x + v * pitch);
          if constexpr (UNIT > 1) value[v] = pick<Stretch<Q>>(value[v], value[v]);
        }
#pragma GCC unroll 8
        for (int o = 0; o < NO; o++) {
          const V weight = repeat<Q, V>(w + o * across);
#pragma GCC unroll 2
          for (int v = 0; v < NV; v++) sum[v][o] += value[v] * weight;
        }
      }
    }
#pragma GCC unroll 2
    for (int v = 0; v < NV; v++) keep<NO>(sum[v], to + v * results_pitch_);
  }

  // Sums to results. With transposed weights the products of Q inputs are added, which makes one vector of Q sums.
  template <int NO>
  SCISPARSE_INLINE void keep(const V (&sum)[NO], R* to) {
#pragma GCC unroll 8
    for (int o = 0; o < NO; o += FOLD) {
      V part[FOLD];
#pragma GCC unroll 4
      for (int k = 0; k < FOLD; k++) part[k] = o + k < NO ? sum[o + k] : V{};
#pragma GCC unroll 2
      for (int n = FOLD; n > 1; n /= 2)
#pragma GCC unroll 2
        for (int k = 0; k < n / 2; k++) part[k] = add_pairs(part[2 * k], part[2 * k + 1]);
      R* place = to + o * G * UNIT;
      store(place, add_ ? part[0] + load<W>(place) : part[0]);
    }
  }

  // Results of `count` sites to y.
  void write(int64_t i, int64_t count) {
    const int64_t values = count * p_.out;
    for (int64_t g = 0; g < groups_; g++)
      for (int64_t k = 0; k < values; k += W) {
        V t[G];
        for (int b = 0; b < G; b++) t[b] = load<W>(results_.get() + g * results_pitch_ + k * G + b * W);
        transpose<log2_of(W / UNIT), UNIT>(t);
        for (int b = 0; b < min_of(G, p_.batch - g * G); b++)
          write_row(t[b], int(min_of(W, values - k)), ((g * G + b) * p_.pattern.sites + i) * p_.out + k);
      }
  }

  SCISPARSE_INLINE void write_row(V values, int n, int64_t offset) {
    if (p_.y.are_reals()) return store(p_.y.template as<R>() + offset, values, n);
    R row[W];
    store(row, values);
    p_.y.write(row, n, offset);
  }

  const Forward<R>& p_;
  SourceCache<R, Q, FOLD> cache_;
  Blocks<R> weights_;
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
