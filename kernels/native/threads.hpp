// How dispatchers divide work among threads, and asks for memory.
#pragma once

#include <sys/mman.h>

#include "types.hpp"

namespace {

using namespace scisparse;

// Not all that include this use all of it.
[[maybe_unused]] int64_t size_of(DType dtype) { return dtype == DType::float64 ? 8 : dtype == DType::float32 ? 4 : 2; }
int64_t size_of_real(DType dtype) { return dtype == DType::float64 ? 8 : 4; }

[[maybe_unused]] int64_t edges_of(const Pattern& pattern) {
  return pattern.sites == 0 ? 0 : pattern.row_ptr[pattern.sites] - pattern.row_ptr[0];
}

// The first site of part `part` of `parts` with nearly equal numbers of edges and sites; a multiple of site_block.
int64_t first_site(const Pattern& pattern, int64_t part, int64_t parts) {
  if (part >= parts) return pattern.sites;
  const int64_t* row_ptr = pattern.row_ptr;
  const auto work = [&](int64_t i) { return row_ptr[i] - row_ptr[0] + i; };
  const int64_t goal = work(pattern.sites) / parts * part;
  int64_t low = 0, high = pattern.sites;
  while (low < high) {
    const int64_t middle = low + (high - low) / 2;
    if (work(middle) < goal)
      low = middle + 1;
    else
      high = middle;
  }
  return low / site_block * site_block;
}

// Multiply-adds or numbers moved that pay for the start of a thread: in vectors, and one at a time.
constexpr int64_t least_work = 1 << 16, least_scattered = 1 << 14;

int64_t threads_for(int64_t work, int threads, int64_t least = least_work) {
  const int64_t useful = work / least;
  return useful < 1 || threads < 1 ? 1 : useful < threads ? useful : threads;
}

// Runs task(part) for each of `parts` on as many threads; the largest status.
template <class Task>
Status in_parallel(int64_t parts, int64_t threads, const Task& task) {
  int worst = ok;
  if (threads <= 1) {
    for (int64_t part = 0; part < parts; part++) {
      const int status = task(part);
      worst = status > worst ? status : worst;
    }
    return Status(worst);
  }
#pragma omp parallel for num_threads(int(threads)) schedule(dynamic, 1) reduction(max : worst)
  for (int64_t part = 0; part < parts; part++) {
    const int status = task(part);
    worst = status > worst ? status : worst;
  }
  return Status(worst);
}

// Fresh memory of a large output costs one page fault for 2 MB in place of 512.
void ask_for_huge_pages(void* data, int64_t bytes) {
#if defined(MADV_HUGEPAGE)
  constexpr uintptr_t page = uintptr_t(2) << 20;
  const uintptr_t begin = (reinterpret_cast<uintptr_t>(data) + page - 1) / page * page;
  const uintptr_t end = (reinterpret_cast<uintptr_t>(data) + uintptr_t(bytes)) / page * page;
  if (end > begin + 4 * page) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#else
  (void)data, (void)bytes;
#endif
}

}  // namespace
