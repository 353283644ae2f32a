// Attention over the edges of sites, forward and backward.
//
// The forward pass keeps the scores of a row in a buffer: softmax then runs over whole vectors, and values are read once. The
// backward pass over sites makes the weights p and the gradients of the scores of all edges; that over sources sums them up. Rows
// go through what they share together, a block of them at a time.
#pragma once

#include "blocks.hpp"
#include "weights.hpp"

namespace SCISPARSE_NAMESPACE {
namespace {

// Numbers of edges for some heads at once, at the rows of a block.
template <class R>
struct HeadsOf {
  R* data;
  int64_t rows, pitch;
  SCISPARSE_INLINE BlockOf<R> operator[](int64_t h) const { return {data + h * rows * pitch, pitch}; }
  // The heads from h on at row r.
  SCISPARSE_INLINE BlockOf<R> of_row(int64_t r, int64_t h = 0) const { return {data + (h * rows + r) * pitch, rows * pitch}; }
};

// Some batch entries and some of their heads.
struct Entries {
  int64_t first_batch, last_batch, first_head, last_head;
};

// What both passes over sites have in common: the scores of some rows.
template <class T>
class Scores {
 public:
  using R = Real<T>;

  Scores(const scisparse_attention& p, const Span& sites, const Entries& entries)
      : q{p.q, p.edges.sites, p.heads, p.width}, k{p.k, p.edges.sources, p.source_heads, p.width},
        v{p.v, p.edges.sources, p.source_heads, p.value_width}, edge_q{p.edge_q, p.edges.sites, p.heads, p.edge_room},
        attr{static_cast<const T*>(p.edge_attr), p.edge_width}, rows(p.edges, sites), of(entries), p_(p), group_(p.heads / p.source_heads) {
    // Heads go through each stage of a row together, so that none waits for what the one before is doing; as many as stay near.
    constexpr int64_t most = 2048;
    heads_at_once = max_of(int64_t(1), min_of(of.last_head - of.first_head, most / (sites.at_once * rows.room())));
  }

  explicit operator bool() const { return bool(rows); }
  Array<T> keys(Place at) const { return k.head(at.b, at.h / group_); }
  Array<T> values(Place at) const { return v.head(at.b, at.h / group_); }

  // Scores of `heads` heads from at.h on at the sites from at.i on, whose edges `rows` has read.
  SCISPARSE_INLINE void read(Place at, int64_t heads, const HeadsOf<R>& score) const {
    if (at.h == of.first_head) rows.ask(at.i, v, at.b);
    for (int64_t h = 0; h < heads; h++) {
      rows.dots(at + h, q, keys(at + h), score[h]);
      for (int64_t r = 0; r < rows.size(); r++) multiply(score[h][r], rows[r].count(), R(p_.scale));
    }
    if (at.h == of.first_head) rows.ask(at.i + 1, k, at.b);
    if (p_.edge_width) add_carried(at, heads, edge_q, score);
    if (p_.bias)
      for (int64_t h = 0; h < heads; h++) add_bias(at + h, score[h]);
  }

  // score[h][r][j] += x[site r, h] . attr[edge j of r]
  void add_carried(Place at, int64_t heads, const Heads<T>& x, const HeadsOf<R>& score) const {
    for (int64_t r = 0; r < rows.size(); r++)
      add_dots(Array<T>{x.at(at.b, at.i + r, at.h), x.size}, attr, rows[r].places(), rows[r].count(), p_.edge_width, heads,
               score.of_row(r));
  }

  // Sums what the edges of row r carry, each times its value of a head; 0 behind.
  void sum_carried(Place at, int64_t heads, int64_t r, const HeadsOf<R>& value, void* to) const {
    in_fours(heads, [&](auto n, int64_t h) SCISPARSE_INLINE_LAMBDA {
      sums_of_heads<n>(value.of_row(r, h), attr, rows[r].places(), rows[r].count(), p_.edge_width, p_.edge_room,
                       static_cast<T*>(to) + number(at + h, r) * p_.edge_room);
    });
  }

  // Writes the sums of numbers [sources, size], each times its value, for all rows and `heads` heads from at.h on; the numbers of a head
  // are from(h).
  template <class F>
  SCISPARSE_INLINE void sum_sources(Place at, int64_t heads, const HeadsOf<R>& value, int64_t size, const F& from, BlockOf<R> buffer,
                                    void* to) const {
    for (int64_t h = 0; h < heads; h++) {
      const RowSums<T> sum{to, number(at + h, 0), p_.heads, size, buffer};
      rows.sums(value[h], from(at + h), size, sum.place());
      sum.write(rows.size());
    }
  }

  // Where arrays [B, M, H] have the number of row r.
  int64_t number(Place at, int64_t r) const { return (at.b * p_.edges.sites + at.i + r) * p_.heads + at.h; }

