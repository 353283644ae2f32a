// Reads and writes of tensors larger than the caches.
#pragma once

#include "simd.hpp"

namespace SCISPARSE_NAMESPACE {
namespace {

// Writes past the caches where the machine can; p is aligned to the vector.
template <class V>
SCISPARSE_INLINE void stream(void* p, V v) {
#if SCISPARSE_ISA == 3
  if constexpr (sizeof(V) == 64) return _mm512_stream_si512(static_cast<__m512i*>(p), bit_cast<__m512i>(v));
#endif
#if SCISPARSE_ISA >= 2
  if constexpr (sizeof(V) == 32) return _mm256_stream_si256(static_cast<__m256i*>(p), bit_cast<__m256i>(v));
  if constexpr (sizeof(V) == 16) return _mm_stream_si128(static_cast<__m128i*>(p), bit_cast<__m128i>(v));
#endif
  std::memcpy(p, &v, sizeof v);
}

// Makes streamed writes visible to other threads.
SCISPARSE_INLINE void finish_streams() {
#if SCISPARSE_ISA >= 2
  _mm_sfence();
#endif
}

// Work with one stream of memory for each batch has more streams than the hardware follows, so it asks for what comes next.
SCISPARSE_INLINE void ask_to_read(const void* p) { __builtin_prefetch(p, 0, 2); }
SCISPARSE_INLINE void ask_to_write(const void* p) { __builtin_prefetch(p, 1); }

// For what is read next, from anywhere.
SCISPARSE_INLINE void ask_to_read_now(const void* p) { __builtin_prefetch(p); }

// Stores a row of one of many streams: past the caches where that is wanted and possible, else asking for what comes next.
template <class T, class V>
SCISPARSE_INLINE void store_in_turn(T* p, V v, int n, bool streaming) {
  if constexpr (is_real<T> && sizeof(V) == simd_bytes)
    if (streaming && n == lanes<V> && reinterpret_cast<uintptr_t>(p) % simd_bytes == 0) return stream(p, v);
  ask_to_write(p + lanes<V>);
  store(p, v, n);
}

// Stores one vector after the other, past the caches where that is wanted and possible.
template <class T, class V>
SCISPARSE_INLINE void store_in_line(T* p, V v, int n, bool streaming) {
  if constexpr (is_real<T>)
    if (streaming && n == lanes<V> && reinterpret_cast<uintptr_t>(p) % sizeof(V) == 0) return stream(p, v);
  store(p, v, n);
}

}  // namespace
}  // namespace SCISPARSE_NAMESPACE
