// The kernels for AVX-512.
#if defined(__x86_64__)
#include <immintrin.h>
#include <stdlib.h>
#include <string.h>

#include <cstdint>
#include <type_traits>
#include <utility>

#define SCISPARSE_ISA 3
#define SCISPARSE_NAMESPACE scisparse_avx512
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl"))), apply_to = function)
#else
#pragma GCC target("avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl")
#endif
#include "../gather_matmul/unit.hpp"
#include "../graph_attention/unit.hpp"
#include "../laplacian/unit.hpp"
#if defined(__clang__)
#pragma clang attribute pop
#endif

namespace scisparse {
extern const Kernels avx512_kernels = scisparse_avx512::kernels;
extern const AttentionKernels avx512_attention = scisparse_avx512::attention;
extern const LaplacianKernels avx512_laplacian = scisparse_avx512::laplacian;
}
#endif
