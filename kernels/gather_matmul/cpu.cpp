// The C interface of gather_matmul: chooses the instruction set and divides the work among threads.
#include "cpu.hpp"

#include <cstdlib>
#include <cstring>

#include "../native/isa.hpp"
#include "panel_tasks.hpp"

namespace {

using namespace scisparse;

const Kernels* kernels_of(int isa) { return kernels_for(isa, &baseline_kernels, &avx2_kernels, &avx512_kernels); }

bool larger_than_caches(int64_t bytes) { return bytes > int64_t(16) << 20; }

// Memory for packed sources in each thread: little beside the tensors, and no more than a few rows of a large grid need. It must
// not depend on the number of threads, as results may depend on it in the last bit.
int64_t cache_bytes_for(int64_t bytes) {
  constexpr int64_t least = 256 << 10, most = 4 << 20;
  return bytes / 64 < least ? least : bytes / 64 < most ? bytes / 64 : most;
}

Status gather_matmul(const GatherMatmul& p, const Kernels& kernels, int threads) {
  const int64_t outputs = p.batch * p.pattern.sites * p.channels_out;
  if (outputs == 0) return ok;
  const int64_t edges = edges_of(p.pattern);
  ask_for_huge_pages(p.y, outputs * size_of(p.dtype));
  if (edges == 0 || p.channels_in == 0) {
    std::memset(p.y, 0, size_t(outputs * size_of(p.dtype)));
    return ok;
  }
  if (const int64_t lanes = p.mixed && p.batch >= 2 ? panel_lanes(kernels, p.dtype, p.pattern, p.batch) : 0)
    return gather_in_panels(p, kernels, lanes, threads);
  const int64_t work = edges * p.channels_in * p.channels_out * p.batch + outputs;
  const int64_t parts = threads_for(work, threads, p.scattered ? least_scattered : least_work);
  return in_parallel(parts, parts, [&](int64_t part) {
    return kernels.gather_matmul(p, first_site(p.pattern, part, parts), first_site(p.pattern, part + 1, parts));
  });
}

// Few weights: parts of the sites add to sums of their own, which are added in order. The parts depend on the sizes alone.
Status edge_outer_by_sites(const EdgeOuter& p, const Kernels& kernels, int64_t parts, int64_t threads) {
  const int64_t count = p.num_weights * p.channels_in * p.channels_out;
  void* sums = std::calloc(size_t(parts * count), size_of_real(p.dtype));
  if (!sums) return no_memory;
  const int64_t real = size_of_real(p.dtype);
  Status status = in_parallel(parts, threads, [&](int64_t part) {
    return kernels.edge_outer_sums(p, first_site(p.pattern, part, parts), first_site(p.pattern, part + 1, parts), 0,
                                   p.num_weights, static_cast<char*>(sums) + part * count * real);
  });
  const int64_t pieces = threads_for(parts * count, int(threads));
  in_parallel(pieces, pieces, [&](int64_t k) {
    kernels.add_sums(p.dtype, parts, count, sums, p.out, count * k / pieces, count * (k + 1) / pieces);
    return ok;
  });
  std::free(sums);
  return status;
}

// Many weights: each thread goes through all edges and takes those of its own ties.
Status edge_outer_by_ties(const EdgeOuter& p, const Kernels& kernels, int64_t threads) {
  const int64_t real = size_of_real(p.dtype), block = p.channels_in * p.channels_out;
  const int64_t bytes = p.num_weights * block * real;
  const bool in_place = size_of(p.dtype) == real;
  char* sums = static_cast<char*>(in_place ? p.out : std::malloc(size_t(bytes)));
  if (!sums) return no_memory;
  Status status = in_parallel(threads, threads, [&](int64_t part) {
    const int64_t first = p.num_weights * part / threads, last = p.num_weights * (part + 1) / threads;
    std::memset(sums + first * block * real, 0, size_t((last - first) * block * real));
    const Status status = kernels.edge_outer_sums(p, 0, p.pattern.sites, first, last, sums + first * block * real);
    if (!in_place) kernels.add_sums(p.dtype, 1, 0, sums, p.out, first * block, last * block);
    return status;
  });
  if (!in_place) std::free(sums);
  return status;
}

Status edge_outer(const EdgeOuter& p, const Kernels& kernels, bool fresh, int threads) {
  const int64_t block = p.channels_in * p.channels_out, numbers = p.num_weights * block;
  if (numbers == 0) return ok;
  const int64_t edges = edges_of(p.pattern);
  HugePages pages(p.out, fresh ? numbers * size_of(p.dtype) : 0);
  if (edges == 0 || p.batch == 0) {
    std::memset(p.out, 0, size_t(numbers * size_of(p.dtype)));
    return ok;
  }
  if (p.pattern.tie.bits == 0 && block == 1 && p.batch >= 4 && neighbourly_of_16(p.pattern) < most_of_16)
    if (const int64_t lanes = panel_lanes(kernels, p.dtype, p.pattern, p.batch)) return outer_in_panels(p, kernels, lanes, threads);
  const int64_t useful = threads_for(edges * block * p.batch + numbers, threads);
  if (p.pattern.tie.bits == 0) {
    // Large gradients a huge page at a time, which is in the caches when it is written.
    const int64_t bytes = block * size_of(p.dtype), pages_of_out = numbers * size_of(p.dtype) / huge_page;
    const int64_t parts = pages_of_out > 8 ? pages_of_out : useful;
    return in_parallel(parts, useful, [&](int64_t part) {
      const int64_t first = first_site(p.pattern, part, parts), last = first_site(p.pattern, part + 1, parts);
      char* out = static_cast<char*>(p.out);
      pages.take(out + p.pattern.row_ptr[first] * bytes, out + p.pattern.row_ptr[last] * bytes);
      return kernels.edge_outer(p, first, last);
    });
  }
  constexpr int64_t most_parts = 64, most_numbers = 1 << 20;
  const int64_t fitting = most_numbers / numbers, parts = fitting < most_parts ? fitting : most_parts;
  return parts >= 4 ? edge_outer_by_sites(p, kernels, parts, useful) : edge_outer_by_ties(p, kernels, useful);
}

}  // namespace