  const Heads<T> q, k, v, edge_q;
  const Array<T> attr;
  RowBlock rows;
  const Entries of;
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
SCISPARSE_INLINE void for_heads(RowBlock& rows, const Span& span, const Entries& of, int64_t at_once, const F& task) {
  for (int64_t b = of.first_batch; b < of.last_batch; b++)
    for (int64_t i = span.first; i < span.last; i += span.at_once) {
      rows.read(i, min_of(span.at_once, span.last - i));
      for (int64_t h = of.first_head; h < of.last_head; h += at_once) task(Place{b, i, h}, min_of(at_once, of.last_head - h));
    }
}

// Those of a workspace, `group` heads for each of the sources.
SCISPARSE_INLINE Entries entries_of(const EdgeWorkspace& space, int64_t group) {
  return {space.first_batch, space.last_batch, space.first_source_head * group, space.last_source_head * group};
}

// Weight and slope of each edge and head between the passes of a backward pass.
template <class R>
struct Kept {
  Entries of;
  Heads<R> numbers;

  Kept(const EdgeWorkspace& space, const scisparse_attention& p)
      : of(entries_of(space, p.heads / p.source_heads)), numbers{space.numbers, p.edges.count, of.last_head - of.first_head, 2} {}

  SCISPARSE_INLINE int64_t entry(int64_t b) const { return b - of.first_batch; }
  SCISPARSE_INLINE const R* at(Place at, int64_t place) const { return numbers.at(entry(at.b), place, at.h - of.first_head); }
};

template <class T>
struct AttentionForward {
  using R = Real<T>;

  static Status run(const scisparse_attention& p, const Span& sites) {
    Scores<T> scores(p, sites, {0, p.batch, 0, p.heads});
    const RowBlock& rows = scores.rows;
    const int64_t room = rows.room(), width = round_up(max_of(p.value_width, p.edge_room), 16);
    const int64_t numbers = scores.heads_at_once * sites.at_once * room;
    Buffer<R> buffer(numbers + sites.at_once * width);
    if (!scores || !buffer) return Status::no_memory;
    const HeadsOf<R> score{buffer.get(), sites.at_once, room};
    const BlockOf<R> sum{buffer.get() + numbers, width};
    for_heads(scores.rows, sites, scores.of, scores.heads_at_once, [&](Place at, int64_t heads) SCISPARSE_INLINE_LAMBDA {
      scores.read(at, heads, score);
      for (int64_t r = 0; r < rows.size(); r++)
        in_fours(heads, [&](auto n, int64_t h) SCISPARSE_INLINE_LAMBDA {
          R lse[n];
          softmax_of_heads(score.of_row(r, h), rows[r].count(), lse);
          std::memcpy(reals<R>(p.lse) + scores.number(at + h, r), lse, sizeof lse);
        });
      scores.sum_sources(at, heads, score, p.value_width, [&](Place head) { return scores.values(head); }, sum, p.out);
      for (int64_t r = 0; p.edge_width && r < rows.size(); r++) scores.sum_carried(at, heads, r, score, p.edge_out);
    });
    return Status::ok;
  }
};

template <class T>
struct AttentionSites {
  using R = Real<T>;

  static Status run(const scisparse_attention_backward& p, const EdgeWorkspace& space, const Span& sites) {
    AttentionSites kernel(p, space, sites);
    if (!kernel.scores_ || !kernel.buffer_) return Status::no_memory;
    for_heads(kernel.scores_.rows, sites, kernel.scores_.of, kernel.scores_.heads_at_once,
              [&](Place at, int64_t heads) SCISPARSE_INLINE_LAMBDA { kernel.heads(at, heads); });
    return Status::ok;
  }

 private:
  AttentionSites(const scisparse_attention_backward& p, const EdgeWorkspace& space, const Span& sites)
      : p_(p), f_(p.forward), kept_(space, f_), scores_(f_, sites, kept_.of),
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
    for (int64_t r = 0; r < rows.size(); r++)
      in_fours(heads, [&](auto n, int64_t h) SCISPARSE_INLINE_LAMBDA {
        R lse[n];
        std::memcpy(lse, static_cast<const R*>(f_.lse) + scores_.number(at + h, r), sizeof lse);
        softmax_gradients_of_heads(weight_.of_row(r, h), slope_.of_row(r, h), rows[r].count(), lse);
      });
    for (int64_t h = 0; h < heads; h++)
      for (int64_t r = 0; r < rows.size(); r++) carry({at.b, at.i + r, at.h + h}, rows[r], weight_[h][r], slope_[h][r]);
    for (int64_t r = 0; f_.edge_width && r < rows.size(); r++) scores_.sum_carried(at, heads, r, slope_, p_.grad_edge_q);
    for (int64_t h = 0; h < heads; h++)
      for (int64_t r = 0; r < rows.size(); r++) {
        multiply(slope_[h][r], rows[r].count(), R(f_.scale));
        keep({at.b, at.i + r, at.h + h}, rows[r], weight_[h][r], slope_[h][r]);
      }
    scores_.sum_sources(at, heads, slope_, f_.width, [&](Place head) { return scores_.keys(head); }, sum_, p_.grad_q);
  }

