// edge_outer: the outer product of the source and the site of each edge, summed over the batch.
#pragma once

#include "sinks.hpp"

namespace SCISPARSE_NAMESPACE {
namespace {

// A vector of results is P inputs times L / P outputs. Where the outputs fill vectors P is 1; few outputs, a divisor of L, are all in
// one vector with P inputs.
template <class R, int L, int P>
class OuterRows {
 public:
  using V = Vec<R, L>;
  static constexpr int O = L / P;

  OuterRows(const Outer<R>& p, Sink<R>& sink)
      : p_(p), sink_(sink), vectors_(ceil_div(p.out, O)), edges_at_once_(max_of(1, 1024 / (p.in * p.out))),
        x_(p.x, {p.batch, p.in, p.pattern.sources * p.in}, !p.x.are_reals() || p.in < P, round_up(p.in, P)),
        overlap_(p.x.are_reals() && p.in >= P), grads_(p.grad, {1, p.out, 0}), grad_(vectors_ * p.batch * L) {}

  explicit operator bool() const { return x_ && grads_ && grad_; }

  void sites(int64_t first, int64_t last) {
    const int64_t* row_ptr = p_.pattern.row_ptr;
    for (int64_t i = first; i < last; i++) {
      if (row_ptr[i] < row_ptr[i + 1]) take_site(i);
      for (int64_t e = row_ptr[i]; e < row_ptr[i + 1]; e += edges_at_once_)
        edges(e, min_of(edges_at_once_, row_ptr[i + 1] - e));
    }
    if (p_.streaming) finish_streams();
  }

 private:
  struct Unit {  // P inputs and all outputs
    const R* x;
    R* to;
    int lanes;
  };
  static constexpr int most_units = 8;

  // The gradient of site i as vectors [vectors, B], each output P times.
  void take_site(int64_t i) {
    for (int64_t b = 0; b < p_.batch; b++) {
      const R* from = grads_.read((b * p_.pattern.sites + i) * p_.out, 0);
      for (int64_t v = 0; v < vectors_; v++) {
        V g = load<L>(from + v * O, int(min_of(O, p_.out - v * O)));
        if constexpr (P > 1) g = pick<Stretch<P>>(g, g);
        store(grad_.get() + (v * p_.batch + b) * L, g);
      }
    }
  }

  SCISPARSE_INLINE void edges(int64_t first, int64_t count) {
    const int64_t per_edge = p_.in * p_.out;
    R* to = sink_.space();
    for (int64_t j = 0; j < count; j++)
      if (sink_.wants(first + j)) edge(first + j, to + j * per_edge);
    flush();
    sink_.take(first, count, per_edge);
  }

  SCISPARSE_INLINE void edge(int64_t e, R* to) {
    if (slot_ == x_.slots()) flush();
    const R* x = x_.read(at(p_.pattern.col, e) * p_.in, slot_++);
    int64_t c = 0;
    for (; c + most_units * P <= p_.in; c += most_units * P) whole(x + c, to + c * p_.out);
    for (; c < p_.in; c += P) {
      const int64_t c0 = overlap_ ? min_of(c, p_.in - P) : c;  // the last unit may repeat inputs of the one before
      unit_[units_++] = {x + c0, to + c0 * p_.out, int(min_of(P, p_.in - c0) * O)};
      if (units_ == most_units) run<most_units>();
    }
  }

  // The most units of one edge, one after the other, which need not wait.
  SCISPARSE_INLINE void whole(const R* x, R* to) {
    const int64_t pitch = x_.pitch(), apart = P * p_.out;
    for (int64_t v = 0; v < vectors_; v++) {
      const R *g = grad_.get() + v * p_.batch * L, *from = x;
      V sum[most_units] = {};
      for (int64_t b = 0; b < p_.batch; b++, from += pitch) {
        const V value = load<L>(g + b * L);
        unrolled<most_units>([&](auto u) SCISPARSE_INLINE_LAMBDA { sum[u] += value * repeat<P, V>(from + u * P); });
      }
      const int count = P > 1 ? L : int(min_of(L, p_.out - v * L));
      unrolled<most_units>([&](auto u) SCISPARSE_INLINE_LAMBDA { put(to + u * apart + v * L, sum[u], count); });
    }
  }

