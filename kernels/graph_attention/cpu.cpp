// The C interface of attention: chooses the instruction set and divides the work among threads.
#include "cpu.hpp"

#include "../native/isa.hpp"
#include "../native/threads.hpp"
#include "kernels.hpp"

namespace {

const AttentionKernels* kernels_of(int isa) { return kernels_for(isa, &baseline_attention, &avx2_attention, &avx512_attention); }

Pattern pattern_of(const scisparse_edges& edges) { return {edges.sites, edges.sources, edges.row_ptr, {}, {}}; }

int64_t source_of(const scisparse_edges& edges, int64_t e) {
  return edges.col_bits == 32 ? static_cast<const int32_t*>(edges.col)[e] : static_cast<const int64_t*>(edges.col)[e];
}

bool has_ends(const scisparse_edges& edges) { return edges.row_ptr[0] == 0 && edges.row_ptr[edges.sites] == edges.count; }

Status check(int64_t dtype, const AttentionKernels* kernels, const scisparse_edges& edges) {
  if (dtype < 0 || dtype > 3) return bad_dtype;
  if (!kernels) return bad_isa;
  return has_ends(edges) ? ok : bad_rows;
}

// Calls task(first, last) for parts of the sites with nearly equal work, more parts than threads as rows differ in their caches.
template <class Task>
Status over_sites(const scisparse_edges& edges, int64_t work_per_edge, int threads, const Task& task) {
  if (edges.sites == 0) return ok;
  const Pattern pattern = pattern_of(edges);
  const int64_t useful = threads_for((edges.count + edges.sites) * work_per_edge, threads), parts = useful > 1 ? 8 * useful : 1;
  return in_parallel(parts, useful, [&](int64_t part) {
    const int64_t first = first_site(pattern, part, parts), last = first_site(pattern, part + 1, parts);
    return first < last ? task(first, last) : ok;
  });
}

// Rows to take at once: a block where rows share most of what they read with the third one after them, in a sample that depends on
// the pattern alone, as the order of sums does.
int64_t rows_at_once(const scisparse_edges& edges) {
  constexpr int64_t samples = 16, away = block_rows - 1;
  if (edges.sites < block_rows) return 1;
  int64_t shared = 0, all = 0;
  for (int64_t sample = 0; sample < samples; sample++) {
    const int64_t i = (edges.sites - block_rows) * sample / samples / block_rows * block_rows;
    const int64_t *row = edges.row_ptr + i, end = row[1], other_end = row[away + 1];
    all += end - row[0];
    for (int64_t e = row[0], other = row[away]; e < end && other < other_end;) {
      const int64_t difference = source_of(edges, e) - source_of(edges, other);
      shared += difference == 0;
      e += difference <= 0;
      other += difference >= 0;
    }
  }
  return 2 * shared > all ? block_rows : 1;
}

int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }

// Calls task(workspace) for parts of a problem that fill the room it has: as many batch entries as fit, or heads of one.
template <class Task>
int over_workspaces(const scisparse_attention_backward& p, const Task& task) {
  const scisparse_attention& f = p.forward;
  const int64_t bytes = 2 * f.edges.count * (f.heads / f.source_heads) * size_of_real(DType(f.dtype));
  const int64_t fitting = bytes ? p.room_bytes / bytes : f.batch * f.source_heads;
  if (fitting < 1) return f.batch ? no_memory : ok;
  ask_for_huge_pages(p.room, p.room_bytes);
  const int64_t batches = larger(1, fitting / f.source_heads), heads = smaller(fitting, f.source_heads);
  int worst = ok;
  for (int64_t b = 0; b < f.batch && worst == ok; b += batches)
    for (int64_t h = 0; h < f.source_heads && worst == ok; h += heads)
      worst = task(EdgeWorkspace{b, smaller(b + batches, f.batch), h, smaller(h + heads, f.source_heads), p.room});
  return worst;
}

// Runs one of the kernels over [first, last) of `edges`, of a problem that has dtype, batch, heads and width.
template <class Problem>
Status run(const Problem& p, const scisparse_edges& edges, int64_t width, int isa, int threads,
           Status (*AttentionKernels::*kernel)(const Problem&, int64_t, int64_t)) {
  const AttentionKernels* kernels = kernels_of(isa);
  if (const Status status = check(p.dtype, kernels, edges)) return status;
  return over_sites(edges, p.batch * p.heads * width, threads,
                    [&](int64_t first, int64_t last) { return (kernels->*kernel)(p, first, last); });
}

// An exponential, in multiply-adds.
constexpr int64_t exponential_work = 8;

}  // namespace

extern "C" int scisparse_graph_attention(const scisparse_attention* problem, int isa, int threads) {
  const scisparse_attention& p = *problem;
  const AttentionKernels* kernels = kernels_of(isa);
  if (const Status status = check(p.dtype, kernels, p.edges)) return status;
  return over_sites(p.edges, p.batch * p.heads * (p.width + p.value_width), threads,
                    [&, at_once = rows_at_once(p.edges)](int64_t first, int64_t last) { return kernels->forward(p, {first, last, at_once}); });
}

extern "C" int scisparse_graph_attention_backward(const scisparse_attention_backward* problem, int isa, int threads) {
  const scisparse_attention_backward& p = *problem;
  const scisparse_attention& f = p.forward;
  const AttentionKernels* kernels = kernels_of(isa);
  if (const Status status = check(f.dtype, kernels, f.edges)) return status;
  if (!has_ends(p.transposed)) return bad_rows;
  const int64_t sites_at_once = rows_at_once(f.edges), sources_at_once = rows_at_once(p.transposed);
  return over_workspaces(p, [&](const EdgeWorkspace& space) {
    const int64_t heads = (space.last_source_head - space.first_source_head) * (f.heads / f.source_heads);
    const int64_t work = (space.last_batch - space.first_batch) * heads * (f.width + f.value_width);
    const Status status = over_sites(f.edges, work, threads, [&](int64_t i, int64_t end) {
      return kernels->backward_sites(p, space, {i, end, sites_at_once});
    });
    return status ? status : over_sites(p.transposed, work, threads, [&](int64_t j, int64_t end) {
      return kernels->backward_sources(p, space, {j, end, sources_at_once});
    });
  });
}

extern "C" int scisparse_spmm(const scisparse_spmm_problem* problem, int isa, int threads) {
  return run(*problem, problem->edges, problem->width, isa, threads, &AttentionKernels::spmm);
}

extern "C" int scisparse_sddmm(const scisparse_sddmm_problem* problem, int isa, int threads) {
  return run(*problem, problem->edges, problem->width, isa, threads, &AttentionKernels::sddmm);
}

extern "C" int scisparse_choose(const scisparse_choice* problem, int isa, int threads) {
  return run(*problem, problem->edges, problem->width, isa, threads, &AttentionKernels::choose);
}

extern "C" int scisparse_choice_sources(const scisparse_choice* problem, int isa, int threads) {
  if (!has_ends(problem->edges)) return bad_rows;
  return run(*problem, problem->transposed, problem->width, isa, threads, &AttentionKernels::choice_sources);
}

extern "C" int scisparse_choice_edges(const scisparse_choice* problem, int isa, int threads) {
  return run(*problem, problem->edges, problem->width, isa, threads, &AttentionKernels::choice_edges);
}

extern "C" int scisparse_segment_softmax(const scisparse_softmax* problem, int isa, int threads) {
  return run(*problem, problem->edges, exponential_work, isa, threads, &AttentionKernels::softmax);
}
