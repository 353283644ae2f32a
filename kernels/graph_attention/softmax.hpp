// Softmax over the edges of each site, and its derivative.
//
// The numbers of a row, [edges, heads], are one run of memory. Where the heads divide the lanes of a vector, a row goes through
// whole vectors, lane l for head l % heads, and the lanes of a head are joined at the end; else a vector holds heads of one edge.
#pragma once

#include "problem.hpp"

namespace SCISPARSE_NAMESPACE {
namespace {

// The vectors of a row that go together: `count` of them, `step` apart, of n numbers each, or `last` in the last one.
struct RowVectors {
  int64_t step, count;
  int n, last;
  int64_t heads;  // lanes that are so many apart belong together

  // Calls f(k, n) for the n numbers from k on.
  template <class F>
  SCISPARSE_INLINE void each(const F& f) const {
    for (int64_t j = 0; j < count; j++) f(j * step, j + 1 < count ? n : last);
  }

  // Joins lanes that belong together; all of them hold the result.
  template <class V, class Op>
  SCISPARSE_INLINE V fold(V v, const Op& op) const {
    constexpr int L = lanes<V>;
    unrolled<log2_of(L)>([&](auto step_down) SCISPARSE_INLINE_LAMBDA {
      constexpr int half = L >> (step_down + 1);
      if (half >= heads) v = op(v, pick<Rotated<L, half>>(v, v));
    });
    return v;
  }

 private:
  template <int L, int BY>
  struct Rotated {
    static constexpr int at(int l) { return (l + BY) % L; }
  };
};

// The first n numbers at p, and another in the other lanes; nothing behind them is read.
template <class R>
SCISPARSE_INLINE Vec<R, width<R>> load_part(const R* p, int n, R other) {
  constexpr int L = width<R>;
  using V = Vec<R, L>;
  if (n == L) return load<L>(p);
  V place;
  for (int l = 0; l < L; l++) place[l] = R(l);
  return place < splat<V>(R(n)) ? load<L>(p, n) : splat<V>(other);
}

// to = exp(score - the largest of row and head), over their sum; 0 of -infinity alone. The largest may miss a NaN, which the
// exponentials still have.
template <class R>
__attribute__((noinline)) void softmax_of(const RowVectors& row, const R* score, R* to) {
  constexpr int L = width<R>;
  using V = Vec<R, L>;
  constexpr R none = -R(__builtin_inf());
  V most = splat<V>(none), sum = {};
  row.each([&](int64_t k, int n) SCISPARSE_INLINE_LAMBDA { most = Larger()(load_part(score + k, n, none), most); });
  most = row.fold(most, Larger());
  most = most == splat<V>(none) ? V{} : most;
  row.each([&](int64_t k, int n) SCISPARSE_INLINE_LAMBDA {
    const V e = exp_of<L>(load_part(score + k, n, none) - most);
    store(to + k, e, n);
    sum += e;
  });
  sum = row.fold(sum, Add());
  const V share = 1 / (sum == V{} ? splat<V>(R(1)) : sum);
  row.each([&](int64_t k, int n) SCISPARSE_INLINE_LAMBDA { store(to + k, load<L>(to + k, n) * share, n); });
}

// to = weight * (grad - the sum of weight * grad over row and head)
template <class R>
__attribute__((noinline)) void softmax_slope_of(const RowVectors& row, const R* weight, const R* grad, R* to) {
  constexpr int L = width<R>;
  using V = Vec<R, L>;
  V sum = {};
  row.each([&](int64_t k, int n) SCISPARSE_INLINE_LAMBDA { sum += load<L>(weight + k, n) * load<L>(grad + k, n); });
  sum = row.fold(sum, Add());
  row.each([&](int64_t k, int n) SCISPARSE_INLINE_LAMBDA { store(to + k, load<L>(weight + k, n) * (load<L>(grad + k, n) - sum), n); });
}

// Of scores, or of weights with their gradients if there are any.
template <class R>
struct RowSoftmax {
  static Status run(const scisparse_softmax& p, int64_t first, int64_t last) {
    for (int64_t b = 0; b < p.batch; b++)
      for (int64_t i = first; i < last; i++) {
        const int64_t edges = p.edges.row_ptr[i + 1] - p.edges.row_ptr[i];
        if (edges && p.heads) row(p, edges, (b * p.edges.count + p.edges.row_ptr[i]) * p.heads);
      }
    return Status::ok;
  }

 private:
  static constexpr int L = width<R>;

  static SCISPARSE_INLINE void row(const scisparse_softmax& p, int64_t edges, int64_t place) {
    if (L % p.heads == 0) {
      const int64_t count = ceil_div(edges * p.heads, L);
      return vectors(p, {L, count, L, int(edges * p.heads - (count - 1) * L), p.heads}, place);
    }
    for (int64_t h = 0; h < p.heads; h += L) {
      const int n = int(min_of(L, p.heads - h));
      vectors(p, {p.heads, edges, n, n, L}, place + h);
    }
  }

  static SCISPARSE_INLINE void vectors(const scisparse_softmax& p, const RowVectors& row, int64_t place) {
    const R* from = static_cast<const R*>(p.from) + place;
    if (p.grad)
      softmax_slope_of(row, from, static_cast<const R*>(p.grad) + place, reals<R>(p.to) + place);
    else
      softmax_of(row, from, reals<R>(p.to) + place);
  }
};

}  // namespace
}  // namespace SCISPARSE_NAMESPACE