extern "C" int scisparse_isa(void) { return best_isa(); }

extern "C" int scisparse_gather_matmul(int dtype, int isa, int64_t batch, int64_t sites, int64_t sources, int64_t channels_in,
                                       int64_t channels_out, const void* x, const void* weight, const int64_t* row_ptr,
                                       const void* col, int64_t edges, int col_bits, const void* tie, int tie_bits,
                                       int transpose_weight, void* y, int threads) {
  const Kernels* kernels = kernels_of(isa);
  if (dtype < 0 || dtype > 3) return bad_dtype;
  if (!kernels) return bad_isa;
  if (row_ptr[0] != 0 || row_ptr[sites] != edges) return bad_rows;
  GatherMatmul p = {};
  p.dtype = DType(dtype);
  p.pattern = {sites, sources, row_ptr, {col, col_bits}, {tie, tie ? tie_bits : 0}};
  p.batch = batch;
  p.channels_in = channels_in;
  p.channels_out = channels_out;
  p.x = x;
  p.weight = weight;
  p.transposed = transpose_weight != 0;
  p.y = y;
  const int64_t y_bytes = batch * sites * channels_out * size_of(p.dtype);
  const int64_t x_bytes = batch * sources * channels_in * size_of(p.dtype);
  p.streaming = larger_than_caches(y_bytes);
  p.cache_bytes = cache_bytes_for(x_bytes + y_bytes + edges_of(p.pattern) * channels_in * channels_out * size_of(p.dtype));
  if (channels_in == 1 && channels_out == 1) {
    const int neighbourly = neighbourly_of_16(p.pattern);
    p.scattered = neighbourly <= 8;
    p.mixed = neighbourly < most_of_16;
  }
  return gather_matmul(p, *kernels, threads);
}

extern "C" int scisparse_edge_outer(int dtype, int isa, int64_t batch, int64_t sites, int64_t sources, int64_t channels_in,
                                    int64_t channels_out, int64_t num_weights, const void* x, const void* grad,
                                    const int64_t* row_ptr, const void* col, int64_t edges, int col_bits, const void* tie,
                                    int tie_bits, void* out, int fresh, int threads) {
  const Kernels* kernels = kernels_of(isa);
  if (dtype < 0 || dtype > 3) return bad_dtype;
  if (!kernels) return bad_isa;
  if (row_ptr[0] != 0 || row_ptr[sites] != edges) return bad_rows;
  EdgeOuter p = {};
  p.dtype = DType(dtype);
  p.pattern = {sites, sources, row_ptr, {col, col_bits}, {tie, tie ? tie_bits : 0}};
  p.batch = batch;
  p.channels_in = channels_in;
  p.channels_out = channels_out;
  p.num_weights = num_weights;
  p.x = x;
  p.grad = grad;
  p.out = out;
  // Pages that are new are in the caches when the system has zeroed them.
  p.streaming = !fresh && !tie && larger_than_caches(num_weights * channels_in * channels_out * size_of(p.dtype));
  return edge_outer(p, *kernels, fresh != 0, threads);
}
