// Softmax over the edges of each site, and its derivative.
//
// The numbers of a row, [edges, heads], are one run of memory: lane l of its vector at k belongs to head (k + l) % heads. So a row
// goes through whole vectors for any number of heads, and what belongs to a head is kept for as many lanes as the heads take to
// come round to the first lane again.
#pragma once

#include "problem.hpp"

namespace SCISPARSE_NAMESPACE {
namespace {

// A number for each head, in one vector: where the heads divide its lanes.
template <class R>
class FewHeads {
 public:
  static constexpr int L = width<R>;
  using V = Vec<R, L>;

  static int64_t room(int64_t) { return 0; }
  FewHeads(int64_t heads, R*) : heads_(heads) {}
  int64_t vectors() const { return 1; }
  SCISPARSE_INLINE V get(int64_t) const { return vector_; }
  SCISPARSE_INLINE void set(int64_t, V v) { vector_ = v; }

  // Joins the numbers of each head; all of its lanes hold the result.
  template <class Op>
  SCISPARSE_INLINE void fold(const Op& op) {
    unrolled<log2_of(L)>([&](auto step) SCISPARSE_INLINE_LAMBDA {
      constexpr int half = L >> (step + 1);
      if (half >= heads_) vector_ = op(vector_, pick<Rotated<half>>(vector_, vector_));
    });
  }

 private:
  template <int BY>
  struct Rotated {
    static constexpr int at(int l) { return (l + BY) % L; }
  };

  int64_t heads_;
  V vector_ = {};
};

// The same for any number of heads, in memory.
template <class R>
class ManyHeads {
 public:
  static constexpr int L = width<R>;
  using V = Vec<R, L>;

  // The least common multiple of heads and lanes, heads times a power of two, and a vector behind it.
  static int64_t room(int64_t heads) { return period(heads) + L; }
  ManyHeads(int64_t heads, R* numbers) : heads_(heads), period_(period(heads)), numbers_(numbers) {}
  int64_t vectors() const { return period_ / L; }
  SCISPARSE_INLINE V get(int64_t k) const { return load<L>(numbers_ + k * L); }
  SCISPARSE_INLINE void set(int64_t k, V v) { store(numbers_ + k * L, v); }

  template <class Op>
  SCISPARSE_INLINE void fold(const Op& op) {
    // Whole vectors: what they write past their end is not read again, or is written again.
    for (int64_t half = period_ / 2; half >= heads_; half /= 2)
      for (int64_t k = 0; k < half; k += L) store(numbers_ + k, op(load<L>(numbers_ + k), load<L>(numbers_ + k + half)));
    for (int64_t done = heads_; done < period_; done *= 2)
      for (int64_t k = 0; k < done; k += L) store(numbers_ + done + k, load<L>(numbers_ + k));
  }

 private:
  static int64_t period(int64_t heads) {
    int64_t period = heads;
    while (period % L) period *= 2;
    return period;
  }

