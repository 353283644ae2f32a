// The largest or smallest product of a row, for each number of a site by itself, and what is linear once the choice is made.
//
// With k the edge that number d of head h of site i has chosen, f = sum value[k] * site[i,d] * source[col[k],d] is linear in all
// three: each kernel below is its derivative by one of them. Numbers of other edges are left out, not multiplied by 0.
#pragma once

#include "problem.hpp"

namespace SCISPARSE_NAMESPACE {
namespace {

// Numbers that edges carry: `edge`, `batch` and `head` are steps between them, 0 where they are shared.
template <class R>
struct EdgeNumbers {
  const void* data;
  int64_t batch, edge, head;

  // Those of a row, in turn.
  SCISPARSE_INLINE void read(int64_t b, int64_t h, const Row& row, R* to) const {
    const R* from = static_cast<const R*>(data) + b * batch + h * head;
    const int64_t* place = row.places();
    for (int64_t j = 0; j < row.count(); j++) to[j] = from[place[j] * edge];
  }
};

template <class R>
EdgeNumbers<R> numbers_of(const scisparse_choice& p) {
  return {p.value, p.value_batch, p.value_edge, p.value_head};
}

// Whole numbers as wide as R, so that one comparison serves both.
template <class R>
using Whole = std::conditional_t<sizeof(R) == 8, int64_t, int32_t>;
template <class R>
using Wholes = Vec<Whole<R>, width<R>>;

// Choices are int32 in memory.
template <class R>
SCISPARSE_INLINE Wholes<R> load_choice(const int32_t* p, int n) {
  constexpr int L = width<R>;
  using U = Vec<uint32_t, L>;
  U bits;
  if (n == L)
    std::memcpy(&bits, p, sizeof bits);
  else
    bits = load_bits<uint32_t, L>(p, n);
  return __builtin_convertvector(bit_cast<Vec<int32_t, L>>(bits), Wholes<R>);
}

template <class R>
SCISPARSE_INLINE void store_choice(int32_t* p, Wholes<R> v, int n) {
  const auto bits = __builtin_convertvector(v, Vec<int32_t, width<R>>);
  if (n == width<R>)
    std::memcpy(p, &bits, sizeof bits);
  else
    store_bits(p, bits, n);
}

// Calls f(N, d, n) for N vectors from d on until all of `size` are done; n is less than a vector in the last call alone.
template <int N, class R, class F>
SCISPARSE_INLINE void in_vectors(int64_t d, int64_t size, const F& f) {
  constexpr int L = width<R>;
  for (; d + N * L <= size; d += N * L) f(std::integral_constant<int, N>(), d, std::integral_constant<int, L>());
  if constexpr (N > 1)
    in_vectors<N / 2, R>(d, size, f);
  else if (d < size)
    f(std::integral_constant<int, 1>(), d, int(size - d));
}

template <class T>
struct Choose {
  using R = Real<T>;

  static Status run(const scisparse_choice& p, int64_t first, int64_t last) {
    const Heads<T> x{p.sources, p.edges.sources, p.heads, p.width};
    Row row(p.edges, {first, last, 1});
    Buffer<R> value(row.room());
    if (!row || !value) return Status::no_memory;
    for (int64_t b = 0; b < p.batch; b++)
      for (int64_t i = first; i < last; i++) {
        row.read(i);
        for (int64_t h = 0; h < p.heads; h++) {
          numbers_of<R>(p).read(b, h, row, value.get());
          const int64_t place = ((b * p.edges.sites + i) * p.heads + h) * p.width;
          T* y = static_cast<T*>(p.sites) + place;
          int32_t* choice = p.choice + place;
          if (p.smallest)
            head<true>(value.get(), x.head(b, h), row, p.width, y, choice);
          else
            head<false>(value.get(), x.head(b, h), row, p.width, y, choice);
        }
      }
    return Status::ok;
  }

 private:
  template <bool SMALLEST>
  static __attribute__((noinline)) void head(const R* value, const Array<T>& rows, const Row& row, int64_t size, T* y, int32_t* choice) {
    constexpr int L = width<R>;
    const int64_t count = row.count(), *index = row.sources();
    in_vectors<4, R>(0, size, [&](auto vectors, int64_t d, auto n) SCISPARSE_INLINE_LAMBDA {
      constexpr int N = vectors;
      Vec<R, L> best[N] = {};
      Wholes<R> chosen[N];
      const auto term = [&](int64_t j, int v) SCISPARSE_INLINE_LAMBDA {
        return splat<Vec<R, L>>(value[j]) * load<L>(rows[index[j]] + d + v * L, n);
      };
      unrolled<N>([&](auto v) SCISPARSE_INLINE_LAMBDA {
        if (count) best[v] = term(0, v);
        chosen[v] = splat<Wholes<R>>(count ? 0 : -1);
      });
      for (int64_t j = 1; j < count; j++)
        unrolled<N>([&](auto v) SCISPARSE_INLINE_LAMBDA {
          const auto t = term(j, v);
          // Also where t is NaN, if it is the first.
          const auto better = ~(SMALLEST ? t >= best[v] : t <= best[v]) & (best[v] == best[v]);
          best[v] = better ? t : best[v];
          chosen[v] = better ? splat<Wholes<R>>(Whole<R>(j)) : chosen[v];
        });
      unrolled<N>([&](auto v) SCISPARSE_INLINE_LAMBDA {
        store(y + d + v * L, best[v], n);
        store_choice<R>(choice + d + v * L, chosen[v], n);
      });
    });
  }
};

template <class T>
struct ChoiceSources {
  using R = Real<T>;

