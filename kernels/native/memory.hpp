// Indices and memory as kernels use them.
#pragma once

#include <cstdlib>

#include "simd.hpp"
#include "types.hpp"

namespace SCISPARSE_NAMESPACE {
namespace {

using scisparse::DType;
using scisparse::Indices;
using scisparse::Pattern;
using scisparse::Status;

SCISPARSE_INLINE int64_t min_of(int64_t a, int64_t b) { return a < b ? a : b; }
SCISPARSE_INLINE int64_t max_of(int64_t a, int64_t b) { return a > b ? a : b; }
SCISPARSE_INLINE int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
SCISPARSE_INLINE int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }

SCISPARSE_INLINE int64_t at(const Indices& indices, int64_t e) {
  if (indices.bits == 32) return static_cast<const int32_t*>(indices.data)[e];
  return indices.bits == 64 ? static_cast<const int64_t*>(indices.data)[e] : e;
}

// Index values that count up.
struct Counting {
  int64_t first;
  int64_t operator[](int64_t k) const { return first + k; }
};

// Calls f(values) with the index values from e on, of the type that they have: one test for all of them.
template <class F>
SCISPARSE_INLINE auto with_indices(const Indices& indices, int64_t e, const F& f) {
  if (indices.bits == 32) return f(static_cast<const int32_t*>(indices.data) + e);
  if (indices.bits == 64) return f(static_cast<const int64_t*>(indices.data) + e);
  return f(Counting{e});
}

// to[j] = base + step * indices[e + j] for j < count
template <class R>
SCISPARSE_INLINE void point(const R** to, const R* base, int64_t step, const Indices& indices, int64_t e, int count) {
  with_indices(indices, e, [&](const auto& index) {
    for (int j = 0; j < count; j++) to[j] = base + step * index[j];
  });
}

// Uninitialised memory for numbers, aligned to a cache line.
template <class T>
class Buffer {
 public:
  explicit Buffer(int64_t count) {
    if (posix_memalign(&data_, 64, size_t(count) * sizeof(T) + 64) != 0) data_ = nullptr;
  }
  ~Buffer() { std::free(data_); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  T* get() const { return static_cast<T*>(data_); }
  explicit operator bool() const { return data_ != nullptr; }

 private:
  void* data_;
};

}  // namespace
}  // namespace SCISPARSE_NAMESPACE
