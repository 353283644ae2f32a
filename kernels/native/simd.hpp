// Vectors of real numbers for the instruction set that SCISPARSE_ISA names: 1 baseline, 2 AVX2, 3 AVX-512.
//
// Arithmetic uses the vector extension of GCC and Clang (`a * b + c` contracts to one fused multiply-add where there is one).
// The functions here are what the extension lacks: storage types, tails, repeated chunks, shuffles.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#if SCISPARSE_ISA >= 2
#include <immintrin.h>
#endif

#define SCISPARSE_INLINE inline __attribute__((always_inline))
#define SCISPARSE_INLINE_LAMBDA __attribute__((always_inline))

namespace SCISPARSE_NAMESPACE {
namespace {

struct Bfloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

// The type in which values stored as T are multiplied and added.
template <class T>
using Real = std::conditional_t<std::is_same_v<T, double>, double, float>;
template <class T>
constexpr bool is_real = std::is_same_v<T, Real<T>>;

constexpr int simd_bytes = SCISPARSE_ISA == 3 ? 64 : SCISPARSE_ISA == 2 ? 32 : 16;
template <class R>
constexpr int width = simd_bytes / int(sizeof(R));

template <class R, int L>
struct VecOf {
  typedef R type __attribute__((vector_size(sizeof(R) * L)));
};
template <class R, int L>
using Vec = typename VecOf<R, L>::type;
template <class V>
using Lane = std::remove_reference_t<decltype(std::declval<V&>()[0])>;
template <class V>
constexpr int lanes = sizeof(V) / sizeof(Lane<V>);

// Calls f(0) to f(N - 1) with constants, so that arrays which f indexes stay in registers.
template <class F, int... I>
SCISPARSE_INLINE void unrolled(const F& f, std::integer_sequence<int, I...>) {
  (f(std::integral_constant<int, I>()), ...);
}
template <int N, class F>
SCISPARSE_INLINE void unrolled(const F& f) {
  unrolled(f, std::make_integer_sequence<int, N>());
}

constexpr int log2_of(int n) { return n > 1 ? 1 + log2_of(n / 2) : 0; }

template <class V, class F>
SCISPARSE_INLINE V bit_cast(F from) {
  static_assert(sizeof(V) == sizeof(F));
  V to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}

template <class V>
SCISPARSE_INLINE V splat(Lane<V> s) {
  return s - V{};
}

// ---- storage types -----------------------------------------------------------------------------

template <int L>
SCISPARSE_INLINE Vec<float, L> widen_bfloat16(Vec<uint16_t, L> v) {
  return bit_cast<Vec<float, L>>(__builtin_convertvector(v, Vec<uint32_t, L>) << 16);
}

template <int L>
SCISPARSE_INLINE Vec<uint16_t, L> narrow_bfloat16(Vec<float, L> v) {
  using U = Vec<uint32_t, L>;
  U bits = bit_cast<U>(v);
  U nearest = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
  U quiet_nan = bits >> 16 | 0x40;
  U is_nan = bit_cast<U>(v != v);
  return __builtin_convertvector((nearest & ~is_nan) | (quiet_nan & is_nan), Vec<uint16_t, L>);
}

SCISPARSE_INLINE float widen_float16(uint16_t half) {
  uint32_t sign = uint32_t(half & 0x8000) << 16, body = uint32_t(half & 0x7fff) << 13;
  bool special = (half & 0x7c00) == 0x7c00;  // infinity or NaN: the exponent stays full
  float scaled = bit_cast<float>(body) * 0x1p112f;
  return bit_cast<float>(sign | (special ? body | 0x7f800000 : bit_cast<uint32_t>(scaled)));
}

SCISPARSE_INLINE uint16_t narrow_float16(float value) {
  uint32_t bits = bit_cast<uint32_t>(value), sign = bits >> 16 & 0x8000, size = bits & 0x7fffffff;
  if (size > 0x7f800000) return uint16_t(sign | 0x7e00);
  if (size >= 0x477ff000) return uint16_t(sign | 0x7c00);
  if (size < 0x38800000) {  // subnormal: adding 0.5 aligns the last kept bit and rounds
    float aligned = bit_cast<float>(size) + 0.5f;
    return uint16_t(sign | (bit_cast<uint32_t>(aligned) - bit_cast<uint32_t>(0.5f)));
  }
  return uint16_t(sign | ((size - 0x38000000 + 0xfff + (size >> 13 & 1)) >> 13));
}

template <int L>
SCISPARSE_INLINE Vec<float, L> widen_float16(Vec<uint16_t, L> v) {
#if SCISPARSE_ISA == 3
  if constexpr (L == 16) return bit_cast<Vec<float, L>>(_mm512_maskz_cvtph_ps(__mmask16(-1), bit_cast<__m256i>(v)));
#endif
#if SCISPARSE_ISA >= 2
  if constexpr (L == 8) return bit_cast<Vec<float, L>>(_mm256_cvtph_ps(bit_cast<__m128i>(v)));
  if constexpr (L == 4) return bit_cast<Vec<float, L>>(_mm_cvtph_ps(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(&v))));
#endif
  Vec<float, L> wide;
  for (int l = 0; l < L; l++) wide[l] = widen_float16(uint16_t(v[l]));
  return wide;
}

template <int L>
SCISPARSE_INLINE Vec<uint16_t, L> narrow_float16(Vec<float, L> v) {
#if SCISPARSE_ISA == 3
  if constexpr (L == 16)
    return bit_cast<Vec<uint16_t, L>>(_mm512_maskz_cvtps_ph(__mmask16(-1), bit_cast<__m512>(v), _MM_FROUND_TO_NEAREST_INT));
#endif
#if SCISPARSE_ISA >= 2
  if constexpr (L == 8)
    return bit_cast<Vec<uint16_t, L>>(_mm256_cvtps_ph(bit_cast<__m256>(v), _MM_FROUND_TO_NEAREST_INT));
#endif
  Vec<uint16_t, L> half;
  for (int l = 0; l < L; l++) half[l] = narrow_float16(float(v[l]));
  return half;
}

// ---- loads and stores --------------------------------------------------------------------------

template <class T>
using Bits = std::conditional_t<sizeof(T) == 8, uint64_t,
                                std::conditional_t<sizeof(T) == 4, uint32_t, uint16_t>>;

#if SCISPARSE_ISA == 2
alignas(64) constexpr int32_t first_lanes[16] = {-1, -1, -1, -1, -1, -1, -1, -1};
#endif

// The first n of L values, with 0 in the other lanes; nothing behind them is read.
template <class U, int L>
SCISPARSE_INLINE Vec<U, L> load_bits(const void* p, int n) {
  using V = Vec<U, L>;
  [[maybe_unused]] constexpr int bytes = sizeof(V);
#if SCISPARSE_ISA == 3
  const __mmask32 mask = (1u << n) - 1;
  if constexpr (sizeof(U) == 2 && bytes == 32) return bit_cast<V>(_mm256_maskz_loadu_epi16(__mmask16(mask), p));
  if constexpr (sizeof(U) == 2 && bytes == 16) return bit_cast<V>(_mm_maskz_loadu_epi16(__mmask8(mask), p));
  if constexpr (sizeof(U) == 4 && bytes == 64) return bit_cast<V>(_mm512_maskz_loadu_epi32(__mmask16(mask), p));
  if constexpr (sizeof(U) == 4 && bytes == 32) return bit_cast<V>(_mm256_maskz_loadu_epi32(__mmask8(mask), p));
  if constexpr (sizeof(U) == 4 && bytes == 16) return bit_cast<V>(_mm_maskz_loadu_epi32(__mmask8(mask), p));
  if constexpr (sizeof(U) == 8 && bytes == 64) return bit_cast<V>(_mm512_maskz_loadu_epi64(__mmask8(mask), p));
  if constexpr (sizeof(U) == 8 && bytes == 32) return bit_cast<V>(_mm256_maskz_loadu_epi64(__mmask8(mask), p));
#elif SCISPARSE_ISA == 2
  if constexpr (sizeof(U) >= 4 && bytes == 32) {
    const int32_t* mask = first_lanes + 8 - n * int(sizeof(U) / 4);
    __m256i m = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(mask));
    return bit_cast<V>(_mm256_maskload_epi32(static_cast<const int*>(p), m));
  }
#endif
  V v = {};
  for (int l = 0; l < L; l++) {
    U value = 0;
    if (l < n) std::memcpy(&value, static_cast<const char*>(p) + l * sizeof(U), sizeof(U));
    v[l] = value;
  }
  return v;
}