  static Status run(const scisparse_choice& p, int64_t first, int64_t last) {
    const int64_t sites = p.edges.sites;
    const Heads<T> y{p.sites, sites, p.heads, p.width};
    const Heads<int32_t> choices{p.choice, sites, p.heads, p.width};
    Row row(p.transposed, {first, last, 1});
    Buffer<R> value(row.room());
    Buffer<Whole<R>> place(row.room());
    if (!row || !value || !place) return Status::no_memory;
    for (int64_t b = 0; b < p.batch; b++)
      for (int64_t j = first; j < last; j++) {
        row.read(j);
        for (int64_t e = 0; e < row.count(); e++) place.get()[e] = Whole<R>(row.places()[e] - p.edges.row_ptr[row.sources()[e]]);
        for (int64_t h = 0; h < p.heads; h++) {
          numbers_of<R>(p).read(b, h, row, value.get());
          T* to = static_cast<T*>(p.sources) + ((b * p.transposed.sites + j) * p.heads + h) * p.width;
          head(value.get(), place.get(), y.head(b, h), choices.head(b, h), row, p.width, to);
        }
      }
    return Status::ok;
  }

 private:
  static __attribute__((noinline)) void head(const R* value, const Whole<R>* place, const Array<T>& rows, const Array<int32_t>& choices,
                                             const Row& row, int64_t size, T* to) {
    constexpr int L = width<R>;
    const int64_t count = row.count(), *index = row.sources();
    in_vectors<4, R>(0, size, [&](auto vectors, int64_t d, auto n) SCISPARSE_INLINE_LAMBDA {
      using V = Vec<R, L>;
      constexpr int N = vectors;
      V sum[N] = {};
      for (int64_t e = 0; e < count; e++) {
        const V weight = splat<V>(value[e]);
        const auto here = splat<Wholes<R>>(place[e]);
        const T* from = rows[index[e]] + d;
        const int32_t* choice = choices[index[e]] + d;
        unrolled<N>([&](auto v) SCISPARSE_INLINE_LAMBDA {
          const auto chosen = load_choice<R>(choice + v * L, n) == here;
          sum[v] += chosen ? weight * load<L>(from + v * L, n) : V{};
        });
      }
      unrolled<N>([&](auto v) SCISPARSE_INLINE_LAMBDA { store(to + d + v * L, sum[v], n); });
    });
  }
};

template <class T>
struct ChoiceEdges {
  using R = Real<T>;

  static Status run(const scisparse_choice& p, int64_t first, int64_t last) {
    const Heads<T> y{p.sites, p.edges.sites, p.heads, p.width}, x{p.sources, p.edges.sources, p.heads, p.width};
    const Heads<int32_t> choices{p.choice, p.edges.sites, p.heads, p.width};
    Row row(p.edges, {first, last, 1});
    Buffer<R> value(row.room());
    if (!row || !value) return Status::no_memory;
    for (int64_t b = 0; b < p.batch; b++)
      for (int64_t i = first; i < last; i++) {
        row.read(i);
        for (int64_t h = 0; h < p.heads; h++) {
          head(y.at(b, i, h), choices.at(b, i, h), x.head(b, h), row, p.width, value.get());
          R* to = reals<R>(p.value) + b * p.value_batch + h * p.value_head;
          for (int64_t j = 0; j < row.count(); j++) to[row.places()[j] * p.value_edge] = value.get()[j];
        }
      }
    return Status::ok;
  }

 private:
  static __attribute__((noinline)) void head(const T* y, const int32_t* choice, const Array<T>& rows, const Row& row, int64_t size, R* to) {
    constexpr int L = width<R>, N = group<R>;
    using V = Vec<R, L>;
    const int64_t* index = row.sources();
    for (int64_t j = 0; j < row.count(); j += N) {
      V sum[N] = {};
      in_vectors<1, R>(0, size, [&](auto, int64_t d, auto n) SCISPARSE_INLINE_LAMBDA {
        const V value = load<L>(y + d, n);
        const auto chosen = load_choice<R>(choice + d, n);
        unrolled<N>([&](auto u) SCISPARSE_INLINE_LAMBDA {
          const auto here = chosen == splat<Wholes<R>>(Whole<R>(j + u));
          sum[u] += here ? value * load<L>(rows[index[j + u]] + d, n) : V{};
        });
      });
      store(to + j, sum_lanes(sum), N);
    }
  }
};

}  // namespace
}  // namespace SCISPARSE_NAMESPACE
