// Rows of a pattern as pointers to sources and weights, a piece at a time.
#pragma once

#include "problem.hpp"

namespace SCISPARSE_NAMESPACE {
namespace {

// Some edges of a row: where their sources and their weights are.
template <class R>
struct Piece {
  int count;
  const R *x[Blocks<R>::most_slots], *w[Blocks<R>::most_slots];
};

template <class R>
class Rows {
 public:
  explicit Rows(const Forward<R>& p)
      : p_(p), x_(p.x, {p.batch, p.in, p.pattern.sources * p.in}), w_(p.weight, {1, p.in * p.out, 0}),
        y_(p.y.are_reals() ? 0 : p.batch * p.out) {}

  explicit operator bool() const { return x_ && w_ && y_; }
  int64_t x_pitch() const { return x_.pitch(); }
  int64_t y_pitch() const { return p_.y.are_reals() ? p_.pattern.sites * p_.out : p_.out; }

  // Calls tiles(piece, y, add) for the pieces of the row of site i. It computes [B, O] sums y, and from the second piece on adds
  // them to those that are there.
  template <class Tiles>
  SCISPARSE_INLINE void site(int64_t i, const Tiles& tiles) {
    R* y = p_.y.are_reals() ? p_.y.template as<R>() + i * p_.out : y_.get();
    const int64_t first = p_.pattern.row_ptr[i], end = p_.pattern.row_ptr[i + 1];
    int64_t e = first;
    do {
      const int64_t from = e;
      e += read(e, end);
      tiles(piece_, y, from > first);
    } while (e < end);
    if (!p_.y.are_reals())
      for (int64_t b = 0; b < p_.batch; b++) p_.y.write(y + b * p_.out, p_.out, (b * p_.pattern.sites + i) * p_.out);
  }

 private:
  SCISPARSE_INLINE int read(int64_t e, int64_t end) {
    piece_.count = int(min_of(end - e, min_of(x_.slots(), w_.slots())));
    for (int j = 0; j < piece_.count; j++) {
      piece_.x[j] = x_.read(at(p_.pattern.col, e + j) * p_.in, j);
      piece_.w[j] = w_.read(at(p_.pattern.tie, e + j) * p_.in * p_.out, j);
    }
    return piece_.count;
  }

  const Forward<R>& p_;
  Blocks<R> x_, w_;
  Buffer<R> y_;
  Piece<R> piece_;
};

}  // namespace
}  // namespace SCISPARSE_NAMESPACE
