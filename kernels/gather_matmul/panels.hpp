// gather_matmul of single numbers (C = O = 1) where sources are scattered: panels of the batch.
//
// A panel is some batch entries of a tensor, transposed: the numbers of a source lie side by side and fill vectors, so that an edge
// is a load and a multiply-add for each vector, wherever its source is. Every sum is that of the edges k, k + 4, k + 8 ... in four
// parts, whatever the batch, the panels and the instruction set.
#pragma once

#include "problem.hpp"

namespace SCISPARSE_NAMESPACE {
namespace {

using scisparse::Panel;
using scisparse::Table;

// Batch entries of a panel as vectors; those beyond the batch are left out.
template <class R>
int64_t vectors_of(const Panel& panel, int64_t batch) {
  return ceil_div(min_of(panel.lanes, batch - panel.first), width<R>);
}

// Columns [first, last) of the batch entries of a panel, transposed: to[(n - first) * panel.lanes + b].
template <class T>
class PanelReader {
 public:
  using R = Real<T>;
  static constexpr int W = width<R>, LINE = W < 16 ? 16 / W : 1;  // vectors of columns that make a cache line of 32-bit numbers
  using V = Vec<R, W>;

  PanelReader(const Table& table, const Panel& panel) : table_(table), panel_(panel), vectors_(vectors_of<R>(panel, table.rows)) {}

  void read(int64_t first, int64_t last, R* to) const {
    for (int64_t n = first; n < last; n += LINE * W)
      for (int64_t v = 0; v < vectors_; v++)
        for (int64_t k = n; k < min_of(n + LINE * W, last); k += W)
          block(v, k, int(min_of(W, last - k)), to + (k - first) * panel_.lanes + v * W);
  }

 private:
  SCISPARSE_INLINE void block(int64_t v, int64_t n, int count, R* to) const {
    const int64_t b = panel_.first + v * W;
    const T* from = static_cast<const T*>(table_.data) + b * table_.columns + n;
    V t[W];
    if (count == W && b + W <= table_.rows) {
      unrolled<W>([&](auto k) SCISPARSE_INLINE_LAMBDA { t[k] = load<W>(from + k * table_.columns); });
    } else {
      for (int k = 0; k < W; k++) t[k] = b + k < table_.rows ? load<W>(from + k * table_.columns, count) : V{};
    }
    transpose_square(t);
    if (count == W) {
      unrolled<W>([&](auto k) SCISPARSE_INLINE_LAMBDA { store(to + k * panel_.lanes, t[k]); });
    } else {
      for (int k = 0; k < count; k++) store(to + k * panel_.lanes, t[k]);
    }
  }

  const Table table_;
  const Panel panel_;
  int64_t vectors_;
};

// to[k] = the number that index first + k names, as a real
template <class T>
SCISPARSE_INLINE void gather_reals(const T* from, const Indices& indices, int64_t first, int64_t count, Real<T>* to) {
  constexpr int W = width<Real<T>>;
  if (indices.bits == 0) {
    for (int64_t k = 0; k < count; k += W) {
      const int n = int(min_of(W, count - k));
      store(to + k, load<W>(from + first + k, n), n);
    }
    return;
  }
  with_indices(indices, first, [&](const auto& index) {
    for (int64_t k = 0; k < count; k++) to[k] = read_one(from + index[k]);
  });
}

template <class T>
class Panels {
 public:
  using R = Real<T>;
  static constexpr int W = width<R>, PARTS = 4, MOST = SCISPARSE_ISA == 3 ? 4 : 2;  // vectors whose sums fit into registers
  static constexpr int64_t TILE = 16;                                              // sites that are written at once
  using V = Vec<R, W>;

  Panels(const scisparse::GatherMatmul& p, const Panel& panel, int64_t first, int64_t last)
      : pattern_(p.pattern), batch_(p.batch), weight_(static_cast<const T*>(p.weight)), ordered_(ordered_weights(p)),
        y_(static_cast<T*>(p.y)), streaming_(p.streaming), panel_(panel), vectors_(vectors_of<R>(panel, p.batch)),
        values_(static_cast<const R*>(panel.values)), weights_(ordered_ ? 0 : longest_row(first, last)),
        results_(TILE * panel.lanes) {}
  explicit operator bool() const { return weights_ && results_; }

  void sites(int64_t first, int64_t last) {
    for (int64_t i = first; i < last; i += TILE) {
      const int64_t count = min_of(TILE, last - i);
      for (int64_t s = 0; s < count; s++) site(i + s, results_.get() + s * panel_.lanes);
      for (int64_t v = 0; v < vectors_; v++)
        for (int64_t s = 0; s < count; s += W) write(i, s, int(min_of(W, count - s)), v);
    }
  }