template <class V>
SCISPARSE_INLINE void store_bits(void* p, V v, int n) {
  using U = Lane<V>;
  [[maybe_unused]] constexpr int bytes = sizeof(V);
#if SCISPARSE_ISA == 3
  const __mmask32 mask = (1u << n) - 1;
  if constexpr (sizeof(U) == 2 && bytes == 32) return _mm256_mask_storeu_epi16(p, __mmask16(mask), bit_cast<__m256i>(v));
  if constexpr (sizeof(U) == 2 && bytes == 16) return _mm_mask_storeu_epi16(p, __mmask8(mask), bit_cast<__m128i>(v));
  if constexpr (sizeof(U) == 4 && bytes == 64) return _mm512_mask_storeu_epi32(p, __mmask16(mask), bit_cast<__m512i>(v));
  if constexpr (sizeof(U) == 4 && bytes == 32) return _mm256_mask_storeu_epi32(p, __mmask8(mask), bit_cast<__m256i>(v));
  if constexpr (sizeof(U) == 4 && bytes == 16) return _mm_mask_storeu_epi32(p, __mmask8(mask), bit_cast<__m128i>(v));
  if constexpr (sizeof(U) == 8 && bytes == 64) return _mm512_mask_storeu_epi64(p, __mmask8(mask), bit_cast<__m512i>(v));
  if constexpr (sizeof(U) == 8 && bytes == 32) return _mm256_mask_storeu_epi64(p, __mmask8(mask), bit_cast<__m256i>(v));
#endif
  std::memcpy(p, &v, size_t(n) * sizeof(U));
}

