// Rows of a pattern as pointers to sources and weights, a piece at a time.
#pragma once

#include "problem.hpp"

namespace SCISPARSE_NAMESPACE {
namespace {

// Some edges of a row: where their sources and their weights are, and the weights to ask for meanwhile.
template <class R>
struct Piece {
  static constexpr int most = int(Blocks<R>::most_slots);
  int count = 0;
  bool asks = false;  // `later` is in use
  const R *x[most], *w[most], *later[most];
};

// Part `part` of `parts`.
struct Share {
  int64_t part, parts;
};

// The weights of edges. Blocks of a few cache lines are too short for the hardware to see where the next one is when a tie
// permutes them, and even in order they come sooner when asked for.
template <class R>
class Weights {
 public:
  explicit Weights(const Forward<R>& p)
      : blocks_(p.weight, {1, p.in * p.out, 0}), weight_(p.weight), tie_(p.pattern.tie), size_(p.in * p.out),
        end_(p.pattern.row_ptr[p.pattern.sites]) {
    const int64_t bytes = size_ * int64_t(sizeof(R));
    // Blocks that a tie permutes take longer to come: each opens other pages.
    if (weight_.are_reals() && bytes >= 64 && bytes <= 4096) distance_ = (tie_.bits ? 16384 : 4096) / bytes;
  }

  explicit operator bool() const { return bool(blocks_); }
  int64_t slots() const { return blocks_.slots(); }
  int64_t size() const { return size_; }

  // The weights of the edges of a piece, the first of which is e.
  SCISPARSE_INLINE void read(int64_t e, Piece<R>& piece) const {
    blocks_.read(piece.w, size_, tie_, e, piece.count);
    piece.asks = distance_ > 0 && e + piece.count + distance_ <= end_;
    if (piece.asks) point(piece.later, weight_.template as<R>(), size_, tie_, e + distance_, piece.count);
  }

  // Tiles that go over the same weights ask for a share each: all at once, they would wait for memory and then leave it idle.
  SCISPARSE_INLINE void ask(const Piece<R>& piece, int j, Share share) const {
    constexpr int64_t line = 64 / int64_t(sizeof(R));
    if (!piece.asks) return;
    for (int64_t k = share.part * line; k < size_; k += share.parts * line) ask_to_read(piece.later[j] + k);
  }

 private:
  Blocks<R> blocks_;
  Numbers<R, const void> weight_;
  Indices tie_;
  int64_t size_, end_, distance_ = 0;
};

template <class R>
class Rows {
 public:
  explicit Rows(const Forward<R>& p)
      : p_(p), x_(p.x, {p.batch, p.in, p.pattern.sources * p.in}), weights(p), y_(p.y.are_reals() ? 0 : p.batch * p.out) {}

  explicit operator bool() const { return x_ && weights && y_; }
  int64_t x_pitch() const { return x_.pitch(); }
  int64_t y_pitch() const { return p_.y.are_reals() ? p_.pattern.sites * p_.out : p_.out; }

  // Calls f(piece, later) for the pieces of the row of site i: one at least, and `later` from the second on.
  template <class F>
  SCISPARSE_INLINE void pieces(int64_t i, const F& f) {
    const int64_t first = p_.pattern.row_ptr[i], end = p_.pattern.row_ptr[i + 1];
    int64_t e = first;
    do {
      piece_.count = int(min_of(end - e, min_of(x_.slots(), weights.slots())));
      x_.read(piece_.x, p_.in, p_.pattern.col, e, piece_.count);
      weights.read(e, piece_);
      f(piece_, e > first);
      e += piece_.count;
    } while (e < end);
  }

  // Calls tiles(piece, y, add) for the pieces of the row of site i. It computes [B, O] sums y, and from the second piece on
  // adds to those that are there.
  template <class Tiles>
  SCISPARSE_INLINE void site(int64_t i, const Tiles& tiles) {
    R* y = p_.y.are_reals() ? p_.y.template as<R>() + i * p_.out : y_.get();
    pieces(i, [&](const Piece<R>& piece, bool add) SCISPARSE_INLINE_LAMBDA { tiles(piece, y, add); });
    if (!p_.y.are_reals())
      for (int64_t b = 0; b < p_.batch; b++) p_.y.write(y + b * p_.out, p_.out, (b * p_.pattern.sites + i) * p_.out);
  }

 private:
  const Forward<R>& p_;
  Blocks<R> x_;

 public:
  const Weights<R> weights;

 private:
  Buffer<R> y_;
  Piece<R> piece_;
};

}  // namespace
}  // namespace SCISPARSE_NAMESPACE
