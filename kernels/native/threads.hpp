// How dispatchers divide work among threads, and asks for memory.
#pragma once

#include <sys/mman.h>
#include <time.h>

#include <atomic>

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

constexpr int64_t huge_page = int64_t(2) << 20;

// The whole huge pages of a large output. In fresh memory each costs one page fault, in place of 512.
class HugePages {
 public:
  HugePages(void* data, int64_t bytes) {
#if defined(MADV_HUGEPAGE) && defined(MADV_NOHUGEPAGE)
    const uintptr_t begin = reinterpret_cast<uintptr_t>(data), page = uintptr_t(huge_page);
    begin_ = (begin + page - 1) / page * page;
    end_ = (begin + uintptr_t(bytes)) / page * page;
    wanted_ = end_ > begin_ + 4 * page && advise(MADV_HUGEPAGE);
#else
    (void)data, (void)bytes;
#endif
  }

  // Takes the pages that begin in [first, last), which will be written soon. Where one is slow to come, the rest will be small: on
  // virtual machines whose host has taken memory back, small ones come sooner.
  void take(void* first, void* last) {
#if defined(MADV_HUGEPAGE) && defined(MADV_NOHUGEPAGE)
    constexpr int64_t slow = 1500000;  // nanoseconds; 2 MB of zeros take a fifth of that at most
    const uintptr_t page = uintptr_t(huge_page), end = min_of(reinterpret_cast<uintptr_t>(last), end_);
    uintptr_t p = (max_of(reinterpret_cast<uintptr_t>(first), begin_) + page - 1) / page * page;
    for (; wanted_ && p < end; p += page) {
      const int64_t start = own_time();
      *reinterpret_cast<volatile char*>(p) = 0;
      if (own_time() - start > slow && wanted_.exchange(false)) advise(MADV_NOHUGEPAGE);
    }
#else
    (void)first, (void)last;
#endif
  }

 private:
  // Nanoseconds of this thread, without those of others that share its core.
  static int64_t own_time() {
    timespec now;
    return clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now) == 0 ? now.tv_sec * int64_t(1000000000) + now.tv_nsec : 0;
  }
  bool advise(int advice) const { return madvise(reinterpret_cast<void*>(begin_), end_ - begin_, advice) == 0; }
  static uintptr_t min_of(uintptr_t a, uintptr_t b) { return a < b ? a : b; }
  static uintptr_t max_of(uintptr_t a, uintptr_t b) { return a > b ? a : b; }

  uintptr_t begin_ = 0, end_ = 0;
  std::atomic<bool> wanted_{false};
};

// For what is written in no order.
void ask_for_huge_pages(void* data, int64_t bytes) { HugePages(data, bytes); }

}  // namespace
