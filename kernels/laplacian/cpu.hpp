// C interface of the CPU kernel of graph Laplacians: differences between rows that are coupled.
//
// Arrays are dense and row-major; dtype (float64 and float32 alone), isa, threads and results are those of gather_matmul/cpu.hpp.
#pragma once

#include <cstdint>

extern "C" {

// y[i,c] = sum_e value[e] * (x[i,c] - x[col[e],c]) over the couplings e of row i; where y is null
// energy[i] = sum_e value[e] * sum_c (x[i,c] - x[col[e],c])^2
struct scisparse_laplacian_problem {
  int64_t dtype, rows, width, count;
  const int64_t* row_ptr;
  const void* col;
  int64_t col_bits;
  const void *value, *x;  // [E], [T,C]
  void *y, *energy;       // [T,C], [T]
};

int scisparse_laplacian(const scisparse_laplacian_problem* problem, int isa, int threads);
}
