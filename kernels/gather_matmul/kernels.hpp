// What the dispatcher in cpu.cpp passes to the kernels of one instruction set. Plain data only: an inline function here would be
// compiled for several instruction sets, and the linker would keep any one of them.
#pragma once

#include <cstdint>

namespace scisparse {

enum class DType { float64, float32, bfloat16, float16 };

enum Status { ok = 0, bad_dtype = 1, bad_isa = 2, no_memory = 3 };

struct Indices {
  const void* data;
  int bits;  // 32 or 64; 0: value e is e itself
};

struct Pattern {
  int64_t sites, sources;
  const int64_t* row_ptr;
  Indices col, tie;
};

struct GatherMatmul {
  DType dtype;
  Pattern pattern;
  int64_t batch, channels_in, channels_out;
  const void *x, *weight;
  bool transposed;  // weight is [T, channels_out, channels_in]
  void* y;
  int64_t cache_bytes;  // memory for packed sources, at most, for each thread
  bool streaming;       // y is larger than the caches
};

struct EdgeOuter {
  DType dtype;
  Pattern pattern;
  int64_t batch, channels_in, channels_out, num_weights;
  const void *x, *grad;
  void* out;
};

// Each kernel does sites [first, last); `first` is a multiple of site_block.
constexpr int64_t site_block = 16;

struct Kernels {
  Status (*gather_matmul)(const GatherMatmul&, int64_t first, int64_t last);
  Status (*edge_outer)(const EdgeOuter&, int64_t first, int64_t last);
  // Adds the outer products of edges with a tie in [first_tie, last_tie) to sums [last_tie - first_tie, C, O].
  Status (*edge_outer_sums)(const EdgeOuter&, int64_t first, int64_t last, int64_t first_tie, int64_t last_tie, void* sums);
  // out[k] = sums[0][k] + sums[1][k] + ... for k in [first, last), with `count` sums in a part
  void (*add_sums)(DType, int64_t parts, int64_t count, const void* sums, void* out, int64_t first, int64_t last);
};

}  // namespace scisparse