  // Results of one unit.
  SCISPARSE_INLINE void put(R* to, V sum, int count) {
    const V result = P > 1 ? pick<Transposed<L, O>>(sum, sum) : sum;
    store_in_line(to, result, count, p_.streaming);
  }

  // Does the units that wait, and so frees the slots of their sources.
  SCISPARSE_INLINE void flush() {
    if (units_ & 4) run<4>();
    if (units_ & 2) run<2>();
    if (units_ & 1) run<1>();
    slot_ = 0;
  }

  // The last N units that wait.
  template <int N>
  __attribute__((noinline)) void run() {
    units_ -= N;
    const Unit* unit = unit_ + units_;
    const int64_t pitch = x_.pitch();
    for (int64_t v = 0; v < vectors_; v++) {
      const R* g = grad_.get() + v * p_.batch * L;
      V sum[N] = {};
      for (int64_t b = 0; b < p_.batch; b++) {
        const V value = load<L>(g + b * L);
        unrolled<N>([&](auto u) SCISPARSE_INLINE_LAMBDA { sum[u] += value * repeat<P, V>(unit[u].x + b * pitch); });
      }
      unrolled<N>([&](auto u) SCISPARSE_INLINE_LAMBDA {
        put(unit[u].to + v * L, sum[u], P > 1 ? unit[u].lanes : int(min_of(L, p_.out - v * L)));
      });
    }
  }

  const Outer<R>& p_;
  Sink<R>& sink_;
  int64_t vectors_, edges_at_once_;
  Blocks<R> x_;
  bool overlap_;
  Blocks<R> grads_;
  Buffer<R> grad_;
  Unit unit_[most_units];
  int units_ = 0;
  int64_t slot_ = 0;
};

template <int L, int P, class R>
Status outer_rows_with(const Outer<R>& p, Sink<R>& sink, int64_t first, int64_t last) {
  OuterRows<R, L, P> kernel(p, sink);
  if (!kernel) return Status::no_memory;
  kernel.sites(first, last);
  return Status::ok;
}

// All outputs in one vector of L lanes, with as many inputs as it holds.
template <int L, int P, class R>
Status outer_rows_narrow(const Outer<R>& p, Sink<R>& sink, int64_t first, int64_t last) {
  if constexpr (P > 1)
    if (p.out * P > L) return outer_rows_narrow<L, P / 2>(p, sink, first, last);
  return outer_rows_with<L, P>(p, sink, first, last);
}

template <class R>
Status outer_rows(const Outer<R>& p, Sink<R>& sink, int64_t first, int64_t last) {
  constexpr int W = width<R>, HALF = W >= 4 ? W / 2 : W, QUARTER = HALF >= 4 ? HALF / 2 : HALF;
  const bool narrow = p.out <= W / 2 && W % p.out == 0;
  const int64_t used = narrow ? p.in * p.out : p.out;
  if (used > HALF || HALF == W)
    return narrow ? outer_rows_narrow<W, W>(p, sink, first, last) : outer_rows_with<W, 1>(p, sink, first, last);
  if (used > QUARTER || QUARTER == HALF)
    return narrow ? outer_rows_narrow<HALF, HALF>(p, sink, first, last) : outer_rows_with<HALF, 1>(p, sink, first, last);
  return narrow ? outer_rows_narrow<QUARTER, QUARTER>(p, sink, first, last)
                : outer_rows_with<QUARTER, 1>(p, sink, first, last);
}

}  // namespace
}  // namespace SCISPARSE_NAMESPACE
