// What the dispatcher in cpu.cpp passes to the kernels of one instruction set: the problems of the C interface, which are plain data.
#pragma once

#include "../native/types.hpp"
#include "cpu.hpp"

namespace scisparse {

// Room for what the two passes of a backward pass know of edges: [E, heads, 2] for each of some batch entries and some heads, of weights
// and gradients of scores, times the scale. Heads go together that share a head of the sources.
struct EdgeWorkspace {
  int64_t first_batch, last_batch, first_source_head, last_source_head;
  void* numbers;
};

// Rows that go through shared sources together, where rows that follow each other share most of them. Divides site_block.
constexpr int64_t block_rows = 4;

// Rows [first, last), `at_once` of them together: 1 or block_rows.
struct Span {
  int64_t first, last, at_once;
};

struct AttentionKernels {
  // Sites of all batch entries.
  Status (*forward)(const scisparse_attention&, const Span& sites);
  // Gradients of what sites and edges hold; fills the workspace for the sources.
  Status (*backward_sites)(const scisparse_attention_backward&, const EdgeWorkspace&, const Span& sites);
  // Gradients of sources, over the transposed edges.
  Status (*backward_sources)(const scisparse_attention_backward&, const EdgeWorkspace&, const Span& sources);
  Status (*spmm)(const scisparse_spmm_problem&, int64_t first, int64_t last);
  Status (*sddmm)(const scisparse_sddmm_problem&, int64_t first, int64_t last);
  Status (*choose)(const scisparse_choice&, int64_t first, int64_t last);
  // Sources [first, last).
  Status (*choice_sources)(const scisparse_choice&, int64_t first, int64_t last);
  Status (*choice_edges)(const scisparse_choice&, int64_t first, int64_t last);
  Status (*softmax)(const scisparse_softmax&, int64_t first, int64_t last);
};

// Null where a build leaves the unit out.
extern const AttentionKernels baseline_attention;
extern const AttentionKernels avx2_attention __attribute__((weak)), avx512_attention __attribute__((weak));

}  // namespace scisparse
