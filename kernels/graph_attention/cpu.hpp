// C interface of the CPU kernels of attention over edges, and of the two products that it is made of.
//
// Arrays are dense and row-major; edges as in gather_matmul/cpu.hpp. dtype, isa, threads and results are those of that interface.
// "Reals" are float64 for dtype 0, else float32: what belongs to edges, and sums that softmax needs, are kept in them.
//
// Letters: B batch, M sites, N sources, E edges, H heads, G heads of the sources (H is a multiple), D width of queries and keys,
// V width of values, A numbers that an edge carries, P room for them at a site.
#pragma once

#include <cstdint>

extern "C" {

struct scisparse_edges {
  int64_t sites, sources, count;
  const int64_t* row_ptr;
  const void* col;
  int64_t col_bits;
  const void* tie;  // place of each edge in arrays of edges; null: edge e is at e
  int64_t tie_bits;
};

// score[b,e,h] = scale * q[b,i,h] . k[b,j,g] + edge_q[b,i,h] . edge_attr[e] + bias[b,e,h]
// p = exp(score - lse[b,i,h]), a softmax over the edges of site i
// out[b,i,h] = sum_e p v[b,j,g], edge_out[b,i,h] = sum_e p edge_attr[e]
//
// with i the site and j the source of e, and g = h / (H / G). A site without edges, or with scores of -infinity alone, gets 0.
struct scisparse_attention {
  int64_t dtype, batch, heads, source_heads, width, value_width, edge_width, edge_room;
  double scale;
  scisparse_edges edges;
  const void *q, *k, *v;              // [B,M,H,D], [B,N,G,D], [B,N,G,V]
  const void *edge_q, *edge_attr;     // [B,M,H,P], of which A are read, and [E,A]; null with edge_width 0
  const void* bias;                   // reals; null: none
  int64_t bias_batch, bias_edge, bias_head;  // steps between its numbers, 0 where it is shared
  void *out, *edge_out;               // [B,M,H,V], [B,M,H,P], 0 behind A
  void* lse;                          // reals [B,M,H]; written by the forward pass
};

struct scisparse_attention_backward {
  scisparse_attention forward;
  scisparse_edges transposed;         // its tie: the edge, in the order of the rows
  const void *grad, *grad_edge;       // of out and edge_out; the latter null for 0
  void *grad_q, *grad_k, *grad_v;
  void* grad_edge_q;                  // 0 behind A; null with edge_width 0
  void* grad_edge_attr;               // reals [E,A], added to; null: not wanted
  void* grad_bias;                    // reals with the steps of bias, added to; null: not wanted
  void* room;                         // for 2 reals of every edge, for H / G heads of one batch entry at least; what fits is taken at once
  int64_t room_bytes;
};

// y[b,i,h] = sum_e value[b,e,h] * x[b,j,h]: value reals, x [B,N,H,D], y [B,M,H,D]
struct scisparse_spmm_problem {
  int64_t dtype, batch, heads, width;
  int64_t value_batch, value_edge, value_head;  // steps between its numbers, 0 where it is shared
  scisparse_edges edges;
  const void *value, *x;
  void* y;
};

// value[b,e,h] = x[b,i,h] . z[b,j,h]: x [B,M,H,D], z [B,N,H,D], value reals [B,E,H]
struct scisparse_sddmm_problem {
  int64_t dtype, batch, heads, width;
  scisparse_edges edges;
  const void *x, *z;
  void* value;
};

// The product value[b,e,h] * sources[b,j,h,d] that is largest in its row, or smallest: the first of several, or the first NaN; 0 of
// nothing. With the choice k made, f = sum_(b,i,h,d) value[b,k,h] * sites[b,i,h,d] * sources[b,j(k),h,d] is linear in all three.
struct scisparse_choice {
  int64_t dtype, batch, heads, width, smallest;
  int64_t value_batch, value_edge, value_head;  // steps between its numbers, 0 where it is shared
  scisparse_edges edges, transposed;            // the tie of the latter: the edge, in the order of the rows
  void* value;                                  // reals
  void *sites, *sources;                        // [B,M,H,D], [B,N,H,D]
  int32_t* choice;                              // [B,M,H,D], counted from the first edge of the row; -1 of nothing
};

// to = the softmax of `from` over the edges of each site if grad is null, else from * (grad - sum_e from * grad), its derivative where
// `from` are the weights. All reals [B,E,H]; of the edges, rows alone are read.
struct scisparse_softmax {
  int64_t dtype, batch, heads;
  scisparse_edges edges;
  const void *from, *grad;
  void* to;
};

// 0, or a status of gather_matmul/cpu.hpp.
int scisparse_graph_attention(const scisparse_attention* problem, int isa, int threads);
int scisparse_graph_attention_backward(const scisparse_attention_backward* problem, int isa, int threads);
int scisparse_spmm(const scisparse_spmm_problem* problem, int isa, int threads);
int scisparse_sddmm(const scisparse_sddmm_problem* problem, int isa, int threads);
// Writes sites and choice.
int scisparse_choose(const scisparse_choice* problem, int isa, int threads);
// Writes sources, or value: the derivative of f by it.
int scisparse_choice_sources(const scisparse_choice* problem, int isa, int threads);
int scisparse_choice_edges(const scisparse_choice* problem, int isa, int threads);
// dtype is that of reals.
int scisparse_segment_softmax(const scisparse_softmax* problem, int isa, int threads);
}
