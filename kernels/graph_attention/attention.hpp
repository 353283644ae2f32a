// Attention over the edges of sites, forward and backward.
//
// The forward pass keeps the scores of a row in a buffer: softmax then runs over whole vectors, and values are read once. The
// backward pass over sites makes the weights p and the gradients of the scores of all edges; that over sources sums them up. Rows
// go through what they share together, a block of them at a time.
#pragma once

#include "blocks.hpp"

namespace SCISPARSE_NAMESPACE {
namespace {

// Numbers of edges for some heads at once, at the rows of a block.
template <class R>
struct HeadsOf {
  R* data;
  int64_t rows, pitch;
  SCISPARSE_INLINE BlockOf<R> operator[](int64_t h) const { return {data + h * rows * pitch, pitch}; }
};

// What both passes over sites have in common: the scores of some rows.
template <class T>
class Scores {
 public:
  using R = Real<T>;

  Scores(const scisparse_attention& p, const Span& sites)
      : q{p.q, p.edges.sites, p.heads, p.width}, k{p.k, p.edges.sources, p.source_heads, p.width},
        v{p.v, p.edges.sources, p.source_heads, p.value_width}, edge_q{p.edge_q, p.edges.sites, p.heads, p.edge_room},
        attr{static_cast<const T*>(p.edge_attr), p.edge_width}, rows(p.edges, sites), p_(p), group_(p.heads / p.source_heads) {
    // Heads go through each stage of a row together, so that none waits for what the one before is doing; as many as stay near.
    constexpr int64_t most = 2048;
    heads_at_once = max_of(int64_t(1), min_of(p.heads, most / (sites.at_once * rows.room())));
  }

  explicit operator bool() const { return bool(rows); }
  Array<T> keys(Place at) const { return k.head(at.b, at.h / group_); }
  Array<T> values(Place at) const { return v.head(at.b, at.h / group_); }

  // Scores of `heads` heads from at.h on at the sites from at.i on, whose edges `rows` has read.
  SCISPARSE_INLINE void read(Place at, int64_t heads, const HeadsOf<R>& score) const {
    if (at.h == 0) rows.ask(at.i, v, at.b);
    for (int64_t h = 0; h < heads; h++) {
      rows.dots(at + h, q, keys(at + h), score[h]);
      for (int64_t r = 0; r < rows.size(); r++) multiply(score[h][r], rows[r].count(), R(p_.scale));
    }
    if (at.h == 0) rows.ask(at.i + 1, k, at.b);
    if (p_.edge_width) add_carried(at, heads, edge_q, score);
    if (p_.bias)
      for (int64_t h = 0; h < heads; h++) add_bias(at + h, score[h]);
  }

  // score[h][r][j] += x[site r, h] . attr[edge j of r]
  void add_carried(Place at, int64_t heads, const Heads<T>& x, const HeadsOf<R>& score) const {
    for (int64_t r = 0; r < rows.size(); r++)
      add_dots(Array<T>{x.at(at.b, at.i + r, at.h), x.size}, attr, rows[r].places(), rows[r].count(), p_.edge_width, heads,
               BlockOf<R>{score[0][r], score.rows * score.pitch});
  }

  // Sums what the edges of a row carry, each times its value; 0 behind.
  void sum_carried(const R* value, const Row& row, R* sum, void* to, int64_t number) const {
    sums(value, attr, row.places(), row.count(), p_.edge_width, sum, false);
    for (int64_t a = p_.edge_width; a < p_.edge_room; a++) sum[a] = 0;
    write(sum, p_.edge_room, static_cast<T*>(to) + number * p_.edge_room);
  }

  // Where arrays [B, M, H] have the number of row r.
  int64_t number(Place at, int64_t r) const { return (at.b * p_.edges.sites + at.i + r) * p_.heads + at.h; }

  const Heads<T> q, k, v, edge_q;
  const Array<T> attr;
  RowBlock rows;
  int64_t heads_at_once;

