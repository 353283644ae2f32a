// C interface of the CPU kernels `gather_matmul` and `edge_outer`.
//
// Arrays are dense and row-major. `row_ptr` [M + 1] counts the edges of the sites in order, `col` [E] holds the source of each
// edge, `tie` [E] the weight of each edge (null: edge e has weight e). Index arrays have 32 or 64 bits, as `col_bits` and
// `tie_bits` say (`tie_bits` is 0 with a null `tie`). Indices are not checked, but for the ends of `row_ptr`, 0 and `edges`: a caller
// passes a valid pattern.
//
// Letters: B batch, M sites, N sources, E edges, T weights, C channels in, O channels out. Any of them may be 0.
//
// dtype    0 float64, 1 float32, 2 bfloat16, 3 float16; 16-bit types accumulate in float32 and round to nearest even.
// isa      0 the best of this machine, 1 baseline, 2 AVX2 + FMA + F16C, 3 AVX-512 (F, BW, VL, DQ).
// fresh    whether memory of the output is new, so that its pages may have to be made.
// threads  largest number of threads; small problems use one. Results are the same bits for every number of threads.
//
// Both functions return 0, or 1 for an unsupported dtype, 2 for an isa that this machine has not, 3 when out of memory, 4 where `row_ptr`
// does not run from 0 to `edges`.
#pragma once

#include <cstdint>

extern "C" {

// The best instruction set of this machine, 1 to 3.
int scisparse_isa(void);

// y[b,i,o] = sum_{e in row i} sum_c x[b,col[e],c] * weight[t,c,o] with t = tie ? tie[e] : e
//
// x [B,N,C], y [B,M,O], weight [T,C,O]; with `transpose_weight` weight is [T,O,C] and weight[t,o,c] is read.
// The gradient to x is this function over the transposed pattern, with x = grad, tie = transposed edge -> edge, and
// `transpose_weight` = 1.
int scisparse_gather_matmul(int dtype, int isa, int64_t batch, int64_t sites, int64_t sources, int64_t channels_in,
                            int64_t channels_out, const void* x, const void* weight, const int64_t* row_ptr,
                            const void* col, int64_t edges, int col_bits, const void* tie, int tie_bits,
                            int transpose_weight, void* y, int threads);

// out[t,c,o] = sum_{e: tie[e]=t} sum_b x[b,col[e],c] * grad[b,row(e),o]; a weight that has no edge is 0.
//
// x [B,N,C], grad [B,M,O], out [T,C,O] with T = num_weights. The gradient of `gather_matmul` to its weight.
int scisparse_edge_outer(int dtype, int isa, int64_t batch, int64_t sites, int64_t sources, int64_t channels_in,
                         int64_t channels_out, int64_t num_weights, const void* x, const void* grad,
                         const int64_t* row_ptr, const void* col, int64_t edges, int col_bits, const void* tie,
                         int tie_bits, void* out, int fresh, int threads);
}
