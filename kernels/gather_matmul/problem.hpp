// A problem as the kernels see it: numbers that are read and written as reals (float for 16-bit types).
#pragma once

#include "../native/memory.hpp"
#include "../native/shuffles.hpp"
#include "../native/streams.hpp"
#include "kernels.hpp"

namespace SCISPARSE_NAMESPACE {
namespace {

template <class T>
void widen_all(const void* from, int64_t count, float* to) {
  constexpr int W = width<float>;
  const T* p = static_cast<const T*>(from);
  for (int64_t k = 0; k < count; k += W) {
    const int n = int(min_of(W, count - k));
    store(to + k, load<W>(p + k, n), n);
  }
}

template <class T>
void narrow_all(const float* from, int64_t count, void* to) {
  constexpr int W = width<float>;
  T* p = static_cast<T*>(to);
  for (int64_t k = 0; k < count; k += W) {
    const int n = int(min_of(W, count - k));
    store(p + k, load<W>(from + k, n), n);
  }
}

// Calls f with a null pointer of the type that values of `dtype` are stored as.
template <class R, class F>
auto with_type(DType dtype, const F& f) {
  if constexpr (std::is_same_v<R, float>) {
    if (dtype == DType::bfloat16) return f(static_cast<Bfloat16*>(nullptr));
    if (dtype == DType::float16) return f(static_cast<Float16*>(nullptr));
  }
  return f(static_cast<R*>(nullptr));
}

// Numbers in memory, of the type R or of a narrower one.
template <class R, class Void>
struct Numbers {
  Void* data;
  DType dtype;

  SCISPARSE_INLINE bool are_reals() const { return dtype == DType::float32 || dtype == DType::float64; }
  int64_t bytes() const { return are_reals() ? sizeof(R) : 2; }
  template <class T>
  SCISPARSE_INLINE auto as() const {
    return static_cast<std::conditional_t<std::is_const_v<Void>, const T, T>*>(data);
  }

  void read(int64_t offset, int64_t count, R* to) const {
    if (are_reals()) return void(std::memcpy(to, as<R>() + offset, size_t(count) * sizeof(R)));
    if constexpr (std::is_same_v<R, float>)
      return dtype == DType::bfloat16 ? widen_all<Bfloat16>(as<Bfloat16>() + offset, count, to)
                                      : widen_all<Float16>(as<Float16>() + offset, count, to);
  }

  void write(const R* from, int64_t count, int64_t offset) const {
    if (are_reals()) return void(std::memcpy(as<R>() + offset, from, size_t(count) * sizeof(R)));
    if constexpr (std::is_same_v<R, float>)
      return dtype == DType::bfloat16 ? narrow_all<Bfloat16>(from, count, as<Bfloat16>() + offset)
                                      : narrow_all<Float16>(from, count, as<Float16>() + offset);
  }
};

// Blocks [rows, count] of numbers as reals, with rows `pitch` apart: in place, or copied to one of some slots.
template <class R>
class Blocks {
 public:
  struct Shape {
    int64_t rows, count, pitch;
  };

  // Copies have rows of `padded` numbers, of which those behind the first `count` have any value.
  Blocks(Numbers<R, const void> from, Shape shape, bool copy, int64_t padded)
      : from_(from), shape_(shape), copy_(copy), pitch_(copy ? padded : shape.pitch),
        slots_(copy ? max_of(2, min_of(most_slots, (1 << 16) / max_of(1, shape.rows * padded))) : most_slots),
        buffer_(copy ? slots_ * shape.rows * padded : 0) {}
  Blocks(Numbers<R, const void> from, Shape shape) : Blocks(from, shape, !from.are_reals(), shape.count) {}

  static constexpr int64_t most_slots = 64;
  explicit operator bool() const { return bool(buffer_); }
  int64_t slots() const { return slots_; }
  int64_t pitch() const { return pitch_; }

  // to[j] = the block that begins with number step * indices[e + j]; copies last until their slots are used again.
  SCISPARSE_INLINE void read(const R** to, int64_t step, const Indices& indices, int64_t e, int count) const {
    if (!copy_) return point(to, from_.template as<R>(), step, indices, e, count);
    for (int j = 0; j < count; j++) to[j] = copied(step * at(indices, e + j), j);
  }

  SCISPARSE_INLINE const R* read(int64_t offset, int64_t slot) const {
    return copy_ ? copied(offset, slot) : from_.template as<R>() + offset;
  }

 private:
  __attribute__((noinline)) const R* copied(int64_t offset, int64_t slot) const {
    R* to = buffer_.get() + slot * shape_.rows * pitch_;
    for (int64_t r = 0; r < shape_.rows; r++) from_.read(offset + r * shape_.pitch, shape_.count, to + r * pitch_);
    return to;
  }

  Numbers<R, const void> from_;
  Shape shape_;
  bool copy_;
  int64_t pitch_, slots_;
  Buffer<R> buffer_;
};

// y[b,i,o] = sum_e sum_c x[b,col[e],c] * weight[t,c,o], or weight[t,o,c] when transposed.
template <class R>
struct Forward {
  explicit Forward(const scisparse::GatherMatmul& p)
      : pattern(p.pattern), batch(p.batch), in(p.channels_in), out(p.channels_out), x{p.x, p.dtype},
        weight{p.weight, p.dtype}, y{p.y, p.dtype}, transposed(p.transposed), streaming(p.streaming), scattered(p.scattered), cache_bytes(p.cache_bytes) {
    if (in == 1) transposed = false;            // [T, O, 1] is [T, 1, O] in memory
    if (out == 1 && in > 1) transposed = true;  // [T, C, 1] is [T, 1, C]
  }

  Pattern pattern;
  int64_t batch, in, out;
  Numbers<R, const void> x, weight;
  Numbers<R, void> y;
  bool transposed, streaming, scattered;
  int64_t cache_bytes;
};

// out[t,c,o] = sum_{e: tie[e]=t} sum_b x[b,col[e],c] * grad[b,row(e),o]
template <class R>
struct Outer {
  explicit Outer(const scisparse::EdgeOuter& p)
      : pattern(p.pattern), batch(p.batch), in(p.channels_in), out(p.channels_out), x{p.x, p.dtype}, grad{p.grad, p.dtype},
        streaming(p.streaming && x.are_reals()) {}

  Pattern pattern;
  int64_t batch, in, out;
  Numbers<R, const void> x, grad;
  bool streaming;  // results of one edge after the other go past the caches
};

// Every edge carries one number.
template <class Problem>
bool has_single_numbers(const Problem& p) {
  return p.in == 1 && p.out == 1;
}

}  // namespace
}  // namespace SCISPARSE_NAMESPACE
