// The kernels of attention and of its products for one instruction set, `attention` in the namespace of a unit (native/*.cpp).
#pragma once

#include "attention.hpp"
#include "choices.hpp"
#include "softmax.hpp"

namespace SCISPARSE_NAMESPACE {
namespace {

template <class T>
struct Spmm {
  using R = Real<T>;

  static Status run(const scisparse_spmm_problem& p, int64_t first, int64_t last) {
    const Heads<T> x{p.x, p.edges.sources, p.heads, p.width};
    const EdgeNumbers<R> numbers{p.value, p.value_batch, p.value_edge, p.value_head};
    Row row(p.edges, {first, last, 1});
    Buffer<R> buffer(row.room() + p.width);
    if (!row || !buffer) return Status::no_memory;
    R *value = buffer.get(), *room = value + row.room();
    for (int64_t b = 0; b < p.batch; b++)
      for (int64_t i = first; i < last; i++) {
        row.read(i);
        for (int64_t h = 0; h < p.heads; h++) {
          numbers.read(b, h, row, value);
          const RowSums<T> sum{p.y, (b * p.edges.sites + i) * p.heads + h, p.heads, p.width, {room, 0}};
          sums(value, x.head(b, h), row.sources(), row.count(), p.width, sum.place()[0], false);
          sum.write(1);
        }
      }
    return Status::ok;
  }
};

template <class T>
struct Sddmm {
  using R = Real<T>;

  static Status run(const scisparse_sddmm_problem& p, int64_t first, int64_t last) {
    const Heads<T> x{p.x, p.edges.sites, p.heads, p.width}, z{p.z, p.edges.sources, p.heads, p.width};
    Row row(p.edges, {first, last, 1});
    Buffer<R> value(row.room());
    if (!row || !value) return Status::no_memory;
    for (int64_t b = 0; b < p.batch; b++)
      for (int64_t i = first; i < last; i++) {
        row.read(i);
        for (int64_t h = 0; h < p.heads; h++) {
          dots(x.at(b, i, h), z.head(b, h), row.sources(), row.count(), p.width, value.get());
          R* to = reals<R>(p.value) + b * p.edges.count * p.heads + h;
          for (int64_t j = 0; j < row.count(); j++) to[row.places()[j] * p.heads] = value.get()[j];
        }
      }
    return Status::ok;
  }
};

Status any_forward(const scisparse_attention& p, const Span& sites) { return for_dtype<AttentionForward>(p.dtype, p, sites); }

Status any_sites(const scisparse_attention_backward& p, const EdgeWorkspace& space, const Span& sites) {
  return for_dtype<AttentionSites>(p.forward.dtype, p, space, sites);
}

Status any_sources(const scisparse_attention_backward& p, const EdgeWorkspace& space, const Span& sources) {
  return for_dtype<AttentionSources>(p.forward.dtype, p, space, sources);
}

Status any_spmm(const scisparse_spmm_problem& p, int64_t first, int64_t last) { return for_dtype<Spmm>(p.dtype, p, first, last); }

Status any_sddmm(const scisparse_sddmm_problem& p, int64_t first, int64_t last) { return for_dtype<Sddmm>(p.dtype, p, first, last); }

Status any_choose(const scisparse_choice& p, int64_t first, int64_t last) { return for_dtype<Choose>(p.dtype, p, first, last); }

Status any_choice_sources(const scisparse_choice& p, int64_t first, int64_t last) {
  return for_dtype<ChoiceSources>(p.dtype, p, first, last);
}

Status any_choice_edges(const scisparse_choice& p, int64_t first, int64_t last) { return for_dtype<ChoiceEdges>(p.dtype, p, first, last); }

Status any_softmax(const scisparse_softmax& p, int64_t first, int64_t last) {
  if (DType(p.dtype) == DType::float64) return RowSoftmax<double>::run(p, first, last);
  return DType(p.dtype) == DType::float32 ? RowSoftmax<float>::run(p, first, last) : Status::bad_dtype;
}

constexpr scisparse::AttentionKernels attention = {any_forward, any_sites,          any_sources,      any_spmm,   any_sddmm,
                                                   any_choose,  any_choice_sources, any_choice_edges, any_softmax};

}  // namespace
}  // namespace SCISPARSE_NAMESPACE
