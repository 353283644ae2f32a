// Rows of edges, and numbers of one batch entry, as the kernels see them.
#pragma once

#include "products.hpp"

namespace SCISPARSE_NAMESPACE {
namespace {

using scisparse::EdgeWorkspace;
using scisparse::Span;

SCISPARSE_INLINE Indices cols_of(const scisparse_edges& edges) { return {edges.col, int(edges.col_bits)}; }
SCISPARSE_INLINE Indices ties_of(const scisparse_edges& edges) { return {edges.tie, edges.tie ? int(edges.tie_bits) : 0}; }

// The longest of some rows, in whole vectors of any type.
int64_t most_edges(const scisparse_edges& edges, const Span& span) {
  int64_t most = 0;
  for (int64_t i = span.first; i < span.last; i++) most = max_of(most, edges.row_ptr[i + 1] - edges.row_ptr[i]);
  return round_up(most, 16);
}

// Numbers [rows, heads, size] of one batch entry.
template <class T>
struct Heads {
  const void* data;
  int64_t rows, heads, size;

  SCISPARSE_INLINE int64_t number(int64_t b, int64_t i, int64_t h) const { return ((b * rows + i) * heads + h) * size; }
  SCISPARSE_INLINE const T* at(int64_t b, int64_t i, int64_t h) const { return static_cast<const T*>(data) + number(b, i, h); }
  // Head h of all rows of batch entry b.
  SCISPARSE_INLINE Array<T> head(int64_t b, int64_t h) const { return {at(b, 0, h), heads * size}; }
};

// The edges of one row: where they begin, how many, what they read, and where arrays of edges have them.
class Row {
 public:
  Row(const scisparse_edges& edges, const Span& span)
      : edges_(edges), room_(most_edges(edges, span) + 16), index_(4 * room_) {}
  explicit operator bool() const { return bool(index_); }

  void read(int64_t i) {
    first_ = edges_.row_ptr[i];
    count_ = edges_.row_ptr[i + 1] - first_;
    read(cols_of(edges_), index_.get());
    read(ties_of(edges_), index_.get() + room_);
  }

  // Moves the edges to some sources, which come in the same order among those of the row, in front of the others.
  void put_first(const int64_t* chosen, int64_t size) {
    int64_t *source = index_.get(), *place = source + room_, *other = place + room_, *other_place = other + room_, first = 0, others = 0;
    for (int64_t j = 0; j < count_; j++) {
      const bool is_chosen = first < size && source[j] == chosen[first];
      (is_chosen ? source[first] : other[others]) = source[j];
      (is_chosen ? place[first++] : other_place[others++]) = place[j];
    }
    std::memcpy(source + first, other, size_t(others) * sizeof *source);
    std::memcpy(place + first, other_place, size_t(others) * sizeof *place);
    repeat_last(source);
    repeat_last(place);
  }

  // Asks for what the sources of row i hold, which lies anywhere: loads alone wait in turns. What would fill the cache is left.
  template <class T>
  SCISPARSE_INLINE void ask(int64_t i, const Heads<T>& x, int64_t b) const {
    ask(i, cols_of(edges_), x, b);
  }
  // The same for what arrays of edges hold.
  template <class T>
  SCISPARSE_INLINE void ask_places(int64_t i, const Heads<T>& x, int64_t b) const {
    ask(i, ties_of(edges_), x, b);
  }

  int64_t count() const { return count_; }
  int64_t room() const { return room_; }  // numbers that the products of a row may write
  const int64_t* sources() const { return index_.get(); }
  const int64_t* places() const { return index_.get() + room_; }

 private:
  template <class T>
  SCISPARSE_INLINE void ask(int64_t i, const Indices& indices, const Heads<T>& x, int64_t b) const {
    constexpr int64_t line = 64, most = 16 << 10;
    if (i >= edges_.sites) return;
    const int64_t first = edges_.row_ptr[i], last = edges_.row_ptr[i + 1], bytes = x.heads * x.size * int64_t(sizeof(T));
    if ((last - first) * bytes > most) return;
    for (int64_t e = first; e < last; e++) {
      const char* from = reinterpret_cast<const char*>(x.at(b, at(indices, e), 0));
      for (int64_t byte = 0; byte < bytes; byte += line) ask_to_read_now(from + byte);
    }
  }

  void read(const Indices& indices, int64_t* to) const {
    with_indices(indices, first_, [&](const auto& index) {
      for (int64_t j = 0; j < count_; j++) to[j] = index[j];
    });
    repeat_last(to);
  }

  // Products go on to the end of a group, wherever it begins.
  void repeat_last(int64_t* index) const {
    for (int64_t j = count_; count_ && j < count_ + 8; j++) index[j] = index[count_ - 1];
  }

  const scisparse_edges& edges_;
  int64_t room_, first_ = 0, count_ = 0;
  Buffer<int64_t> index_;
};

// Where sums of `size` numbers go for some rows and one of `heads` heads, of which the first has the number `first` in the output: there
// at once if its numbers are as wide, else through a buffer.
template <class T>
struct RowSums {
  using R = Real<T>;

  void* output;
  int64_t first, heads, size;
  BlockOf<R> buffer;

  SCISPARSE_INLINE BlockOf<R> place() const {
    if constexpr (is_real<T>) return {to(0), heads * size};
    return buffer;
  }

  SCISPARSE_INLINE void write(int64_t rows) const {
    constexpr int L = width<R>;
    for (int64_t r = 0; !is_real<T> && r < rows; r++)
      for (int64_t d = 0; d < size; d += L) {
        const int n = int(min_of(L, size - d));
        store(to(r) + d, load<L>(buffer[r] + d, n), n);
      }
  }

 private:
  SCISPARSE_INLINE T* to(int64_t r) const { return static_cast<T*>(output) + (first + r * heads) * size; }
};

template <class R>
SCISPARSE_INLINE R* reals(void* data) {
  return static_cast<R*>(data);
}

// A kernel for the type of the numbers that a problem holds.
template <template <class> class Kernel, class... Arguments>
Status for_dtype(int64_t dtype, const Arguments&... arguments) {
  switch (DType(dtype)) {
    case DType::float64: return Kernel<double>::run(arguments...);
    case DType::float32: return Kernel<float>::run(arguments...);
    case DType::bfloat16: return Kernel<Bfloat16>::run(arguments...);
    case DType::float16: return Kernel<Float16>::run(arguments...);
  }
  return Status::bad_dtype;
}

}  // namespace
}  // namespace SCISPARSE_NAMESPACE
