// The kernels for AVX2 with FMA and F16C.
#if defined(__x86_64__)
#include <immintrin.h>
#include <stdlib.h>
#include <string.h>

#include <cstdint>
#include <type_traits>
#include <utility>

#define SCISPARSE_ISA 2
#define SCISPARSE_NAMESPACE scisparse_avx2
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC target("avx2,fma,f16c")
#endif
#include "../gather_matmul/unit.hpp"
#include "../graph_attention/unit.hpp"
#include "../laplacian/unit.hpp"
#if defined(__clang__)
#pragma clang attribute pop
#endif

namespace scisparse {
extern const Kernels avx2_kernels = scisparse_avx2::kernels;
extern const AttentionKernels avx2_attention = scisparse_avx2::attention;
extern const LaplacianKernels avx2_laplacian = scisparse_avx2::laplacian;
}
#endif
