// Attention over the edges of sites, forward and backward.
//
// The forward pass keeps the scores of a row in a buffer: softmax then runs over whole vectors, and values are read once. The
// backward pass over sites makes the weights p and the gradients of the scores of all edges; that over sources sums them up.
#pragma once

#include "problem.hpp"

namespace SCISPARSE_NAMESPACE {
namespace {

// What both passes over sites have in common: the scores of a row.
template <class T>
class Scores {
 public:
  using R = Real<T>;

  Scores(const scisparse_attention& p, int64_t first, int64_t last)
      : q{p.q, p.edges.sites, p.heads, p.width}, k{p.k, p.edges.sources, p.source_heads, p.width},
        v{p.v, p.edges.sources, p.source_heads, p.value_width}, edge_q{p.edge_q, p.edges.sites, p.heads, p.edge_width},
        attr{static_cast<const T*>(p.edge_attr), p.edge_width}, row(p.edges, first, last), p_(p),
        group_(p.heads / p.source_heads) {}

  explicit operator bool() const { return bool(row); }
  int64_t source_head(int64_t h) const { return h / group_; }

  // Scores of head h at site i, whose edges `row` has read.
  SCISPARSE_INLINE void read(int64_t b, int64_t i, int64_t h, R* score, R* spare) const {
    const int64_t count = row.count();
    dots(q.at(b, i, h), k.head(b, source_head(h)), row.sources(), count, p_.width, score);
    multiply(score, count, R(p_.scale));
    if (p_.edge_width) {
      dots(edge_q.at(b, i, h), attr, row.places(), count, p_.edge_width, spare);
      add(score, count, spare);
    }
    if (p_.bias) {
      const R* bias = static_cast<const R*>(p_.bias) + b * p_.bias_batch + h * p_.bias_head;
      const int64_t* place = row.places();
      for (int64_t j = 0; j < count; j++) score[j] += bias[place[j] * p_.bias_edge];
    }
  }

  const Heads<T> q, k, v, edge_q;
  const Array<T> attr;
  Row row;

 private:
  const scisparse_attention& p_;
  int64_t group_;
};

template <class T>
struct AttentionForward {
  using R = Real<T>;

  static Status run(const scisparse_attention& p, int64_t first, int64_t last) {
    Scores<T> scores(p, first, last);
    Buffer<R> buffer(2 * scores.row.room() + max_of(p.value_width, p.edge_width));
    if (!scores || !buffer) return Status::no_memory;
    R *score = buffer.get(), *spare = score + scores.row.room(), *sum = spare + scores.row.room();
    for (int64_t b = 0; b < p.batch; b++)
      for (int64_t i = first; i < last; i++) {
        scores.row.read(i);
        for (int64_t h = 0; h < p.heads; h++) {
          scores.read(b, i, h, score, spare);
          head(p, scores, {b, i, h}, score, sum);
        }
      }
    return Status::ok;
  }

 private:
  struct Place {
    int64_t b, i, h;
  };

  static void head(const scisparse_attention& p, const Scores<T>& scores, Place at, R* score, R* sum) {
    const int64_t count = scores.row.count(), place = (at.b * p.edges.sites + at.i) * p.heads + at.h;
    const R none = -R(__builtin_inf()), most = largest(score, count);
    // Of -infinity alone: nothing; where there is NaN as well, the sum is NaN.
    const R sum_of = exponentials(score, count, most == none ? R(0) : most);
    const bool empty = sum_of == 0;
    reals<R>(p.lse)[place] = empty ? none : most == none ? sum_of : most + log_of(sum_of);
    if (!empty) multiply(score, count, 1 / sum_of);
    sums(score, scores.v.head(at.b, scores.source_head(at.h)), scores.row.sources(), count, p.value_width, sum, false);
    write(sum, p.value_width, static_cast<T*>(p.out) + place * p.value_width);
    if (!p.edge_width) return;
    sums(score, scores.attr, scores.row.places(), count, p.edge_width, sum, false);
    write(sum, p.edge_width, static_cast<T*>(p.edge_out) + place * p.edge_width);
  }
};

template <class T>
struct AttentionSites {
  using R = Real<T>;

  static Status run(const scisparse_attention_backward& p, const EdgeWorkspace& space, int64_t first, int64_t last) {
    AttentionSites kernel(p, space, first, last);
    if (!kernel.scores_ || !kernel.buffer_) return Status::no_memory;
    for (int64_t b = space.first_batch; b < space.last_batch; b++)
      for (int64_t i = first; i < last; i++) {
        kernel.scores_.row.read(i);
        for (int64_t h = 0; h < p.forward.heads; h++) kernel.head(b, i, h);
      }
    return Status::ok;
  }

 private:
  AttentionSites(const scisparse_attention_backward& p, const EdgeWorkspace& space, int64_t first, int64_t last)
      : p_(p), f_(p.forward), space_(space), scores_(f_, first, last), room_(scores_.row.room()),
        grad_{p.grad, f_.edges.sites, f_.heads, f_.value_width}, grad_edge_{p.grad_edge, f_.edges.sites, f_.heads, f_.edge_width},
        buffer_(3 * room_ + max_of(f_.width, f_.edge_width)) {}

