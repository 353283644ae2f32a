// Scores of the edges of a site become weights, and gradients of weights those of scores: N heads at a time, whose lanes are joined
// together, as a row is often shorter than the wait for a sum over lanes.
#pragma once

#include "products.hpp"

namespace SCISPARSE_NAMESPACE {
namespace {

// Calls task(N, h) for all heads, N from h on, with N a constant.
template <class F>
SCISPARSE_INLINE void in_fours(int64_t heads, const F& task) {
  int64_t h = 0;
  for (; h + 4 <= heads; h += 4) task(std::integral_constant<int, 4>(), h);
  for (; h < heads; h++) task(std::integral_constant<int, 1>(), h);
}

SCISPARSE_INLINE float log_of(float x) { return __builtin_logf(x); }
SCISPARSE_INLINE double log_of(double x) { return __builtin_log(x); }

template <class R>
constexpr R none = -R(__builtin_inf());

// The lanes of t[n], joined, for each n.
template <int N, class V, class Op, class R = Lane<V>>
SCISPARSE_INLINE void join_each(const V (&t)[N], const Op& op, R (&to)[N]) {
  constexpr int L = lanes<V>;
  constexpr int AT_ONCE = N < L ? N : L;
  unrolled<N / AT_ONCE>([&](auto k) SCISPARSE_INLINE_LAMBDA {
    V part[AT_ONCE];
    unrolled<AT_ONCE>([&](auto n) SCISPARSE_INLINE_LAMBDA { part[n] = t[k * AT_ONCE + n]; });
    store(to + k * AT_ONCE, join_lanes(part, op), AT_ONCE);
  });
}

// score[n] = softmax(score[n]), with zeros to the end of the vector; lse[n] = the logarithm of its denominator.
template <int N, class R>
SCISPARSE_INLINE void softmax_of_heads(const BlockOf<R>& score, int64_t count, R (&lse)[N]) {
  constexpr int L = width<R>;
  using V = Vec<R, L>;
  V most[N], sum[N] = {};
  unrolled<N>([&](auto n) SCISPARSE_INLINE_LAMBDA { most[n] = splat<V>(none<R>); });
  for (int64_t j = 0; j < count; j += L)
    // NaN may get lost: the exponentials still have it.
    unrolled<N>([&](auto n) SCISPARSE_INLINE_LAMBDA { most[n] = Larger()(load_or(score[n] + j, count - j, none<R>), most[n]); });
  R largest[N], total[N];
  join_each(most, Larger(), largest);
  // Of -infinity alone: nothing; where there is NaN as well, the sum is NaN.
  unrolled<N>([&](auto n) SCISPARSE_INLINE_LAMBDA { largest[n] = largest[n] == none<R> ? R(0) : largest[n]; });
  for (int64_t j = 0; j < count; j += L)
    unrolled<N>([&](auto n) SCISPARSE_INLINE_LAMBDA {
      const V e = exp_of<L>(load_or(score[n] + j, count - j, none<R>) - largest[n]);
      store(score[n] + j, e);
      sum[n] += e;
    });
  join_each(sum, Add(), total);
  unrolled<N>([&](auto n) SCISPARSE_INLINE_LAMBDA {
    lse[n] = total[n] == 0 ? none<R> : largest[n] + log_of(total[n]);
    if (total[n] != 0) multiply(score[n], count, 1 / total[n]);
  });
}

// score[n] = softmax(score[n]), whose denominator is known; slope[n] = score[n] * (slope[n] - sum_k score[n][k] * slope[n][k]).
template <int N, class R>
SCISPARSE_INLINE void softmax_gradients_of_heads(const BlockOf<R>& score, const BlockOf<R>& slope, int64_t count, const R (&lse)[N]) {
  constexpr int L = width<R>;
  using V = Vec<R, L>;
  V sum[N] = {}, product[N] = {};
  for (int64_t j = 0; j < count; j += L)
    unrolled<N>([&](auto n) SCISPARSE_INLINE_LAMBDA {
      const V e = exp_of<L>(load_or(score[n] + j, count - j, none<R>) - (lse[n] == none<R> ? R(0) : lse[n]));
      store(score[n] + j, e);
      sum[n] += e;
      product[n] += e * load_or(slope[n] + j, count - j, R(0));
    });
  // The sum is 1 but for the rounding of lse, which is coarse where scores are large; 0 of nothing.
  R total[N], mean[N];
  join_each(sum, Add(), total);
  join_each(product, Add(), mean);
  unrolled<N>([&](auto n) SCISPARSE_INLINE_LAMBDA {
    const R share = total[n] == 0 ? R(1) : 1 / total[n];
    mean[n] *= share;
    for (int64_t j = 0; j < count; j += L) {
      const V weight = load<L>(score[n] + j) * share;
      store(score[n] + j, weight);
      store(slope[n] + j, weight * (load<L>(slope[n] + j) - mean[n]));
    }
  });
}

}  // namespace
}  // namespace SCISPARSE_NAMESPACE