 private:
  static const R* ordered_weights(const scisparse::GatherMatmul& p) {
    const bool in_order = is_real<T> && p.pattern.tie.bits == 0;
    return static_cast<const R*>(in_order ? p.weight : p.ordered_weights);
  }

  int64_t longest_row(int64_t first, int64_t last) const {
    int64_t longest = 0;
    for (int64_t i = first; i < last; i++) longest = max_of(longest, pattern_.row_ptr[i + 1] - pattern_.row_ptr[i]);
    return longest;
  }

  SCISPARSE_INLINE void site(int64_t i, R* to) const {
    const int64_t first = pattern_.row_ptr[i], count = pattern_.row_ptr[i + 1] - first;
    const R* weights = weights_of(first, count);
    with_indices(pattern_.col, first, [&](const auto& col) {
      int64_t v = 0;
      for (; v + MOST <= vectors_; v += MOST) sum<MOST>(col, weights, count, v * W, to + v * W);
      if constexpr (MOST > 2)
        for (; v + 2 <= vectors_; v += 2) sum<2>(col, weights, count, v * W, to + v * W);
      for (; v < vectors_; v++) sum<1>(col, weights, count, v * W, to + v * W);
    });
  }

  // The weights of a row one after the other, as reals.
  SCISPARSE_INLINE const R* weights_of(int64_t first, int64_t count) const {
    if (ordered_) return ordered_ + first;
    gather_reals(weight_, pattern_.tie, first, count, weights_.get());
    return weights_.get();
  }

  template <int NV, class Col>
  SCISPARSE_INLINE void sum(const Col& col, const R* weights, int64_t count, int64_t lane, R* to) const {
    const R* values = values_ + lane;
    V sum[PARTS][NV] = {};
    const auto edge = [&](int64_t k, V(&to)[NV]) SCISPARSE_INLINE_LAMBDA {
      const R* x = values + int64_t(col[k]) * panel_.lanes;
      const V weight = splat<V>(weights[k]);
      unrolled<NV>([&](auto v) SCISPARSE_INLINE_LAMBDA { to[v] += weight * load<W>(x + v * W); });
    };
    int64_t k = 0;
    for (; k + PARTS <= count; k += PARTS)
      unrolled<PARTS>([&](auto s) SCISPARSE_INLINE_LAMBDA { edge(k + s, sum[s]); });
    for (; k < count; k++) edge(k, sum[0]);
    unrolled<NV>([&](auto v) SCISPARSE_INLINE_LAMBDA {
      store(to + v * W, (sum[0][v] + sum[1][v]) + (sum[2][v] + sum[3][v]));
    });
  }

  // Results of `count` sites from i + s on, of vector v of the batch.
  SCISPARSE_INLINE void write(int64_t i, int64_t s, int count, int64_t v) const {
    const R* from = results_.get() + s * panel_.lanes + v * W;
    V t[W];
    unrolled<W>([&](auto k) SCISPARSE_INLINE_LAMBDA { t[k] = load<W>(from + k * panel_.lanes); });
    transpose_square(t);
    const int64_t b = panel_.first + v * W;
    T* to = y_ + b * pattern_.sites + i + s;
    if (b + W <= batch_) {
      unrolled<W>([&](auto k) SCISPARSE_INLINE_LAMBDA { store(to + k * pattern_.sites, t[k], count); });
    } else {
      for (int k = 0; k < batch_ - b; k++) store(to + k * pattern_.sites, t[k], count);
    }
  }

  const Pattern pattern_;
  int64_t batch_;
  const T* weight_;
  const R* ordered_;
  T* y_;
  bool streaming_;
  const Panel panel_;
  int64_t vectors_;
  const R* values_;
  Buffer<R> weights_, results_;
};

template <class R>
void fill_panel(const Table& table, const Panel& panel, int64_t first, int64_t last) {
  with_type<R>(table.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    PanelReader<T>(table, panel).read(first, last, static_cast<R*>(panel.values) + first * panel.lanes);
  });
}

template <class R>
void gather_weights(const scisparse::GatherMatmul& p, int64_t first, int64_t last, void* weights) {
  with_type<R>(p.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    gather_reals(static_cast<const T*>(p.weight), p.pattern.tie, first, last - first, static_cast<R*>(weights) + first);
  });
}

template <class R>
Status gather_panel(const scisparse::GatherMatmul& p, const Panel& panel, int64_t first, int64_t last) {
  return with_type<R>(p.dtype, [&](auto* type) {
    Panels<std::remove_pointer_t<decltype(type)>> kernel(p, panel, first, last);
    if (!kernel) return Status::no_memory;
    kernel.sites(first, last);
    finish_streams();
    return Status::ok;
  });
}

}  // namespace
}  // namespace SCISPARSE_NAMESPACE