  void head(int64_t b, int64_t i, int64_t h) {
    const Row& row = scores_.row;
    const int64_t count = row.count(), site = (b * f_.edges.sites + i) * f_.heads + h;
    R *weight = buffer_.get(), *slope = weight + room_, *spare = slope + room_, *sum = spare + room_;
    const R lse = static_cast<const R*>(f_.lse)[site];
    scores_.read(b, i, h, weight, spare);
    const R none = -R(__builtin_inf());
    // The sum is 1 but for the rounding of lse, which is coarse where scores are large; 0 of nothing.
    const R sum_of = exponentials(weight, count, lse == none ? R(0) : lse);
    if (sum_of != 0) multiply(weight, count, 1 / sum_of);
    dots(grad_.at(b, i, h), scores_.v.head(b, scores_.source_head(h)), row.sources(), count, f_.value_width, slope);
    if (p_.grad_edge) {
      dots(grad_edge_.at(b, i, h), scores_.attr, row.places(), count, f_.edge_width, spare);
      add(slope, count, spare);
    }
    softmax_gradient(weight, slope, count);
    if (p_.grad_bias) add_to_bias(b, h, slope);
    if (p_.grad_edge_attr) add_to_attr(b, i, h, weight, slope);
    if (f_.edge_width) {
      sums(slope, scores_.attr, row.places(), count, f_.edge_width, sum, false);
      write(sum, f_.edge_width, static_cast<T*>(p_.grad_edge_q) + site * f_.edge_width);
    }
    multiply(slope, count, R(f_.scale));
    keep(b, h, weight, slope);
    sums(slope, scores_.k.head(b, scores_.source_head(h)), row.sources(), count, f_.width, sum, false);
    write(sum, f_.width, static_cast<T*>(p_.grad_q) + site * f_.width);
  }

  void add_to_bias(int64_t b, int64_t h, const R* slope) const {
    R* to = reals<R>(p_.grad_bias) + b * f_.bias_batch + h * f_.bias_head;
    const int64_t* place = scores_.row.places();
    for (int64_t j = 0; j < scores_.row.count(); j++) to[place[j] * f_.bias_edge] += slope[j];
  }

  // Weights and slopes of the edges, for the sources to sum up.
  void keep(int64_t b, int64_t h, const R* weight, const R* slope) const {
    const int64_t first = (b - space_.first_batch) * f_.edges.count * f_.heads + h;
    R *weights = reals<R>(space_.weights) + first, *slopes = reals<R>(space_.score_grads) + first;
    const int64_t* place = scores_.row.places();
    for (int64_t j = 0; j < scores_.row.count(); j++) {
      weights[place[j] * f_.heads] = weight[j];
      slopes[place[j] * f_.heads] = slope[j];
    }
  }

  void add_to_attr(int64_t b, int64_t i, int64_t h, const R* weight, const R* slope) const {
    const T *q = scores_.edge_q.at(b, i, h), *grad = p_.grad_edge ? grad_edge_.at(b, i, h) : nullptr;
    const int64_t* place = scores_.row.places();
    for (int64_t j = 0; j < scores_.row.count(); j++) {
      R* to = reals<R>(p_.grad_edge_attr) + place[j] * f_.edge_width;
      for (int64_t a = 0; a < f_.edge_width; a++) to[a] += slope[j] * widen_one(q[a]) + (grad ? weight[j] * widen_one(grad[a]) : R(0));
    }
  }

  const scisparse_attention_backward& p_;
  const scisparse_attention& f_;
  const EdgeWorkspace& space_;
  Scores<T> scores_;
  int64_t room_;
  Heads<T> grad_, grad_edge_;
  Buffer<R> buffer_;
};

template <class T>
struct AttentionSources {
  using R = Real<T>;

  static Status run(const scisparse_attention_backward& p, const EdgeWorkspace& space, int64_t first, int64_t last) {
    const scisparse_attention& f = p.forward;
    const int64_t sites = f.edges.sites, group = f.heads / f.source_heads;
    const Heads<T> q{f.q, sites, f.heads, f.width}, grad{p.grad, sites, f.heads, f.value_width};
    Row row(p.transposed, first, last);
    Buffer<R> buffer(row.room() + max_of(f.width, f.value_width));
    if (!row || !buffer) return Status::no_memory;
    R *value = buffer.get(), *sum = value + row.room();
    for (int64_t b = space.first_batch; b < space.last_batch; b++) {
      const int64_t edges = (b - space.first_batch) * f.edges.count * f.heads;
      const auto source = [&](void* kept, const Heads<T>& heads, int64_t j, int64_t g, void* to) {
        for (int64_t h = g * group; h < (g + 1) * group; h++) {
          const R* from = reals<R>(kept) + edges + h;
          for (int64_t e = 0; e < row.count(); e++) value[e] = from[row.places()[e] * f.heads];
          sums(value, heads.head(b, h), row.sources(), row.count(), heads.size, sum, h > g * group);
        }
        write(sum, heads.size, static_cast<T*>(to) + ((b * p.transposed.sites + j) * f.source_heads + g) * heads.size);
      };
      for (int64_t j = first; j < last; j++) {
        row.read(j);
        for (int64_t g = 0; g < f.source_heads; g++) {
          source(space.score_grads, q, j, g, p.grad_k);
          source(space.weights, grad, j, g, p.grad_v);
        }
      }
    }
    return Status::ok;
  }
};

}  // namespace
}  // namespace SCISPARSE_NAMESPACE
