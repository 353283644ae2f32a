// Single numbers on edges (C = O = 1) whose sources are scattered, some of them at least: when panels of the batch are used, and by
// which threads.
//
// Which panels there are depends on the sizes alone, and no sum runs over more than one panel of y or one range of edges, so that
// results are the same bits for every number of threads.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdlib>

#include "../native/threads.hpp"
#include "kernels.hpp"

namespace {

// Below so many, what does not follow its neighbours costs more than panels do.
constexpr int most_of_16 = 14;

// How many of 16 groups of neighbouring sites read neighbouring sources. They are taken where each sixteenth of the edges lies: on a
// grid of latitudes, most edges of a pattern of fixed radius are of the few sites near the poles.
int neighbourly_of_16(const Pattern& pattern) {
  constexpr int64_t size = 8, most_taps = 64;
  if (pattern.sites < size) return 0;
  const auto source = [&](int64_t e) {
    return pattern.col.bits == 32 ? static_cast<const int32_t*>(pattern.col.data)[e]
                                  : static_cast<const int64_t*>(pattern.col.data)[e];
  };
  const auto follow = [&](const int64_t* row_ptr) {
    const int64_t taps = row_ptr[1] - row_ptr[0];
    if (taps < 1 || taps > most_taps) return false;
    for (int64_t s = 1; s < size; s++)
      if (row_ptr[s + 1] - row_ptr[s] != taps) return false;
    for (int64_t e = row_ptr[0]; e < row_ptr[size - 1]; e++)
      if (source(e + taps) != source(e) + 1) return false;
    return true;
  };
  int count = 0;
  for (int64_t k = 0; k < 16; k++) {
    const int64_t* end = std::upper_bound(pattern.row_ptr + 1, pattern.row_ptr + pattern.sites, edges_of(pattern) * (2 * k + 1) / 32);
    const int64_t group = (end - pattern.row_ptr - 1) / size, groups = pattern.sites / size;
    count += follow(pattern.row_ptr + (group < groups ? group : groups - 1) * size);
  }
  return count;
}

// Lanes of a panel, or 0 where there is no use for panels: two vectors, and a cache line at least.
int64_t panel_lanes(const Kernels& kernels, DType dtype, const Pattern& pattern, int64_t batch) {
  constexpr int64_t most_bytes = int64_t(64) << 20, line = 64;
  const int64_t real = size_of_real(dtype), vector = kernels.vector_bytes;
  if (edges_of(pattern) < pattern.sources / 2) return 0;
  int64_t bytes = vector;
  while (bytes < batch * real && (bytes < line || bytes < 2 * vector)) bytes *= 2;
  return bytes * pattern.sources <= most_bytes ? bytes / real : 0;
}

// Some panels of a table at a time, in memory of their own: `most`, or fewer where they are large.
class PanelSet {
 public:
  PanelSet(const Table& table, int64_t lanes, int64_t most)
      : table_(table), lanes_(lanes), bytes_(table.columns * lanes * size_of_real(table.dtype)) {
    constexpr int64_t most_bytes = int64_t(32) << 20;
    const int64_t fitting = most_bytes / bytes_, wanted = most < panels() ? most : panels();
    slots_ = wanted < fitting ? wanted : fitting < 1 ? 1 : fitting;
    if (posix_memalign(&values_, 64, size_t(bytes_ * slots_) + 64) != 0) values_ = nullptr;
    if (values_) ask_for_huge_pages(values_, bytes_ * slots_);
  }
  ~PanelSet() { std::free(values_); }
  PanelSet(const PanelSet&) = delete;
  PanelSet& operator=(const PanelSet&) = delete;
  explicit operator bool() const { return values_ != nullptr; }

  int64_t panels() const { return (table_.rows + lanes_ - 1) / lanes_; }
  int64_t slots() const { return slots_; }

  // Panel `number` of the table in place `slot`.
  Panel at(int64_t number, int64_t slot) const { return {number * lanes_, lanes_, static_cast<char*>(values_) + slot * bytes_}; }

  void fill(const Kernels& kernels, const Panel& panel, int64_t part, int64_t parts) const {
    const int64_t lines = (table_.columns + site_block - 1) / site_block;
    const auto begin = [&](int64_t k) {
      const int64_t column = lines * k / parts * site_block;
      return column < table_.columns ? column : table_.columns;
    };
    kernels.fill_panel(table_, panel, begin(part), begin(part + 1));
  }

  // Fills the slots with panels from `first` on, each in parts by several threads; how many there are.
  int64_t fill_together(const Kernels& kernels, int64_t first, int64_t threads) const {
    const int64_t left = panels() - first, count = left < slots_ ? left : slots_, parts = (threads + count - 1) / count;
    in_parallel(count * parts, threads, [&](int64_t k) {
      fill(kernels, at(first + k / parts, k / parts), k % parts, parts);
      return ok;
    });
    return count;
  }