 private:
  void add_bias(Place at, BlockOf<R> score) const {
    const R* bias = static_cast<const R*>(p_.bias) + at.b * p_.bias_batch + at.h * p_.bias_head;
    for (int64_t r = 0; r < rows.size(); r++)
      for (int64_t j = 0; j < rows[r].count(); j++) score[r][j] += bias[rows[r].places()[j] * p_.bias_edge];
  }

  const scisparse_attention& p_;
  int64_t group_;
};

// Calls task({b, i, h}, count) for the blocks of a span of rows, which `rows` has read, and `at_once` heads from h on, or fewer.
template <class F>
SCISPARSE_INLINE void for_heads(RowBlock& rows, const Span& span, int64_t first_batch, int64_t last_batch, int64_t heads, int64_t at_once,
                                const F& task) {
  for (int64_t b = first_batch; b < last_batch; b++)
    for (int64_t i = span.first; i < span.last; i += span.at_once) {
      rows.read(i, min_of(span.at_once, span.last - i));
      for (int64_t h = 0; h < heads; h += at_once) task(Place{b, i, h}, min_of(at_once, heads - h));
    }
}

template <class T>
struct AttentionForward {
  using R = Real<T>;

  static Status run(const scisparse_attention& p, const Span& sites) {
    Scores<T> scores(p, sites);
    const RowBlock& rows = scores.rows;
    const int64_t room = rows.room(), width = round_up(max_of(p.value_width, p.edge_room), 16);
    const int64_t numbers = scores.heads_at_once * sites.at_once * room;
    Buffer<R> buffer(numbers + sites.at_once * width);
    if (!scores || !buffer) return Status::no_memory;
    const HeadsOf<R> score{buffer.get(), sites.at_once, room};
    const BlockOf<R> sum{buffer.get() + numbers, width};
    for_heads(scores.rows, sites, 0, p.batch, p.heads, scores.heads_at_once, [&](Place at, int64_t heads) SCISPARSE_INLINE_LAMBDA {
      scores.read(at, heads, score);
      for (int64_t h = 0; h < heads; h++)
        for (int64_t r = 0; r < rows.size(); r++)
          reals<R>(p.lse)[scores.number(at + h, r)] = softmax(score[h][r], rows[r].count());
      for (int64_t h = 0; h < heads; h++) {
        rows.sums(score[h], scores.values(at + h), p.value_width, sum);
        for (int64_t r = 0; r < rows.size(); r++)
          write(sum[r], p.value_width, static_cast<T*>(p.out) + scores.number(at + h, r) * p.value_width);
      }
      for (int64_t h = 0; p.edge_width && h < heads; h++)
        for (int64_t r = 0; r < rows.size(); r++)
          scores.sum_carried(score[h][r], rows[r], sum[r], p.edge_out, scores.number(at + h, r));
    });
    return Status::ok;
  }

 private:
  // Scores become weights; the logarithm of their denominator.
  static R softmax(R* score, int64_t count) {
    const R none = -R(__builtin_inf()), most = largest(score, count);
    // Of -infinity alone: nothing; where there is NaN as well, the sum is NaN.
    const R sum_of = exponentials(score, count, most == none ? R(0) : most);
    if (sum_of == 0) return none;
    multiply(score, count, 1 / sum_of);
    return most == none ? sum_of : most + log_of(sum_of);
  }
};

template <class T>
struct AttentionSites {
  using R = Real<T>;

  static Status run(const scisparse_attention_backward& p, const EdgeWorkspace& space, const Span& sites) {
    AttentionSites kernel(p, space, sites);
    if (!kernel.scores_ || !kernel.buffer_) return Status::no_memory;
    for_heads(kernel.scores_.rows, sites, space.first_batch, space.last_batch, p.forward.heads, kernel.scores_.heads_at_once,
              [&](Place at, int64_t heads) SCISPARSE_INLINE_LAMBDA { kernel.heads(at, heads); });
    return Status::ok;
  }