  // Gradients of what belongs to the edges of a site, and of what meets it.
  void carry(Place at, const Row& row, const R* weight, const R* slope) {
    if (p_.grad_bias) add_to_bias(at, row, slope);
    if (p_.grad_edge_attr) add_to_attr(at, row, weight, slope);
  }

  void add_to_bias(Place at, const Row& row, const R* slope) const {
    R* to = reals<R>(p_.grad_bias) + at.b * f_.bias_batch + at.h * f_.bias_head;
    const int64_t* place = row.places();
    for (int64_t j = 0; j < row.count(); j++) to[place[j] * f_.bias_edge] += slope[j];
  }

  // Weights and slopes of the edges, for the sources to sum up.
  void keep(Place at, const Row& row, const R* weight, const R* slope) const {
    const int64_t* place = row.places();
    for (int64_t j = 0; j < row.count(); j++) {
      R* to = const_cast<R*>(kept_.at(at, place[j]));
      to[0] = weight[j];
      to[1] = slope[j];
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
  const Kept<R> kept_;
  Scores<T> scores_;
  Heads<T> grad_, grad_edge_;
  int64_t room_, numbers_, width_;
  Buffer<R> buffer_;
  HeadsOf<R> weight_, slope_;
  BlockOf<R> sum_;
};

// Gradients of sources: what was kept of the edges that read them, times what the sites of these hold, summed over the heads of a group.
template <class T>
struct AttentionSources {
  using R = Real<T>;

  static Status run(const scisparse_attention_backward& p, const EdgeWorkspace& space, const Span& sources) {
    AttentionSources kernel(p, space, sources);
    if (!kernel.rows_ || !kernel.buffer_) return Status::no_memory;
    for_heads(kernel.rows_, sources, entries_of(space, 1), 1, [&](Place at, int64_t) SCISPARSE_INLINE_LAMBDA { kernel.head(at); });
    return Status::ok;
  }

 private:
  AttentionSources(const scisparse_attention_backward& p, const EdgeWorkspace& space, const Span& sources)
      : p_(p), f_(p.forward), first_head_(space.first_source_head), q_{f_.q, f_.edges.sites, f_.heads, f_.width},
        grad_{p.grad, f_.edges.sites, f_.heads, f_.value_width}, kept_(space, f_), group_(f_.heads / f_.source_heads),
        rows_(p.transposed, sources), width_(round_up(max_of(f_.width, f_.value_width), 16)),
        buffer_(block_rows * (2 * rows_.room() + 3 * width_)), weight_{buffer_.get(), rows_.room()},
        slope_{weight_[block_rows], rows_.room()}, sum_k_{slope_[block_rows], width_}, sum_v_{sum_k_[block_rows], width_},
        part_{sum_v_[block_rows], width_} {}

  void head(Place at) {
    if (at.h == first_head_) {
      rows_.ask(at.i + 1, q_, at.b);
      rows_.ask(at.i + 1, grad_, at.b);
      rows_.ask_places(at.i + 1, kept_.numbers, kept_.entry(at.b));
    }
    const int64_t number = (at.b * p_.transposed.sites + at.i) * f_.source_heads + at.h;
    const RowSums<T> of_k{p_.grad_k, number, f_.source_heads, f_.width, sum_k_};
    const RowSums<T> of_v{p_.grad_v, number, f_.source_heads, f_.value_width, sum_v_};
    for (int64_t n = 0; n < group_; n++) {
      const Place of_sites{at.b, at.i, at.h * group_ + n};
      read(of_sites);
      sum_up(of_sites, slope_, q_, of_k.place(), n > 0);
      sum_up(of_sites, weight_, grad_, of_v.place(), n > 0);
    }
    of_k.write(rows_.size());
    of_v.write(rows_.size());
  }

  // What was kept of the edges, for a head of the sites.
  void read(Place at) const {
    for (int64_t r = 0; r < rows_.size(); r++)
      for (int64_t e = 0; e < rows_[r].count(); e++) {
        const R* from = kept_.at(at, rows_[r].places()[e]);
        weight_[r][e] = from[0];
        slope_[r][e] = from[1];
      }
  }

  void sum_up(Place at, const BlockOf<R>& value, const Heads<T>& sites, const BlockOf<R>& to, bool is_later) const {
    rows_.sums(value, sites.head(at.b, at.h), sites.size, is_later ? part_ : to);
    for (int64_t r = 0; is_later && r < rows_.size(); r++) add(to[r], sites.size, part_[r]);
  }

  const scisparse_attention_backward& p_;
  const scisparse_attention& f_;
  const int64_t first_head_;
  const Heads<T> q_, grad_;
  const Kept<R> kept_;
  const int64_t group_;
  RowBlock rows_;
  const int64_t width_;
  Buffer<R> buffer_;
  const BlockOf<R> weight_, slope_, sum_k_, sum_v_, part_;
};

}  // namespace
}  // namespace SCISPARSE_NAMESPACE
