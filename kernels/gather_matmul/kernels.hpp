// What the dispatcher in cpu.cpp passes to the kernels of one instruction set. Plain data only, as in types.hpp.
#pragma once

#include "../native/types.hpp"

namespace scisparse {

struct GatherMatmul {
  DType dtype;
  Pattern pattern;
  int64_t batch, channels_in, channels_out;
  const void *x, *weight;
  bool transposed;  // weight is [T, channels_out, channels_in]
  void* y;
  int64_t cache_bytes;  // memory for packed sources, at most, for each thread
  bool streaming;       // y is larger than the caches
  const void* ordered_weights;  // as reals, one for each edge in order; null where `weight` is to be read
  bool scattered, mixed;  // most edges, or more than a few, are of sites whose neighbours do not read neighbouring sources: known
                          // for single numbers alone
};

struct EdgeOuter {
  DType dtype;
  Pattern pattern;
  int64_t batch, channels_in, channels_out, num_weights;
  const void *x, *grad;
  void* out;
  bool streaming;  // out is larger than the caches, and its pages are there
};

// Numbers [rows, columns]: sources or sites of a batch, where edges carry single numbers.
struct Table {
  const void* data;
  DType dtype;
  int64_t rows, columns;
};

// Batch entries [first, first + lanes) of a table, transposed, as reals [columns, lanes]; lanes fill whole vectors.
struct Panel {
  int64_t first, lanes;
  void* values;
};

struct Kernels {
  int vector_bytes;
  Status (*gather_matmul)(const GatherMatmul&, int64_t first, int64_t last);
  Status (*edge_outer)(const EdgeOuter&, int64_t first, int64_t last);
  // Adds the outer products of edges with a tie in [first_tie, last_tie) to sums [last_tie - first_tie, C, O].
  Status (*edge_outer_sums)(const EdgeOuter&, int64_t first, int64_t last, int64_t first_tie, int64_t last_tie, void* sums);
  // out[k] = sums[0][k] + sums[1][k] + ... for k in [first, last), with `count` sums in a part
  void (*add_sums)(DType, int64_t parts, int64_t count, const void* sums, void* out, int64_t first, int64_t last);
  // Columns [first, last) of a panel; entries beyond the batch that share a vector with others are 0.
  void (*fill_panel)(const Table&, const Panel&, int64_t first, int64_t last);
  // weights[e] = the weight of edge e, as a real, for e in [first, last)
  void (*gather_weights)(const GatherMatmul&, int64_t first, int64_t last, void* weights);
  // The batch entries of a panel of x.
  Status (*gather_panel)(const GatherMatmul&, const Panel& x, int64_t first, int64_t last);
  // sums[e] = the product of edge e, summed over the batch entries of a panel of x; added to what is there if `add`.
  Status (*outer_panel)(const EdgeOuter&, const Panel& x, int64_t first, int64_t last, bool add, void* sums);
};

// Null where a build leaves the unit out.
extern const Kernels baseline_kernels;
extern const Kernels avx2_kernels __attribute__((weak)), avx512_kernels __attribute__((weak));

}  // namespace scisparse
