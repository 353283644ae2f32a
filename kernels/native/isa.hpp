// Instruction sets: 1 baseline, 2 AVX2 + FMA + F16C, 3 AVX-512 (F, BW, VL, DQ).
#pragma once

namespace {

bool has_isa(int isa) {
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  if (isa == 2) return avx2;
  if (isa == 3)
    return avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
#endif
  return isa == 1;
}

int best_isa() { return has_isa(3) ? 3 : has_isa(2) ? 2 : 1; }

// The kernels for an instruction set, 0 for the best, or null if the build or the machine lacks it.
template <class Kernels>
const Kernels* kernels_for(int isa, const Kernels* baseline, const Kernels* avx2, const Kernels* avx512) {
  if (isa == 0) isa = best_isa();
  if (!has_isa(isa)) return nullptr;
  return isa == 3 ? avx512 : isa == 2 ? avx2 : baseline;
}

}  // namespace