  int64_t heads_, period_;
  R* numbers_;
};

// The first n numbers at p, and another in the other lanes; nothing behind them is read.
template <class R>
SCISPARSE_INLINE Vec<R, width<R>> load_part(const R* p, int n, R other) {
  constexpr int L = width<R>;
  using V = Vec<R, L>;
  if (n == L) return load<L>(p);
  V place;
  for (int l = 0; l < L; l++) place[l] = R(l);
  return place < splat<V>(R(n)) ? load<L>(p, n) : splat<V>(other);
}

// Calls f(k, t, n) for the n numbers from k on, a vector at a time; heads have those at t of theirs.
template <class Numbers, class F>
SCISPARSE_INLINE void over_row(int64_t size, const Numbers& heads, const F& f) {
  constexpr int L = Numbers::L;
  for (int64_t k = 0, t = 0; k < size; k += L) {
    f(k, t, int(min_of(L, size - k)));
    t = t + 1 == heads.vectors() ? 0 : t + 1;
  }
}

template <class Numbers, class V>
SCISPARSE_INLINE void fill(Numbers& heads, V v) {
  for (int64_t t = 0; t < heads.vectors(); t++) heads.set(t, v);
}

constexpr auto sum_of_two = [](auto a, auto b) SCISPARSE_INLINE_LAMBDA { return a + b; };
constexpr auto larger_of_two = [](auto a, auto b) SCISPARSE_INLINE_LAMBDA { return a > b ? a : b; };

// to[k] = exp(score[k] - the largest of the row and head), over their sum; 0 of -infinity alone. The largest may miss a NaN, which
// the exponentials still have.
template <class R, class Numbers>
__attribute__((noinline)) void softmax_of_row(const R* score, int64_t size, Numbers most, Numbers sum, R* to) {
  constexpr int L = width<R>;
  using V = Vec<R, L>;
  constexpr R none = -R(__builtin_inf());
  fill(most, splat<V>(none));
  fill(sum, V{});
  over_row(size, most, [&](int64_t k, int64_t t, int n) SCISPARSE_INLINE_LAMBDA {
    most.set(t, larger_of_two(load_part(score + k, n, none), most.get(t)));
  });
  most.fold(larger_of_two);
  over_row(size, most, [&](int64_t k, int64_t t, int n) SCISPARSE_INLINE_LAMBDA {
    const V largest = most.get(t);
    const V e = exp_of<L>(load_part(score + k, n, none) - (largest == splat<V>(none) ? V{} : largest));
    store(to + k, e, n);
    sum.set(t, sum.get(t) + e);
  });
  sum.fold(sum_of_two);
  over_row(size, sum, [&](int64_t k, int64_t t, int n) SCISPARSE_INLINE_LAMBDA {
    const V total = sum.get(t);
    store(to + k, load<L>(to + k, n) / (total == V{} ? splat<V>(R(1)) : total), n);
  });
}

// to[k] = weight[k] * (grad[k] - the sum of weight * grad over the row and head)
template <class R, class Numbers>
__attribute__((noinline)) void softmax_slope_of_row(const R* weight, const R* grad, int64_t size, Numbers sum, R* to) {
  constexpr int L = width<R>;
  using V = Vec<R, L>;
  fill(sum, V{});
  over_row(size, sum, [&](int64_t k, int64_t t, int n) SCISPARSE_INLINE_LAMBDA {
    sum.set(t, sum.get(t) + load<L>(weight + k, n) * load<L>(grad + k, n));
  });
  sum.fold(sum_of_two);
  over_row(size, sum, [&](int64_t k, int64_t t, int n) SCISPARSE_INLINE_LAMBDA {
    store(to + k, load<L>(weight + k, n) * (load<L>(grad + k, n) - sum.get(t)), n);
  });
}

// Of scores, or of weights with their gradients if there are any.
template <class R>
struct RowSoftmax {
  static Status run(const scisparse_softmax& p, int64_t first, int64_t last) {
    if (p.heads == 0) return Status::ok;
    return width<R> % p.heads == 0 ? rows<FewHeads<R>>(p, first, last) : rows<ManyHeads<R>>(p, first, last);
  }

 private:
  template <class Numbers>
  static Status rows(const scisparse_softmax& p, int64_t first, int64_t last) {
    const int64_t room = Numbers::room(p.heads);
    Buffer<R> buffer(2 * room);
    if (!buffer) return Status::no_memory;
    const Numbers most(p.heads, buffer.get()), sum(p.heads, buffer.get() + room);
    for (int64_t b = 0; b < p.batch; b++)
      for (int64_t i = first; i < last; i++) {
        const int64_t place = (b * p.edges.count + p.edges.row_ptr[i]) * p.heads;
        const int64_t size = (p.edges.row_ptr[i + 1] - p.edges.row_ptr[i]) * p.heads;
        const R* from = static_cast<const R*>(p.from) + place;
        R* to = reals<R>(p.to) + place;
        if (p.grad)
          softmax_slope_of_row(from, static_cast<const R*>(p.grad) + place, size, sum, to);
        else
          softmax_of_row(from, size, most, sum, to);
      }
    return Status::ok;
  }
};

}  // namespace
}  // namespace SCISPARSE_NAMESPACE
