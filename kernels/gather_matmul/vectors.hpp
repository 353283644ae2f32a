// gather_matmul of edges that carry a vector of weights: one output (O = 1) or one input (C = 1).
//
// A site then costs so little that the pointers of rows.hpp would take longer than the products.
#pragma once

#include "problem.hpp"

namespace SCISPARSE_NAMESPACE {
namespace {

// What both kernels do with an edge: find its source and its weights. L is the length of a vector.
template <class R, int L>
class VectorEdges {
 public:
  using V = Vec<R, L>;

  explicit VectorEdges(const Forward<R>& p)
      : pattern_(p.pattern), batch_(p.batch), in_(p.in), out_(p.out), size_(p.in * p.out), x_pitch_(p.pattern.sources * p.in),
        y_pitch_(p.pattern.sites * p.out), x_(p.x.template as<R>()), weight_(p.weight.template as<R>()), y_(p.y.template as<R>()),
        last_edge_(p.pattern.row_ptr[p.pattern.sites] - 1), streaming_(p.streaming) {}

 protected:
  // Calls edge(source, weights) for the edges of site i, with the sources of batch b. Asks for weights, which a tie may permute.
  template <class Edge>
  SCISPARSE_INLINE void row(int64_t i, int64_t b, const Edge& edge) const {
    constexpr int64_t ahead = 64;
    const R* x = x_ + b * x_pitch_;
    const int64_t end = pattern_.row_ptr[i + 1];
    for (int64_t e = pattern_.row_ptr[i]; e < end; e++) {
      if (b == 0) ask_to_read(weight_ + at(pattern_.tie, min_of(e + ahead, last_edge_)) * size_);
      edge(x + at(pattern_.col, e) * in_, weight_ + at(pattern_.tie, e) * size_);
    }
  }

  // Asks for sources of sites to come, which on a grid lie behind the last one that site i reads.
  template <int NB>
  SCISPARSE_INLINE void ask_for_sources(int64_t i, int64_t b0) const {
    constexpr int64_t ahead = 16;
    const int64_t end = pattern_.row_ptr[i + 1];
    if (end == pattern_.row_ptr[i]) return;
    const R* x = x_ + min_of(at(pattern_.col, end - 1) + ahead, pattern_.sources - 1) * in_;
    unrolled<NB>([&](auto b) SCISPARSE_INLINE_LAMBDA { ask_to_read(x + (b0 + b) * x_pitch_); });
  }

  const Pattern pattern_;
  int64_t batch_, in_, out_, size_, x_pitch_, y_pitch_;
  const R *x_, *weight_;
  R* y_;
  int64_t last_edge_;
  bool streaming_;
};

// Lanes over the inputs. The lanes of the sums of W sites are added together at the end, which makes vectors of outputs.
template <class R, int L>
class ToOne : VectorEdges<R, L> {
 public:
  using Base = VectorEdges<R, L>;
  using V = typename Base::V;
  static constexpr int W = width<R>;

  explicit ToOne(const Forward<R>& p) : Base(p), sums_(most_batches * W * L) {
    if (sums_) std::memset(sums_.get(), 0, sizeof(R) * most_batches * W * L);
  }
  explicit operator bool() const { return bool(sums_); }

  void sites(int64_t first, int64_t last) {
    for (int64_t i = first; i < last; i += W) {
      const int count = int(min_of(W, last - i));
      int64_t b = 0;
      for (; b + 8 <= this->batch_; b += 8) batches<8>(i, count, b);
      for (; b + 4 <= this->batch_; b += 4) batches<4>(i, count, b);
      for (; b < this->batch_; b++) batches<1>(i, count, b);
    }
  }

 private:
  static constexpr int most_batches = 8;

  template <int NB>
  __attribute__((noinline)) void batches(int64_t i, int count, int64_t b0) {
    for (int s = 0; s < count; s++) {
      V sum[NB] = {};
      if (this->in_ == L)
        site<NB, true>(i + s, b0, sum);
      else
        site<NB, false>(i + s, b0, sum);
      unrolled<NB>([&](auto b) SCISPARSE_INLINE_LAMBDA { store(sums_.get() + (b * W + s) * L, sum[b]); });
    }
    R* y = this->y_ + b0 * this->y_pitch_ + i;
    for (int b = 0; b < NB; b++, y += this->y_pitch_)
      for (int s = 0; s < count; s += L) {
        V sum[L];
        std::memcpy(sum, sums_.get() + (b * W + s) * L, sizeof sum);
        store_in_turn(y + s, sum_lanes(sum), int(min_of(L, count - s)), this->streaming_);
      }
  }