 private:
  AttentionSites(const scisparse_attention_backward& p, const EdgeWorkspace& space, const Span& sites)
      : p_(p), f_(p.forward), space_(space), scores_(f_, sites),
        grad_{p.grad, f_.edges.sites, f_.heads, f_.value_width}, grad_edge_{p.grad_edge, f_.edges.sites, f_.heads, f_.edge_room},
        room_(scores_.rows.room()), numbers_(scores_.heads_at_once * sites.at_once * room_),
        width_(round_up(max_of(f_.width, f_.edge_room), 16)), buffer_(2 * numbers_ + sites.at_once * width_),
        weight_{buffer_.get(), sites.at_once, room_}, slope_{buffer_.get() + numbers_, sites.at_once, room_},
        sum_{buffer_.get() + 2 * numbers_, width_} {}

  // `heads` heads from at.h on at the sites of a block: scores become weights, slopes those of the scores.
  void heads(Place at, int64_t heads) {
    const RowBlock& rows = scores_.rows;
    scores_.read(at, heads, weight_);
    for (int64_t h = 0; h < heads; h++) rows.dots(at + h, grad_, scores_.values(at + h), slope_[h]);
    if (p_.grad_edge) scores_.add_carried(at, heads, grad_edge_, slope_);
    for (int64_t h = 0; h < heads; h++)
      for (int64_t r = 0; r < rows.size(); r++) {
        const R lse = static_cast<const R*>(f_.lse)[scores_.number(at + h, r)];
        softmax(weight_[h][r], slope_[h][r], rows[r].count(), lse);
      }
    for (int64_t h = 0; h < heads; h++)
      for (int64_t r = 0; r < rows.size(); r++) carry({at.b, at.i + r, at.h + h}, rows[r], weight_[h][r], slope_[h][r]);
    for (int64_t h = 0; h < heads; h++) {
      for (int64_t r = 0; r < rows.size(); r++) {
        multiply(slope_[h][r], rows[r].count(), R(f_.scale));
        keep({at.b, at.i + r, at.h + h}, rows[r], weight_[h][r], slope_[h][r]);
      }
      rows.sums(slope_[h], scores_.keys(at + h), f_.width, sum_);
      for (int64_t r = 0; r < rows.size(); r++)
        write(sum_[r], f_.width, static_cast<T*>(p_.grad_q) + scores_.number(at + h, r) * f_.width);
    }
  }

  static void softmax(R* weight, R* slope, int64_t count, R lse) {
    // The sum is 1 but for the rounding of lse, which is coarse where scores are large; 0 of nothing.
    const R sum_of = exponentials(weight, count, lse == -R(__builtin_inf()) ? R(0) : lse);
    if (sum_of != 0) multiply(weight, count, 1 / sum_of);
    softmax_gradient(weight, slope, count);
  }

  // Gradients of what belongs to the edges of a site, and of what meets it.
  void carry(Place at, const Row& row, const R* weight, const R* slope) {
    if (p_.grad_bias) add_to_bias(at, row, slope);
    if (p_.grad_edge_attr) add_to_attr(at, row, weight, slope);
    if (f_.edge_width) scores_.sum_carried(slope, row, sum_[0], p_.grad_edge_q, scores_.number(at, 0));
  }

  void add_to_bias(Place at, const Row& row, const R* slope) const {
    R* to = reals<R>(p_.grad_bias) + at.b * f_.bias_batch + at.h * f_.bias_head;
    const int64_t* place = row.places();
    for (int64_t j = 0; j < row.count(); j++) to[place[j] * f_.bias_edge] += slope[j];
  }

