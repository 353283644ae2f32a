// The two products over the edges of a site, and the exponential between them.
#pragma once

#include "../native/memory.hpp"
#include "../native/shuffles.hpp"
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

// Numbers of the rows of a block, or of heads, `pitch` apart.
template <class R>
struct BlockOf {
  R* data;
  int64_t pitch;
  SCISPARSE_INLINE R* operator[](int64_t r) const { return data + r * pitch; }
};

// Products of a row are made and used in whole vectors: indices are repeated, and sums are written, up to a multiple of `group`.
template <class R>
constexpr int group = width<R> < 8 ? width<R> : 8;

// to[j] = sum_d x[d] * rows[index[j]][d] for a group, whose sums hide each other's latencies.
template <class T, class R = Real<T>>
SCISPARSE_INLINE void dots_of(const T* x, const Array<T>& rows, const int64_t* index, int64_t size, R* to) {
  constexpr int L = width<R>, N = group<R>;
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

// to[j] = sum_d x[d] * rows[index[j]][d] for j < count, and on to the end of the group
template <class T, class R = Real<T>>
__attribute__((noinline)) void dots(const T* x, const Array<T>& rows, const int64_t* index, int64_t count, int64_t size, R* to) {
  for (int64_t j = 0; j < count; j += group<R>) dots_of(x, rows, index + j, size, to + j);
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

// to[h][j] += sum_a x[h][a] * rows[index[j]][a] for h < heads, j < count and on to the end of the vector: for rows so short that a sum
// over lanes takes longer than what it sums. Lanes are edges; those of a vector turn once for all heads.
template <class T, class R = Real<T>>
__attribute__((noinline)) void add_dots(const Array<T>& x, const Array<T>& rows, const int64_t* index, int64_t count, int64_t size,
                                        int64_t heads, const BlockOf<R>& to) {
  constexpr int L = width<R>;
  using V = Vec<R, L>;
  for (int64_t j = 0; j < count; j += L)
    for (int64_t a = 0; a < size; a += L) {
      const int rest = int(min_of(L, size - a)), edges = int(min_of(L, count - j));
      V turned[L];
      const auto read = [&](auto is_whole) SCISPARSE_INLINE_LAMBDA {
        unrolled<L>([&](auto l) SCISPARSE_INLINE_LAMBDA {
          const T* row = rows[index[j + (l < edges ? l : 0)]] + a;
          turned[l] = is_whole ? load<L>(row) : widen<T, L>(load_bits<Bits<T>, L>(row, rest));
        });
      };
      rest == L ? read(std::true_type()) : read(std::false_type());
      transpose_square(turned);
      for (int64_t h = 0; h < heads; h++) {
        V sum = load<L>(to[h] + j);
        for (int l = 0; l < rest; l++) sum += read_one(x[h] + a + l) * turned[l];
        store(to[h] + j, sum);
      }
    }
}

// to[h][a] = sum_j value[h][j] * rows[index[j]][a] for N heads and a < size, and 0 up to `room`: each of the rows is loaded once.
template <int N, class T, class R = Real<T>>
__attribute__((noinline)) void sums_of_heads(const BlockOf<R>& value, const Array<T>& rows, const int64_t* index, int64_t count,
                                             int64_t size, int64_t room, T* to) {
  constexpr int L = width<R>;
  using V = Vec<R, L>;
  for (int64_t a = 0; a < room; a += L) {
    V sum[N] = {};
    const int rest = int(min_of(L, size - a));
    for (int64_t j = 0; rest > 0 && j < count; j++) {
      const V row = load<L>(rows[index[j]] + a, rest);
      unrolled<N>([&](auto n) SCISPARSE_INLINE_LAMBDA { sum[n] += splat<V>(value[n][j]) * row; });
    }
    unrolled<N>([&](auto n) SCISPARSE_INLINE_LAMBDA { store(to + n * room + a, sum[n], int(min_of(L, room - a))); });
  }
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

// The functions below go over whole vectors; what is behind the last number has no effect.
template <class R>
SCISPARSE_INLINE Vec<R, width<R>> load_or(const R* p, int64_t left, R other) {
  constexpr int L = width<R>;
  using V = Vec<R, L>;
  const V v = load<L>(p);
  if (left >= L) return v;
  V place;
  for (int l = 0; l < L; l++) place[l] = R(l);
  return place < splat<V>(R(left)) ? v : splat<V>(other);
}

template <class R>
SCISPARSE_INLINE void multiply(R* value, int64_t count, R with) {
  constexpr int L = width<R>;
  for (int64_t j = 0; j < count; j += L) store(value + j, load<L>(value + j) * with);
}

// value[j] += other[j] for j < count alone
template <class R>
SCISPARSE_INLINE void add(R* value, int64_t count, const R* other) {
  constexpr int L = width<R>;
  for (int64_t j = 0; j < count; j += L) {
    const int n = int(min_of(L, count - j));
    store(value + j, load<L>(value + j, n) + load<L>(other + j, n), n);
  }
}

}  // namespace
}  // namespace SCISPARSE_NAMESPACE
