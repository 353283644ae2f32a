// Runs the CUDA kernels on the CPU, one thread after the other: they pass nothing between threads.
#include <cstddef>
#include <utility>

#define __device__
#define __global__
#define __forceinline__ inline

struct Coordinate {
  unsigned x;
};
static Coordinate blockIdx, blockDim, threadIdx;

#include CUDA_SOURCE

template <class... A, std::size_t... I>
static void run(void (*kernel)(A...), unsigned blocks, unsigned threads, void** arguments, std::index_sequence<I...>) {
  blockDim.x = threads;
  for (blockIdx.x = 0; blockIdx.x < blocks; blockIdx.x++)
    for (threadIdx.x = 0; threadIdx.x < threads; threadIdx.x++) kernel(*static_cast<A*>(arguments[I])...);
}

template <class... A>
static void run(void (*kernel)(A...), unsigned blocks, unsigned threads, void** arguments) {
  run(kernel, blocks, threads, arguments, std::index_sequence_for<A...>());
}

#define RUN(kernel) \
  extern "C" void run_##kernel(unsigned blocks, unsigned threads, void** arguments) { run(kernel, blocks, threads, arguments); }
RUN(gather_plain)
RUN(gather_transposed)
RUN(outer_edges)
RUN(outer_ties)