  // Weights and slopes of the edges, for the sources to sum up.
  void keep(Place at, const Row& row, const R* weight, const R* slope) const {
    const int64_t first = (at.b - space_.first_batch) * f_.edges.count * f_.heads + at.h;
    R *weights = reals<R>(space_.weights) + first, *slopes = reals<R>(space_.score_grads) + first;
    const int64_t* place = row.places();
    for (int64_t j = 0; j < row.count(); j++) {
      weights[place[j] * f_.heads] = weight[j];
      slopes[place[j] * f_.heads] = slope[j];
    }
  }

  void add_to_attr(Place at, const Row& row, const R* weight, const R* slope) const {
    const T *q = scores_.edge_q.at(at.b, at.i, at.h), *grad = p_.grad_edge ? grad_edge_.at(at.b, at.i, at.h) : nullptr;
    const int64_t* place = row.places();
    for (int64_t j = 0; j < row.count(); j++) {
      R* to = reals<R>(p_.grad_edge_attr) + place[j] * f_.edge_width;
      for (int64_t a = 0; a < f_.edge_width; a++) to[a] += slope[j] * widen_one(q[a]) + (grad ? weight[j] * widen_one(grad[a]) : R(0));
    }
  }

  const scisparse_attention_backward& p_;
  const scisparse_attention& f_;
  const EdgeWorkspace& space_;
  Scores<T> scores_;
  Heads<T> grad_, grad_edge_;
  int64_t room_, numbers_, width_;
  Buffer<R> buffer_;
  HeadsOf<R> weight_, slope_;
  BlockOf<R> sum_;
};

template <class T>
struct AttentionSources {
  using R = Real<T>;

  static Status run(const scisparse_attention_backward& p, const EdgeWorkspace& space, const Span& sources) {
    const scisparse_attention& f = p.forward;
    const int64_t sites = f.edges.sites, group = f.heads / f.source_heads;
    const Heads<T> q{f.q, sites, f.heads, f.width}, grad{p.grad, sites, f.heads, f.value_width};
    RowBlock rows(p.transposed, sources);
    const int64_t room = rows.room(), width = round_up(max_of(f.width, f.value_width), 16);
    Buffer<R> buffer(block_rows * (room + 2 * width));
    if (!rows || !buffer) return Status::no_memory;
    const BlockOf<R> value{buffer.get(), room}, part{value[block_rows], width}, sum{part[block_rows], width};
    // to[j] = the sum of what was kept of the edges that read source j times what their sites hold, over the heads of group g
    const auto sum_up = [&](void* kept, const Heads<T>& heads, Place at, void* to) {
      const R* from = reals<R>(kept) + (at.b - space.first_batch) * f.edges.count * f.heads;
      for (int64_t h = at.h * group; h < (at.h + 1) * group; h++) {
        for (int64_t r = 0; r < rows.size(); r++)
          for (int64_t e = 0; e < rows[r].count(); e++) value[r][e] = from[rows[r].places()[e] * f.heads + h];
        const bool is_first = h == at.h * group;
        rows.sums(value, heads.head(at.b, h), heads.size, is_first ? sum : part);
        for (int64_t r = 0; !is_first && r < rows.size(); r++) add(sum[r], heads.size, part[r]);
      }
      for (int64_t r = 0; r < rows.size(); r++) {
        const int64_t row = (at.b * p.transposed.sites + at.i + r) * f.source_heads + at.h;
        write(sum[r], heads.size, static_cast<T*>(to) + row * heads.size);
      }
    };
    for_heads(rows, sources, space.first_batch, space.last_batch, f.source_heads, 1, [&](Place at, int64_t) SCISPARSE_INLINE_LAMBDA {
      if (at.h == 0) {
        rows.ask(at.i + 1, q, at.b);
        rows.ask(at.i + 1, grad, at.b);
      }
      sum_up(space.score_grads, q, at, p.grad_k);
      sum_up(space.weights, grad, at, p.grad_v);
    });
    return Status::ok;
  }
};

}  // namespace
}  // namespace SCISPARSE_NAMESPACE
