// Rows that follow each other and read much of the same, as windows do: what all of them read is loaded once.
#pragma once

#include "problem.hpp"

namespace SCISPARSE_NAMESPACE {
namespace {

using scisparse::block_rows;

// Head h of batch entry b at row i, or at the rows of a block from i on.
struct Place {
  int64_t b, i, h;
  SCISPARSE_INLINE Place operator+(int64_t heads) const { return {b, i, h + heads}; }
};

// to[r][j] = sum_d x[r][d] * rows[index[j]][d] for all rows r of a block and j < count, and on to the end of a group.
template <class T, class R = Real<T>>
__attribute__((noinline)) void block_dots(const T* const (&x)[block_rows], const Array<T>& rows, const int64_t* index, int64_t count,
                                          int64_t size, BlockOf<R> to) {
  constexpr int L = width<R>, N = block_rows, KEYS = L > N ? L / N : 1;
  using V = Vec<R, L>;
  for (int64_t j = 0; j < count; j += KEYS) {
    const T* row[KEYS];
    V sum[N * KEYS] = {};
    unrolled<KEYS>([&](auto u) SCISPARSE_INLINE_LAMBDA { row[u] = rows[index[j + u]]; });
    const auto step = [&](int64_t d, int n) SCISPARSE_INLINE_LAMBDA {
      V key[KEYS];
      unrolled<KEYS>([&](auto u) SCISPARSE_INLINE_LAMBDA { key[u] = load<L>(row[u] + d, n); });
      unrolled<N>([&](auto r) SCISPARSE_INLINE_LAMBDA {
        const V value = load<L>(x[r] + d, n);
        unrolled<KEYS>([&](auto u) SCISPARSE_INLINE_LAMBDA { sum[r * KEYS + u] += value * key[u]; });
      });
    };
    int64_t d = 0;
    for (; d + L <= size; d += L) step(d, L);
    if (d < size) step(d, int(size - d));
    R total[N * KEYS];
    unrolled<N * KEYS / L>([&](auto g) SCISPARSE_INLINE_LAMBDA {
      V part[L];
      unrolled<L>([&](auto l) SCISPARSE_INLINE_LAMBDA { part[l] = sum[g * L + l]; });
      store(total + g * L, sum_square(part));
    });
    for (int r = 0; r < N; r++) std::memcpy(to[r] + j, total + r * KEYS, KEYS * sizeof(R));
  }
}

// to[r][d] = sum_j value[r][j] * rows[index[j]][d] for VECTORS vectors from d on, the last of which has `rest` numbers.
template <int VECTORS, bool WHOLE, class T, class R = Real<T>>
SCISPARSE_INLINE void block_sums_of(BlockOf<R> value, const Array<T>& rows, const int64_t* index, int64_t count, int64_t d, int rest,
                                    BlockOf<R> to) {
  constexpr int L = width<R>, N = block_rows, SUMS = SCISPARSE_ISA == 3 ? 16 : 8, EDGES = SUMS / (N * VECTORS);
  using V = Vec<R, L>;
  V sum[EDGES][N][VECTORS] = {};
  const auto edge = [&](int64_t j, auto u) SCISPARSE_INLINE_LAMBDA {
    const T* row = rows[index[j]] + d;
    V part[VECTORS];
    unrolled<VECTORS>([&](auto n) SCISPARSE_INLINE_LAMBDA { part[n] = WHOLE ? load<L>(row + n * L) : load<L>(row + n * L, rest); });
    unrolled<N>([&](auto r) SCISPARSE_INLINE_LAMBDA {
      const V weight = splat<V>(value[r][j]);
      unrolled<VECTORS>([&](auto n) SCISPARSE_INLINE_LAMBDA { sum[u][r][n] += weight * part[n]; });
    });
  };
  int64_t j = 0;
  for (; j + EDGES <= count; j += EDGES) unrolled<EDGES>([&](auto u) SCISPARSE_INLINE_LAMBDA { edge(j + u, u); });
  for (; j < count; j++) edge(j, std::integral_constant<int, 0>());
  unrolled<N>([&](auto r) SCISPARSE_INLINE_LAMBDA {
    unrolled<VECTORS>([&](auto n) SCISPARSE_INLINE_LAMBDA {
      V total = sum[0][r][n];
      for (int u = 1; u < EDGES; u++) total += sum[u][r][n];
      store(to[r] + d + n * L, total, WHOLE ? L : rest);
    });
  });
}

template <int VECTORS, class T, class R = Real<T>>
SCISPARSE_INLINE int64_t block_sums_from(int64_t d, BlockOf<R> value, const Array<T>& rows, const int64_t* index, int64_t count,
                                         int64_t size, BlockOf<R> to) {
  constexpr int L = width<R>;
  for (; d + VECTORS * L <= size; d += VECTORS * L) block_sums_of<VECTORS, true>(value, rows, index, count, d, L, to);
  if constexpr (VECTORS > 1) d = block_sums_from<VECTORS / 2>(d, value, rows, index, count, size, to);
  return d;
}

// to[r][d] = sum_j value[r][j] * rows[index[j]][d] for all rows r of a block and d < size
template <class T, class R = Real<T>>
__attribute__((noinline)) void block_sums(BlockOf<R> value, const Array<T>& rows, const int64_t* index, int64_t count, int64_t size,
                                          BlockOf<R> to) {
  constexpr int most = (SCISPARSE_ISA == 3 ? 16 : 8) / block_rows;
  const int64_t d = block_sums_from<most>(0, value, rows, index, count, size, to);
  if (d < size) block_sums_of<1, false>(value, rows, index, count, d, int(size - d), to);
}

// Up to `block_rows` rows. In a whole block, the sources that all rows read come first in each of them, in the same order.
class RowBlock {
 public:
  RowBlock(const scisparse_edges& edges, const Span& span)
      : row_{{edges, span}, {edges, span}, {edges, span}, {edges, span}}, common_(room()), single_(span.at_once == 1) {
    static_assert(block_rows == 4, "as many rows as there are above");
  }
  explicit operator bool() const { return row_[0] && row_[1] && row_[2] && row_[3] && common_; }

