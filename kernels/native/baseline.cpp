// The kernels for any machine.
#define SCISPARSE_ISA 1
#define SCISPARSE_NAMESPACE scisparse_baseline
#include "../gather_matmul/unit.hpp"
#include "../graph_attention/unit.hpp"
#include "../laplacian/unit.hpp"

namespace scisparse {
extern const Kernels baseline_kernels = scisparse_baseline::kernels;
extern const AttentionKernels baseline_attention = scisparse_baseline::attention;
extern const LaplacianKernels baseline_laplacian = scisparse_baseline::laplacian;
}