  template <int NB, bool ONE_VECTOR>
  SCISPARSE_INLINE void site(int64_t i, int64_t b0, V (&sum)[NB]) const {
    const int64_t pitch = this->x_pitch_, in = this->in_;
    this->template ask_for_sources<NB>(i, b0);
    this->row(i, b0, [&](const R* x, const R* w) SCISPARSE_INLINE_LAMBDA {
      int64_t c = 0;
      for (; ONE_VECTOR ? c == 0 : c + L <= in; c += L) {
        const V weight = load<L>(w + c);
        unrolled<NB>([&](auto b) SCISPARSE_INLINE_LAMBDA { sum[b] += weight * load<L>(x + b * pitch + c); });
      }
      if (ONE_VECTOR || c == in) return;
      const int rest = int(in - c);
      const V weight = load<L>(w + c, rest);
      unrolled<NB>([&](auto b) SCISPARSE_INLINE_LAMBDA { sum[b] += weight * load<L>(x + b * pitch + c, rest); });
    });
  }

  Buffer<R> sums_;
};

// Lanes over the outputs.
template <class R, int L>
class FromOne : VectorEdges<R, L> {
 public:
  using Base = VectorEdges<R, L>;
  using V = typename Base::V;
  using Base::Base;

  void sites(int64_t first, int64_t last) {
    for (int64_t i = first; i < last; i++) {
      int64_t b = 0;
      for (; b + 8 <= this->batch_; b += 8) batches<8>(i, b);
      for (; b + 4 <= this->batch_; b += 4) batches<4>(i, b);
      for (; b < this->batch_; b++) batches<1>(i, b);
    }
  }

 private:
  template <int NB>
  __attribute__((noinline)) void batches(int64_t i, int64_t b0) {
    const int64_t whole = this->out_ / L * L;
    for (int64_t o = 0; o < whole; o += L) columns<NB, true>(i, b0, o, L);
    if (whole < this->out_) columns<NB, false>(i, b0, whole, int(this->out_ - whole));
  }

  // `count` outputs of site i from o on, L if they are a whole vector.
  template <int NB, bool WHOLE>
  SCISPARSE_INLINE void columns(int64_t i, int64_t b0, int64_t o, int count) {
    const int64_t pitch = this->x_pitch_;
    V sum[NB] = {};
    if (o == 0) this->template ask_for_sources<NB>(i, b0);
    this->row(i, b0, [&](const R* x, const R* w) SCISPARSE_INLINE_LAMBDA {
      const V weight = WHOLE ? load<L>(w + o) : load<L>(w + o, count);
      unrolled<NB>([&](auto b) SCISPARSE_INLINE_LAMBDA { sum[b] += splat<V>(x[b * pitch]) * weight; });
    });
    R* y = this->y_ + b0 * this->y_pitch_ + i * this->out_ + o;
    unrolled<NB>([&](auto b) SCISPARSE_INLINE_LAMBDA { store_in_turn(y + b * this->y_pitch_, sum[b], count, this->streaming_); });
  }
};

// Edges carry vectors of reals.
template <class R>
bool has_vectors(const Forward<R>& p) {
  return (p.in == 1 || p.out == 1) && p.x.are_reals();
}

template <class R, int L>
Status vectors_of(const Forward<R>& p, int64_t first, int64_t last) {
  if (p.out == 1) {
    ToOne<R, L> kernel(p);
    if (!kernel) return Status::no_memory;
    kernel.sites(first, last);
  } else {
    FromOne<R, L>(p).sites(first, last);
  }
  finish_streams();
  return Status::ok;
}

template <class R>
Status vectors(const Forward<R>& p, int64_t first, int64_t last) {
  constexpr int W = width<R>, HALF = W >= 4 ? W / 2 : W;
  return p.in * p.out <= HALF ? vectors_of<R, HALF>(p, first, last) : vectors_of<R, W>(p, first, last);
}

}  // namespace
}  // namespace SCISPARSE_NAMESPACE
