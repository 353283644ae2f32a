// The kernel of graph Laplacians for one instruction set, `laplacian` in the namespace of a unit (native/*.cpp).
//
// Lanes are numbers of a row. Differences are taken before they are multiplied, so that rows that are equal give 0.
#pragma once

#include "../native/memory.hpp"
#include "../native/shuffles.hpp"
#include "kernels.hpp"

namespace SCISPARSE_NAMESPACE {
namespace {

template <class R>
struct Laplacian {
  static constexpr int L = width<R>;
  using V = Vec<R, L>;

  static Status run(const scisparse_laplacian_problem& p, int64_t first, int64_t last) {
    return with_indices({p.col, int(p.col_bits)}, 0, [&](const auto& col) {
      for (int64_t i = first; i < last; i++) p.y ? pull(p, i, col) : energy(p, i, col);
      return Status::ok;
    });
  }

 private:
  template <class Index>
  static SCISPARSE_INLINE void pull(const scisparse_laplacian_problem& p, int64_t i, const Index& col) {
    R* y = static_cast<R*>(p.y) + i * p.width;
    each_vector(p.width, [&](int64_t d, int n) SCISPARSE_INLINE_LAMBDA {
      V sum = {};
      each_coupling(p, i, col, d, n, [&](V value, V apart) SCISPARSE_INLINE_LAMBDA { sum += value * apart; });
      store(y + d, sum, n);
    });
  }

  template <class Index>
  static SCISPARSE_INLINE void energy(const scisparse_laplacian_problem& p, int64_t i, const Index& col) {
    V sum = {};
    each_vector(p.width, [&](int64_t d, int n) SCISPARSE_INLINE_LAMBDA {
      each_coupling(p, i, col, d, n, [&](V value, V apart) SCISPARSE_INLINE_LAMBDA { sum += value * apart * apart; });
    });
    R total = 0;
    for (int l = 0; l < L; l++) total += sum[l];
    static_cast<R*>(p.energy)[i] = total;
  }

  // Calls f(d, n) for the n numbers of a row from d on; n is a constant for all but the last ones.
  template <class F>
  static SCISPARSE_INLINE void each_vector(int64_t size, const F& f) {
    int64_t d = 0;
    for (; d + L <= size; d += L) f(d, L);
    if (d < size) f(d, int(size - d));
  }

  // Calls f(value, difference) for the rows that row i is coupled with, n numbers from d on.
  template <class Index, class F>
  static SCISPARSE_INLINE void each_coupling(const scisparse_laplacian_problem& p, int64_t i, const Index& col, int64_t d, int n,
                                             const F& f) {
    const R *x = static_cast<const R*>(p.x), *value = static_cast<const R*>(p.value);
    const V own = load<L>(x + i * p.width + d, n);
    for (int64_t e = p.row_ptr[i]; e < p.row_ptr[i + 1]; e++) f(splat<V>(value[e]), own - load<L>(x + col[e] * p.width + d, n));
  }
};

Status laplacian_rows(const scisparse_laplacian_problem& p, int64_t first, int64_t last) {
  if (DType(p.dtype) == DType::float64) return Laplacian<double>::run(p, first, last);
  return DType(p.dtype) == DType::float32 ? Laplacian<float>::run(p, first, last) : Status::bad_dtype;
}

constexpr scisparse::LaplacianKernels laplacian = {laplacian_rows};

}  // namespace
}  // namespace SCISPARSE_NAMESPACE