 private:
  Table table_;
  int64_t lanes_, bytes_, slots_;
  void* values_;
};

// Panels [0, count) of a set with as many slots as threads: each thread takes whole ones.
Status gather_whole_panels(const GatherMatmul& p, const Kernels& kernels, const PanelSet& set, int64_t count) {
  std::atomic<int64_t> next(0);
  return in_parallel(set.slots(), set.slots(), [&](int64_t slot) {
    int worst = ok;
    for (int64_t k = next++; k < count; k = next++) {
      const Panel panel = set.at(k, slot);
      set.fill(kernels, panel, 0, 1);
      const int status = kernels.gather_panel(p, panel, 0, p.pattern.sites);
      worst = status > worst ? status : worst;
    }
    return Status(worst);
  });
}

// Threads share the sites of the panels that remain when each has taken as many as the others.
Status gather_panels(const GatherMatmul& p, const Kernels& kernels, int64_t lanes, int64_t threads) {
  const PanelSet set({p.x, p.dtype, p.batch, p.pattern.sources}, lanes, threads);
  if (!set) return no_memory;
  const int64_t whole = set.slots() < threads ? 0 : set.panels() / threads * threads;
  int worst = whole ? gather_whole_panels(p, kernels, set, whole) : ok;
  for (int64_t first = whole; first < set.panels(); first += set.slots()) {
    const int64_t count = set.fill_together(kernels, first, threads), parts = (threads + count - 1) / count;
    const int status = in_parallel(count * parts, threads, [&](int64_t k) {
      const int64_t part = k % parts;
      return kernels.gather_panel(p, set.at(first + k / parts, k / parts), first_site(p.pattern, part, parts),
                                  first_site(p.pattern, part + 1, parts));
    });
    worst = status > worst ? status : worst;
  }
  return Status(worst);
}

// Weights that are not reals in the order of the edges are brought into it once, where several panels read them.
Status gather_in_panels(GatherMatmul p, const Kernels& kernels, int64_t lanes, int threads) {
  constexpr int64_t most_bytes = int64_t(256) << 20;
  const int64_t edges = edges_of(p.pattern), real = size_of_real(p.dtype);
  const int64_t useful = threads_for(edges * p.batch, threads);
  const bool in_order = p.pattern.tie.bits == 0 && size_of(p.dtype) == real;
  if (in_order || p.batch <= lanes || edges * real > most_bytes) return gather_panels(p, kernels, lanes, useful);
  void* weights = std::malloc(size_t(edges * real));
  if (!weights) return no_memory;
  const int64_t parts = threads_for(edges, threads);
  in_parallel(parts, parts, [&](int64_t part) {
    kernels.gather_weights(p, edges * part / parts, edges * (part + 1) / parts, weights);
    return ok;
  });
  p.ordered_weights = weights;
  const Status status = gather_panels(p, kernels, lanes, useful);
  std::free(weights);
  return status;
}

// Threads share the sites and go through the panels in order, some of them at a time, as each time all threads wait for the last.
Status sum_panels(const EdgeOuter& p, const Kernels& kernels, int64_t lanes, int64_t threads, void* sums) {
  const PanelSet set({p.x, p.dtype, p.batch, p.pattern.sources}, lanes, 4 * threads);
  if (!set) return no_memory;
  int worst = ok;
  for (int64_t first = 0; first < set.panels(); first += set.slots()) {
    const int64_t count = set.fill_together(kernels, first, threads);
    const int status = in_parallel(threads, threads, [&](int64_t part) {
      const int64_t begin = first_site(p.pattern, part, threads), end = first_site(p.pattern, part + 1, threads);
      int worst = ok;
      for (int64_t k = 0; k < count; k++) {
        const int status = kernels.outer_panel(p, set.at(first + k, k), begin, end, first + k > 0, sums);
        worst = status > worst ? status : worst;
      }
      return Status(worst);
    });
    worst = status > worst ? status : worst;
  }
  return Status(worst);
}

Status outer_in_panels(const EdgeOuter& p, const Kernels& kernels, int64_t lanes, int threads) {
  const int64_t edges = edges_of(p.pattern), real = size_of_real(p.dtype);
  const int64_t useful = threads_for(edges * p.batch, threads);
  if (size_of(p.dtype) == real) return sum_panels(p, kernels, lanes, useful, p.out);
  void* sums = std::malloc(size_t(edges * real));
  if (!sums) return no_memory;
  const Status status = sum_panels(p, kernels, lanes, useful, sums);
  in_parallel(useful, useful, [&](int64_t part) {
    kernels.add_sums(p.dtype, 1, 0, sums, p.out, edges * part / useful, edges * (part + 1) / useful);
    return ok;
  });
  std::free(sums);
  return status;
}

}  // namespace
