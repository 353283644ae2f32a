// What the C interface hands to the kernels of every operator. Plain data only: an inline function here would be compiled for several
// instruction sets, and the linker would keep any one of them.
#pragma once

#include <cstdint>

namespace scisparse {

enum class DType { float64, float32, bfloat16, float16 };

enum Status { ok = 0, bad_dtype = 1, bad_isa = 2, no_memory = 3, bad_rows = 4 };

struct Indices {
  const void* data;
  int bits;  // 32 or 64; 0: value e is e itself
};

struct Pattern {
  int64_t sites, sources;
  const int64_t* row_ptr;
  Indices col, tie;
};

// Each kernel does sites [first, last); `first` is a multiple of site_block.
constexpr int64_t site_block = 16;

}  // namespace scisparse
