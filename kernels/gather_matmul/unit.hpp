// The kernels of gather_matmul for one instruction set, `kernels` in the namespace of a unit (native/*.cpp).
#pragma once

#include "columns.hpp"
#include "dots.hpp"
#include "folded.hpp"
#include "outer.hpp"
#include "outer_panels.hpp"
#include "outer_singles.hpp"
#include "packed.hpp"
#include "panels.hpp"
#include "singles.hpp"
#include "vectors.hpp"

namespace SCISPARSE_NAMESPACE {
namespace {

// The part of the lanes that holds data when `numbers` neighbouring numbers fill vectors or half vectors.
template <class R>
double lanes_in_use(int64_t numbers) {
  constexpr int W = width<R>;
  return numbers <= W / 2 ? numbers / double(W) : numbers / double(round_up(numbers, W));
}

// Packing the sources costs something, so that lanes over the batch must hold more data than others would.
template <class R>
bool is_for_packed(const Forward<R>& p) {
  constexpr int W = width<R>;
  if (p.batch < max_of(W / 4, 2)) return false;
  const double in_use = p.batch / double(round_up(p.batch, W / weights_per_vector(p)));
  if (!p.transposed) return p.in > 1 && in_use > 1.25 * lanes_in_use<R>(p.out);
  return p.out > 1 || in_use > 2 * lanes_in_use<R>(p.in);
}

// Neighbouring rows of weights make vectors, and the batch is too small to fill them. Chunks of inputs are taken from memory again
// for each edge, so that they must be reals.
template <class R>
bool is_for_folded(const Forward<R>& p) {
  constexpr int W = width<R>;
  const int64_t row = p.transposed ? p.in : p.out;
  if (!p.x.are_reals() || p.in == 1 || p.out == 1 || row >= W || W % row != 0) return false;
  if (p.batch == 1) return row < W / 2;  // half vectors hold the rest
  return p.transposed ? p.batch < W : p.batch <= W;
}

template <class R>
Status forward(const scisparse::GatherMatmul& problem, int64_t first, int64_t last) {
  const Forward<R> p(problem);
  if (has_single_numbers(p)) return singles(p, first, last);
  if constexpr (SCISPARSE_ISA > 1)
    if (is_for_folded(p)) return folded(p, first, last);
  if (is_for_packed(p)) return packed(p, first, last);
  if (has_vectors(p)) return vectors(p, first, last);
  return p.transposed ? dots(p, first, last) : columns(p, first, last);
}

template <class R>
Status outer_to(const Outer<R>& p, Sink<R>& sink, int64_t first, int64_t last) {
  return has_single_numbers(p) ? outer_singles(p, sink, first, last) : outer_rows(p, sink, first, last);
}

// Results that the kernels of edge_outer hand over at once, at most.
int64_t most_results(int64_t per_edge) { return max_of(per_edge, 2048); }

template <class R>
Status outer(const scisparse::EdgeOuter& problem, int64_t first, int64_t last) {
  const Outer<R> p(problem);
  OutputSink<R> sink({problem.out, problem.dtype}, p.pattern.row_ptr[first] * p.in * p.out, most_results(p.in * p.out));
  return sink ? outer_to<R>(p, sink, first, last) : Status::no_memory;
}

template <class R>
Status outer_sums(const scisparse::EdgeOuter& problem, int64_t first, int64_t last, int64_t first_tie, int64_t last_tie,
                  void* sums) {
  const Outer<R> p(problem);
  SumSink<R> sink(p.pattern.tie, first_tie, last_tie, most_results(p.in * p.out), static_cast<R*>(sums));
  return sink ? outer_to<R>(p, sink, first, last) : Status::no_memory;
}

template <class R>
void add_sums(DType dtype, int64_t parts, int64_t count, const void* sums, void* out, int64_t first, int64_t last) {
  constexpr int64_t STEP = 256;
  const R* from = static_cast<const R*>(sums);
  R total[STEP];
  for (int64_t k = first; k < last; k += STEP) {
    const int64_t n = min_of(STEP, last - k);
    for (int64_t j = 0; j < n; j++) total[j] = from[k + j];
    for (int64_t part = 1; part < parts; part++)
      for (int64_t j = 0; j < n; j++) total[j] += from[part * count + k + j];
    Numbers<R, void>{out, dtype}.write(total, n, k);
  }
}

Status any_gather_matmul(const scisparse::GatherMatmul& p, int64_t first, int64_t last) {
  return p.dtype == DType::float64 ? forward<double>(p, first, last) : forward<float>(p, first, last);
}

Status any_edge_outer(const scisparse::EdgeOuter& p, int64_t first, int64_t last) {
  return p.dtype == DType::float64 ? outer<double>(p, first, last) : outer<float>(p, first, last);
}

Status any_edge_outer_sums(const scisparse::EdgeOuter& p, int64_t first, int64_t last, int64_t first_tie, int64_t last_tie,
                           void* sums) {
  return p.dtype == DType::float64 ? outer_sums<double>(p, first, last, first_tie, last_tie, sums)
                                   : outer_sums<float>(p, first, last, first_tie, last_tie, sums);
}

void any_add_sums(DType dtype, int64_t parts, int64_t count, const void* sums, void* out, int64_t first, int64_t last) {
  return dtype == DType::float64 ? add_sums<double>(dtype, parts, count, sums, out, first, last)
                                 : add_sums<float>(dtype, parts, count, sums, out, first, last);
}

void any_fill_panel(const Table& table, const Panel& panel, int64_t first, int64_t last) {
  return table.dtype == DType::float64 ? fill_panel<double>(table, panel, first, last)
                                       : fill_panel<float>(table, panel, first, last);
}

void any_gather_weights(const scisparse::GatherMatmul& p, int64_t first, int64_t last, void* weights) {
  return p.dtype == DType::float64 ? gather_weights<double>(p, first, last, weights)
                                   : gather_weights<float>(p, first, last, weights);
}

Status any_gather_panel(const scisparse::GatherMatmul& p, const Panel& x, int64_t first, int64_t last) {
  return p.dtype == DType::float64 ? gather_panel<double>(p, x, first, last) : gather_panel<float>(p, x, first, last);
}

Status any_outer_panel(const scisparse::EdgeOuter& p, const Panel& x, int64_t first, int64_t last, bool add, void* sums) {
  return p.dtype == DType::float64 ? outer_panel<double>(p, x, first, last, add, sums)
                                   : outer_panel<float>(p, x, first, last, add, sums);
}

constexpr scisparse::Kernels kernels = {simd_bytes,   any_gather_matmul, any_edge_outer,     any_edge_outer_sums,
                                        any_add_sums, any_fill_panel,    any_gather_weights, any_gather_panel,
                                        any_outer_panel};

}  // namespace
}  // namespace SCISPARSE_NAMESPACE
