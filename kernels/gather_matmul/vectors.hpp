// gather_matmul of edges that carry a vector of weights: one output (O = 1) or one input (C = 1).
//
// A site then costs so little that the pointers of rows.hpp would take longer than the products.
#pragma once

#include "problem.hpp"

namespace SCISPARSE_NAMESPACE {
namespace {

// What both kernels do with an edge: find its source and its weights. Numbers are stored as T; L is the length of a vector.
template <class T, int L>
struct VectorEdges {
  using R = Real<T>;
  using V = Vec<R, L>;

  explicit VectorEdges(const Forward<R>& p)
      : pattern_(p.pattern), batch_(p.batch), in_(p.in), out_(p.out), size_(p.in * p.out), x_pitch_(p.pattern.sources * p.in),
        y_pitch_(p.pattern.sites * p.out), x_(p.x.template as<T>()), weight_(p.weight.template as<T>()), y_(p.y.template as<T>()),
        last_edge_(p.pattern.row_ptr[p.pattern.sites] - 1), streaming_(p.streaming) {}

  // Calls edge(source, weights) for the edges of site i, with the sources of batch b.
  template <class Edge>
  SCISPARSE_INLINE void row(int64_t i, int64_t b, const Edge& edge) const {
    const T* x = x_ + b * x_pitch_;
    const int64_t end = pattern_.row_ptr[i + 1];
    for (int64_t e = pattern_.row_ptr[i]; e < end; e++) {
      if (b == 0) ask_for_weight(e);
      edge(x + at(pattern_.col, e) * in_, weight_ + at(pattern_.tie, e) * size_);
    }
  }

  // Asks for the weights of an edge to come, which a tie may permute.
  SCISPARSE_INLINE void ask_for_weight(int64_t e) const {
    constexpr int64_t ahead = 64;
    ask_to_read(weight_ + at(pattern_.tie, min_of(e + ahead, last_edge_)) * size_);
  }

  // Asks for as many weights as edges [first, end) have, some way ahead of them; weights are in order.
  SCISPARSE_INLINE void ask_for_weights(int64_t first, int64_t end) const {
    constexpr int64_t ahead = 4096 / int64_t(sizeof(T)), line = 64 / int64_t(sizeof(T));
    const int64_t last = min_of(end * size_ + ahead, (last_edge_ + 1) * size_);
    for (int64_t k = first * size_ + ahead; k < last; k += line) ask_to_read(weight_ + k);
  }

  // Calls run(source, weights, numbers) for the runs of edges of site i whose sources and weights follow each other in memory, with
  // the sources of batches b0 to b0 + NB. `col` are the indices of all edges.
  template <int NB, class Col, class Run>
  SCISPARSE_INLINE void runs(int64_t i, int64_t b0, const Col& col, const Run& run) const {
    const int64_t first = pattern_.row_ptr[i], end = pattern_.row_ptr[i + 1];
    const bool in_order = pattern_.tie.bits == 0;
    if (first == end) return;
    ask_for_sources<NB>(int64_t(col[end - 1]), b0);
    if (b0 == 0 && in_order) ask_for_weights(first, end);
    for (int64_t e = first; e < end;) {
      int64_t next = e + 1;
      if (in_order)
        while (next < end && col[next] == col[next - 1] + 1) next++;
      else if (b0 == 0)
        ask_for_weight(e);
      run(x_ + b0 * x_pitch_ + int64_t(col[e]) * in_, weight_ + at(pattern_.tie, e) * size_, (next - e) * size_);
      e = next;
    }
  }

  // Asks for sources of sites to come, which on a grid lie behind `source`, the last one that a site reads.
  template <int NB>
  SCISPARSE_INLINE void ask_for_sources(int64_t source, int64_t b0) const {
    constexpr int64_t ahead = 16;
    const T* x = x_ + min_of(source + ahead, pattern_.sources - 1) * in_;
    unrolled<NB>([&](auto b) SCISPARSE_INLINE_LAMBDA { ask_to_read(x + (b0 + b) * x_pitch_); });
  }