template <class T, int L>
SCISPARSE_INLINE Vec<Real<T>, L> widen(Vec<Bits<T>, L> v) {
  if constexpr (is_real<T>) return bit_cast<Vec<T, L>>(v);
  if constexpr (std::is_same_v<T, Bfloat16>) return widen_bfloat16<L>(v);
  if constexpr (std::is_same_v<T, Float16>) return widen_float16<L>(v);
}

template <class T, int L>
SCISPARSE_INLINE Vec<Bits<T>, L> narrow(Vec<Real<T>, L> v) {
  if constexpr (is_real<T>) return bit_cast<Vec<Bits<T>, L>>(v);
  if constexpr (std::is_same_v<T, Bfloat16>) return narrow_bfloat16<L>(v);
  if constexpr (std::is_same_v<T, Float16>) return narrow_float16<L>(v);
}

template <int L, class T>
SCISPARSE_INLINE Vec<Real<T>, L> load(const T* p) {
  Vec<Bits<T>, L> v;
  std::memcpy(&v, p, sizeof v);
  return widen<T, L>(v);
}

template <int L, class T>
SCISPARSE_INLINE Vec<Real<T>, L> load(const T* p, int n) {
  return n == L ? load<L>(p) : widen<T, L>(load_bits<Bits<T>, L>(p, n));
}

template <class T, class V>
SCISPARSE_INLINE void store(T* p, V v) {
  auto bits = narrow<T, lanes<V>>(v);
  std::memcpy(p, &bits, sizeof bits);
}

template <class T, class V>
SCISPARSE_INLINE void store(T* p, V v, int n) {
  if (n == lanes<V>)
    store(p, v);
  else
    store_bits(p, narrow<T, lanes<V>>(v), n);
}

SCISPARSE_INLINE double widen_one(double v) { return v; }
SCISPARSE_INLINE float widen_one(float v) { return v; }
SCISPARSE_INLINE float widen_one(Bfloat16 v) { return bit_cast<float>(uint32_t(v.bits) << 16); }
SCISPARSE_INLINE float widen_one(Float16 v) {
#if SCISPARSE_ISA >= 2
  return _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(v.bits)));
#else
  return widen_float16(v.bits);
#endif
}

// A number read by itself: compilers make gathers of neighbouring ones, which are slower than plain loads.
template <class T>
SCISPARSE_INLINE Real<T> read_one(const T* p) {
  Real<T> v = widen_one(*p);
#if defined(__x86_64__)
  asm("" : "+x"(v));
#endif
  return v;
}

SCISPARSE_INLINE void narrow_one(double v, double& to) { to = v; }
SCISPARSE_INLINE void narrow_one(float v, float& to) { to = v; }
SCISPARSE_INLINE void narrow_one(float v, Bfloat16& to) { to.bits = narrow_bfloat16<4>(splat<Vec<float, 4>>(v))[0]; }
SCISPARSE_INLINE void narrow_one(float v, Float16& to) { to.bits = narrow_float16(v); }

}  // namespace
}  // namespace SCISPARSE_NAMESPACE
