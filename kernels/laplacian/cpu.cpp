// The C interface of graph Laplacians: chooses the instruction set and divides the work among threads.
#include "cpu.hpp"

#include "../native/isa.hpp"
#include "../native/threads.hpp"
#include "kernels.hpp"

extern "C" int scisparse_laplacian(const scisparse_laplacian_problem* problem, int isa, int threads) {
  const scisparse_laplacian_problem& p = *problem;
  const LaplacianKernels* kernels = kernels_for(isa, &baseline_laplacian, &avx2_laplacian, &avx512_laplacian);
  if (!kernels) return bad_isa;
  if (p.row_ptr[0] != 0 || p.row_ptr[p.rows] != p.count) return bad_rows;
  const Pattern pattern = {p.rows, p.rows, p.row_ptr, {}, {}};
  const int64_t useful = threads_for((p.count + p.rows) * p.width, threads), parts = useful > 1 ? 8 * useful : 1;
  if (p.y) ask_for_huge_pages(p.y, p.rows * p.width * size_of_real(DType(p.dtype)));
  return in_parallel(parts, useful, [&](int64_t part) {
    const int64_t first = first_site(pattern, part, parts), last = first_site(pattern, part + 1, parts);
    return first < last ? kernels->rows(p, first, last) : ok;
  });
}
