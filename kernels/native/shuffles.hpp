// Vectors whose lanes change places or are joined: repeated chunks, transposes, sums over lanes.
#pragma once

#include "simd.hpp"

namespace SCISPARSE_NAMESPACE {
namespace {

// The Q values at p, over and over.
template <int Q, class V>
SCISPARSE_INLINE V repeat(const Lane<V>* p) {
  [[maybe_unused]] constexpr int bytes = Q * sizeof(Lane<V>);
  if constexpr (Q == 1) return splat<V>(*p);
  if constexpr (Q == lanes<V>) return load<Q>(p);
#if SCISPARSE_ISA >= 2
  if constexpr (bytes == 8) {
    using U = Vec<int64_t, sizeof(V) / 8>;
    int64_t chunk;
    std::memcpy(&chunk, p, 8);
    return bit_cast<V>(splat<U>(chunk));
  }
  auto chunk = load<Q>(p);
  if constexpr (bytes == 16 && sizeof(V) == 32)
    return bit_cast<V>(_mm256_broadcastsi128_si256(bit_cast<__m128i>(chunk)));
#endif
#if SCISPARSE_ISA == 3
  if constexpr (bytes == 16 && sizeof(V) == 64) return bit_cast<V>(_mm512_maskz_broadcast_i32x4(__mmask16(-1), bit_cast<__m128i>(chunk)));
  if constexpr (bytes == 32 && sizeof(V) == 64) return bit_cast<V>(_mm512_maskz_broadcast_i64x4(__mmask8(-1), bit_cast<__m256i>(chunk)));
#endif
  V v;
  for (int l = 0; l < lanes<V>; l++) v[l] = p[l % Q];
  return v;
}

// The lanes of (a, b), numbered through, that Map names.
template <class Map, class V, int... I>
SCISPARSE_INLINE V pick(V a, V b, std::integer_sequence<int, I...>) {
#if defined(__clang__)
  return __builtin_shufflevector(a, b, Map::at(I)...);
#else
  using Index = Vec<std::conditional_t<sizeof(Lane<V>) == 8, int64_t, int32_t>, lanes<V>>;
  return __builtin_shuffle(a, b, Index{Map::at(I)...});
#endif
}

template <class Map, class V>
SCISPARSE_INLINE V pick(V a, V b) {
  return pick<Map>(a, b, std::make_integer_sequence<int, lanes<V>>());
}

template <int Q>
struct Stretch {  // each of the first lanes Q times
  static constexpr int at(int l) { return l / Q; }
};
template <int PARITY>
struct Alternate {  // every other lane
  static constexpr int at(int l) { return 2 * l + PARITY; }
};
template <int L, int UNIT, int HALF, int BLOCK = L>
struct Interleave {  // units of a and b in turn, from the low or high half of each block
  static_assert(2 * UNIT <= BLOCK && BLOCK <= L);
  static constexpr int at(int l) {
    return l / UNIT % 2 * L + l / BLOCK * BLOCK + HALF * BLOCK / 2 + l % BLOCK / UNIT / 2 * UNIT + l % UNIT;
  }
};
template <int L, int ROWS>
struct Transposed {  // [ROWS, L / ROWS] to [L / ROWS, ROWS]
  static constexpr int at(int l) { return l % ROWS * (L / ROWS) + l / ROWS; }
};

// Lanes of t, as a matrix [2^STEPS, rest] of units of UNIT lanes, become its transpose. Interleaving the halves of t moves the
// top bit of a unit's place to the bottom; STEPS times gives the transpose. With BLOCK lanes in a block, each block by itself.
template <int STEPS, int UNIT, int BLOCK = 0, class V, int N>
SCISPARSE_INLINE void transpose(V (&t)[N]) {
  if constexpr (STEPS > 0) {
    constexpr int L = lanes<V>, B = BLOCK ? BLOCK : L;
    V next[N];
    unrolled<N / 2>([&](auto k) SCISPARSE_INLINE_LAMBDA {
      next[2 * k] = pick<Interleave<L, UNIT, 0, B>>(t[k], t[k + N / 2]);
      next[2 * k + 1] = pick<Interleave<L, UNIT, 1, B>>(t[k], t[k + N / 2]);
    });
    unrolled<N>([&](auto k) SCISPARSE_INLINE_LAMBDA { t[k] = next[k]; });
    transpose<STEPS - 1, UNIT, B>(t);
  }
}

// Lanes of 128 bits, inside which shuffles are cheapest.
template <class V>
constexpr int block_lanes = 16 / int(sizeof(Lane<V>));

// The transpose of as many vectors as each has lanes.
template <class V, int N>
SCISPARSE_INLINE void transpose_square(V (&t)[N]) {
  static_assert(N == lanes<V>);
  constexpr int BLOCK = block_lanes<V>, BLOCKS = N / BLOCK;
  unrolled<BLOCKS>([&](auto b) SCISPARSE_INLINE_LAMBDA {
    V rows[BLOCK];
    unrolled<BLOCK>([&](auto k) SCISPARSE_INLINE_LAMBDA { rows[k] = t[b * BLOCK + k]; });
    transpose<log2_of(BLOCK), 1, BLOCK>(rows);
    unrolled<BLOCK>([&](auto k) SCISPARSE_INLINE_LAMBDA { t[b * BLOCK + k] = rows[k]; });
  });
  unrolled<BLOCK>([&](auto k) SCISPARSE_INLINE_LAMBDA {
    V rows[BLOCKS];
    unrolled<BLOCKS>([&](auto b) SCISPARSE_INLINE_LAMBDA { rows[b] = t[b * BLOCK + k]; });
    transpose<log2_of(BLOCKS), BLOCK>(rows);
    unrolled<BLOCKS>([&](auto b) SCISPARSE_INLINE_LAMBDA { t[b * BLOCK + k] = rows[b]; });
  });
}

// Not lambdas: those without captures are functions as well, which return vectors by an ABI that no flag of the build names.
struct Add {
  template <class V>
  SCISPARSE_INLINE V operator()(V a, V b) const {
    return a + b;
  }
};
struct Larger {
  template <class V>
  SCISPARSE_INLINE V operator()(V a, V b) const {
    return a > b ? a : b;
  }
};

// Joins neighbouring lanes, of a then of b.
template <class V, class Op>
SCISPARSE_INLINE V join_pairs(V a, V b, const Op& op) {
  return op(pick<Alternate<0>>(a, b), pick<Alternate<1>>(a, b));
}

// Joins 2^STEPS neighbouring lanes, in the order of the N vectors, of which 2^STEPS make one.
template <int STEPS, class V, int N, class Op>
SCISPARSE_INLINE V join_neighbours(const V (&t)[N], const Op& op) {
  if constexpr (STEPS == 0) {
    return t[0];
  } else {
    V next[N > 1 ? N / 2 : 1];
    unrolled<(N > 1 ? N / 2 : 1)>(
        [&](auto k) SCISPARSE_INLINE_LAMBDA { next[k] = join_pairs(t[N > 1 ? 2 * k : 0], t[N > 1 ? 2 * k + 1 : 0], op); });
    return join_neighbours<STEPS - 1>(next, op);
  }
}

// Lane i holds the lanes of t[i], joined; N is a power of two, at most the number of lanes.
template <class V, int N, class Op>
SCISPARSE_INLINE V join_lanes(const V (&t)[N], const Op& op) {
  static_assert(N <= lanes<V>);
  return join_neighbours<log2_of(lanes<V>)>(t, op);
}

template <class V, int N>
SCISPARSE_INLINE V sum_lanes(const V (&t)[N]) {
  return join_lanes(t, Add());
}

// The same for as many vectors as each has lanes, adding halves in place of neighbours, which takes fewer shuffles.
template <int UNIT = 1, class V, int N>
SCISPARSE_INLINE V sum_square(const V (&t)[N]) {
  if constexpr (N == 1) {
    return t[0];
  } else {
    constexpr int L = lanes<V>, BLOCK = UNIT < block_lanes<V> && block_lanes<V> < L ? block_lanes<V> : L;
    V next[N / 2];
    unrolled<N / 2>([&](auto k) SCISPARSE_INLINE_LAMBDA {
      next[k] = pick<Interleave<L, UNIT, 0, BLOCK>>(t[2 * k], t[2 * k + 1]) +
                pick<Interleave<L, UNIT, 1, BLOCK>>(t[2 * k], t[2 * k + 1]);
    });
    return sum_square<2 * UNIT>(next);
  }
}

}  // namespace
}  // namespace SCISPARSE_NAMESPACE
