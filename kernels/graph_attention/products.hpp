// The two products over the edges of a site, and the exponential between them.
#pragma once

#include "../native/memory.hpp"
#include "../native/streams.hpp"
#include "kernels.hpp"

namespace SCISPARSE_NAMESPACE {
namespace {

// Blocks of numbers in an array, `pitch` apart.
template <class T>
struct Array {
  const T* data;
  int64_t pitch;
  SCISPARSE_INLINE const T* operator[](int64_t k) const { return data + k * pitch; }
};

// to[j] = sum_d x[d] * rows[index[j]][d] for N vectors at once, which hide each other's latencies.
template <int N, class T, class R = Real<T>>
SCISPARSE_INLINE void dots_of(const T* x, const Array<T>& rows, const int64_t* index, int64_t size, R* to) {
  constexpr int L = width<R>;
  using V = Vec<R, L>;
  const T* row[N];
  V sum[N] = {};
  unrolled<N>([&](auto j) SCISPARSE_INLINE_LAMBDA { row[j] = rows[index[j]]; });
  int64_t d = 0;
  for (; d + L <= size; d += L) {
    const V value = load<L>(x + d);
    unrolled<N>([&](auto j) SCISPARSE_INLINE_LAMBDA { sum[j] += value * load<L>(row[j] + d); });
  }
  if (d < size) {
    const int rest = int(size - d);
    const V value = load<L>(x + d, rest);
    unrolled<N>([&](auto j) SCISPARSE_INLINE_LAMBDA { sum[j] += value * load<L>(row[j] + d, rest); });
  }
  store(to, sum_lanes(sum), N);
}

template <int N, class T, class R = Real<T>>
SCISPARSE_INLINE int64_t dots_from(int64_t j, const T* x, const Array<T>& rows, const int64_t* index, int64_t count, int64_t size, R* to) {
  for (; j + N <= count; j += N) dots_of<N>(x, rows, index + j, size, to + j);
  if constexpr (N > 1) j = dots_from<N / 2>(j, x, rows, index, count, size, to);
  return j;
}

// to[j] = sum_d x[d] * rows[index[j]][d] for j < count
template <class T, class R = Real<T>>
__attribute__((noinline)) void dots(const T* x, const Array<T>& rows, const int64_t* index, int64_t count, int64_t size, R* to) {
  dots_from<width<R>>(0, x, rows, index, count, size, to);
}

// to[d] = sum_j value[j] * rows[index[j]][d] for N vectors from d on; several edges at a time where N is small.
template <int N, bool WHOLE, class T, class R = Real<T>>
SCISPARSE_INLINE void sums_of(const R* value, const Array<T>& rows, const int64_t* index, int64_t count, int64_t d, int rest, R* to,
                              bool add) {
  constexpr int L = width<R>, EDGES = N >= 8 ? 1 : 8 / N;
  using V = Vec<R, L>;
  V sum[EDGES][N] = {};
  const auto edge = [&](int64_t j, auto u) SCISPARSE_INLINE_LAMBDA {
    const T* row = rows[index[j]] + d;
    const V weight = splat<V>(value[j]);
    unrolled<N>([&](auto n) SCISPARSE_INLINE_LAMBDA {
      sum[u][n] += weight * (WHOLE ? load<L>(row + n * L) : load<L>(row + n * L, rest));
    });
  };
  int64_t j = 0;
  for (; j + EDGES <= count; j += EDGES) unrolled<EDGES>([&](auto u) SCISPARSE_INLINE_LAMBDA { edge(j + u, u); });
  for (; j < count; j++) edge(j, std::integral_constant<int, 0>());
  unrolled<N>([&](auto n) SCISPARSE_INLINE_LAMBDA {
    V total = sum[0][n];
    for (int u = 1; u < EDGES; u++) total += sum[u][n];
    R* place = to + d + n * L;
    if (add) total += WHOLE ? load<L>(place) : load<L>(place, rest);
    store(place, total, WHOLE ? L : rest);
  });
}

template <int N, class T, class R = Real<T>>
SCISPARSE_INLINE int64_t sums_from(int64_t d, const R* value, const Array<T>& rows, const int64_t* index, int64_t count, int64_t size,
                                   R* to, bool add) {
  constexpr int L = width<R>;
  for (; d + N * L <= size; d += N * L) sums_of<N, true>(value, rows, index, count, d, L, to, add);
  if constexpr (N > 1) d = sums_from<N / 2>(d, value, rows, index, count, size, to, add);
  return d;
}

// to[d] = sum_j value[j] * rows[index[j]][d] for d < size, added to what is there if `add`
template <class T, class R = Real<T>>
__attribute__((noinline)) void sums(const R* value, const Array<T>& rows, const int64_t* index, int64_t count, int64_t size, R* to,
                                    bool add) {
  const int64_t d = sums_from<8>(0, value, rows, index, count, size, to, add);
  if (d < size) sums_of<1, false>(value, rows, index, count, d, int(size - d), to, add);
}

// exp(x) to the last bit or two, for x that are at most a little above 0; 0 below the smallest normal number. A polynomial on half
// an octave around 0 (Moshier, Cephes, expf), times a power of two.
template <int L>
SCISPARSE_INLINE Vec<float, L> exp_of(Vec<float, L> x) {
  using V = Vec<float, L>;
  using U = Vec<uint32_t, L>;
  const V least = splat<V>(-87.0f), round = splat<V>(12582912.0f);
  const auto small = x < least;
  const V shifted = x * 1.44269504f + round, n = shifted - round;
  const V r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  const V p = ((((1.9875691500e-4f * r + 1.3981999507e-3f) * r + 8.3334519073e-3f) * r + 4.1665795894e-2f) * r + 1.6666665459e-1f) * r +
              5.0000001201e-1f;
  const V power = bit_cast<V>((bit_cast<U>(shifted) + 127) << 23);
  const V y = (p * r * r + r + 1.0f) * power;
  return bit_cast<V>(bit_cast<U>(y) & ~bit_cast<U>(small));
}

template <int L>
SCISPARSE_INLINE Vec<double, L> exp_of(Vec<double, L> x) {
  for (int l = 0; l < L; l++) x[l] = __builtin_exp(x[l]);
  return x;
}

// value[j] = exp(value[j] - minus), with zeros up to a whole vector; the sum.
template <class R>
__attribute__((noinline)) R exponentials(R* value, int64_t count, R minus) {
  constexpr int L = width<R>;
  using V = Vec<R, L>;
  V sum = {};
  for (int64_t j = 0; j < count; j += L) {
    const int n = int(min_of(L, count - j));
    V e = exp_of<L>(load<L>(value + j) - minus);
    for (int l = n; l < L; l++) e[l] = 0;
    store(value + j, e);
    sum += e;
  }
  R total = 0;
  for (int l = 0; l < L; l++) total += sum[l];
  return total;
}

}  // namespace
}  // namespace SCISPARSE_NAMESPACE