  const Pattern pattern_;
  int64_t batch_, in_, out_, size_, x_pitch_, y_pitch_;
  const T *x_, *weight_;
  T* y_;
  int64_t last_edge_;
  bool streaming_;
};

// Lanes over the inputs. The lanes of the sums of W sites are added together at the end, which makes vectors of outputs.
template <class T, int L>
class ToOne : VectorEdges<T, L> {
 public:
  using Base = VectorEdges<T, L>;
  using R = typename Base::R;
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
    R* const sums = sums_.get();
    const Base edges = *this;  // in registers: stores might change what `this` points to
    with_indices(edges.pattern_.col, 0, [&](const auto& col) SCISPARSE_INLINE_LAMBDA {
      for (int s = 0; s < count; s++) {
        V sum[NB] = {};
        site<NB>(edges, i + s, b0, col, sum);
        unrolled<NB>([&](auto b) SCISPARSE_INLINE_LAMBDA { store(sums + (b * W + s) * L, sum[b]); });
      }
    });
    T* y = this->y_ + b0 * this->y_pitch_ + i;
    const int64_t pitch = this->y_pitch_;
    const bool streaming = this->streaming_;
    for (int b = 0; b < NB; b++, y += pitch)
      for (int s = 0; s < count; s += L) {
        V sum[L];
        unrolled<L>([&](auto k) SCISPARSE_INLINE_LAMBDA { sum[k] = load<L>(sums + (b * W + s + k) * L); });
        store_in_turn(y + s, sum_square(sum), int(min_of(L, count - s)), streaming);
      }
  }

  template <int NB, class Col>
  static SCISPARSE_INLINE void site(const Base& edges, int64_t i, int64_t b0, const Col& col, V (&sum)[NB]) {
    const int64_t pitch = edges.x_pitch_;
    edges.template runs<NB>(i, b0, col, [&](const T* x, const T* w, int64_t size) SCISPARSE_INLINE_LAMBDA {
      int64_t c = 0;
      for (; c + L <= size; c += L) {
        const V weight = load<L>(w + c);
        unrolled<NB>([&](auto b) SCISPARSE_INLINE_LAMBDA { sum[b] += weight * load<L>(x + b * pitch + c); });
      }
      if (c == size) return;
      const int rest = int(size - c);
      const V weight = load<L>(w + c, rest);
      unrolled<NB>([&](auto b) SCISPARSE_INLINE_LAMBDA { sum[b] += weight * load<L>(x + b * pitch + c, rest); });
    });
  }

  Buffer<R> sums_;
};

// Lanes over the outputs.
template <class T, int L>
class FromOne : VectorEdges<T, L> {
 public:
  using Base = VectorEdges<T, L>;
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
    const int64_t end = this->pattern_.row_ptr[i + 1];
    if (o == 0 && end > this->pattern_.row_ptr[i]) this->template ask_for_sources<NB>(at(this->pattern_.col, end - 1), b0);
    this->row(i, b0, [&](const T* x, const T* w) SCISPARSE_INLINE_LAMBDA {
      const V weight = WHOLE ? load<L>(w + o) : load<L>(w + o, count);
      unrolled<NB>([&](auto b) SCISPARSE_INLINE_LAMBDA { sum[b] += splat<V>(widen_one(x[b * pitch])) * weight; });
    });
    T* y = this->y_ + b0 * this->y_pitch_ + i * this->out_ + o;
    unrolled<NB>([&](auto b) SCISPARSE_INLINE_LAMBDA { store_in_turn(y + b * this->y_pitch_, sum[b], count, this->streaming_); });
  }
};

// Edges carry vectors of weights.
template <class R>
bool has_vectors(const Forward<R>& p) {
  return p.in == 1 || p.out == 1;
}

template <class T, int L>
Status vectors_of(const Forward<Real<T>>& p, int64_t first, int64_t last) {
  if (p.out == 1) {
    ToOne<T, L> kernel(p);
    if (!kernel) return Status::no_memory;
    kernel.sites(first, last);
  } else {
    FromOne<T, L>(p).sites(first, last);
  }
  finish_streams();
  return Status::ok;
}

template <class R>
Status vectors(const Forward<R>& p, int64_t first, int64_t last) {
  constexpr int W = width<R>, HALF = W >= 4 ? W / 2 : W;
  return with_type<R>(p.x.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    return p.in * p.out <= HALF ? vectors_of<T, HALF>(p, first, last) : vectors_of<T, W>(p, first, last);
  });
}

}  // namespace
}  // namespace SCISPARSE_NAMESPACE