  const Row& operator[](int64_t r) const { return row_[r]; }
  int64_t room() const { return row_[0].room(); }
  int64_t size() const { return size_; }

  // Rows [i, i + size).
  void read(int64_t i, int64_t size) {
    constexpr int64_t least = 64;  // shared sources that pay for the search for them
    size_ = size;
    shared_ = 0;
    for (int64_t r = 0; r < size; r++) row_[r].read(i + r);
    if (size < block_rows || row_[0].count() < least) return;
    int64_t* common = common_.get();
    int64_t count = intersection(row_[0].sources(), row_[0].count(), row_[1], common);
    for (int r = 2; r < block_rows; r++) count = intersection(common, count, row_[r], common);
    if (count < least) return;
    for (Row& row : row_) row.put_first(common, count);
    shared_ = count;
  }

  // Asks for what row i reads of x; rows of blocks share what is in the cache.
  template <class T>
  SCISPARSE_INLINE void ask(int64_t i, const Heads<T>& x, int64_t b) const {
    if (single_) row_[0].ask(i, x, b);
  }

  template <class T>
  SCISPARSE_INLINE void ask_places(int64_t i, const Heads<T>& x, int64_t b) const {
    if (single_) row_[0].ask_places(i, x, b);
  }

  // to[r][j] = x[row r] . rows[source j of row r], with x of the rows from at.i on
  template <class T, class R = Real<T>>
  SCISPARSE_INLINE void dots(Place at, const Heads<T>& x, const Array<T>& rows, BlockOf<R> to) const {
    const T* of_row[block_rows] = {};
    for (int64_t r = 0; r < size_; r++) of_row[r] = x.at(at.b, at.i + r, at.h);
    if (shared_) block_dots(of_row, rows, row_[0].sources(), shared_, x.size, to);
    for (int64_t r = 0; r < size_; r++)
      SCISPARSE_NAMESPACE::dots(of_row[r], rows, row_[r].sources() + shared_, row_[r].count() - shared_, x.size, to[r] + shared_);
  }

  // to[r] = the sum of value[r][j] * rows[source j of row r]
  template <class T, class R = Real<T>>
  SCISPARSE_INLINE void sums(BlockOf<R> value, const Array<T>& rows, int64_t width, BlockOf<R> to) const {
    if (shared_) block_sums(value, rows, row_[0].sources(), shared_, width, to);
    for (int64_t r = 0; r < size_; r++)
      SCISPARSE_NAMESPACE::sums(value[r] + shared_, rows, row_[r].sources() + shared_, row_[r].count() - shared_, width, to[r], shared_ > 0);
  }

 private:
  // Numbers that a list and the sources of a row have in common; both rise. `to` may be the list.
  static int64_t intersection(const int64_t* list, int64_t size, const Row& row, int64_t* to) {
    const int64_t* sources = row.sources();
    int64_t count = 0;
    for (int64_t k = 0, j = 0; k < size && j < row.count();) {
      if (list[k] == sources[j])
        to[count++] = list[k], k++, j++;
      else
        list[k] < sources[j] ? k++ : j++;
    }
    return count;
  }

  Row row_[block_rows];
  Buffer<int64_t> common_;
  const bool single_;
  int64_t size_ = 0, shared_ = 0;
};

}  // namespace
}  // namespace SCISPARSE_NAMESPACE
