// What the dispatcher in cpu.cpp passes to the kernel of one instruction set.
#pragma once

#include "../native/types.hpp"
#include "cpu.hpp"

namespace scisparse {

struct LaplacianKernels {
  // Rows [first, last).
  Status (*rows)(const scisparse_laplacian_problem&, int64_t first, int64_t last);
};

// Null where a build leaves the unit out.
extern const LaplacianKernels baseline_laplacian;
extern const LaplacianKernels avx2_laplacian __attribute__((weak)), avx512_laplacian __attribute__((weak));

}  // namespace scisparse
