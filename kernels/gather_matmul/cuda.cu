// The gather operators in CUDA C++: each thread makes whole numbers of the result by itself, in the order of the row.
//
// No thread waits for another: no shared memory, no shuffle, no atomic. Threads of a site read neighbouring weights, 16 bytes at
// a time, and the inputs of several channels at once, so that a multiply-add costs little besides the weights. As nothing passes
// between threads, the same source runs on the CPU thread by thread, which is how it is tested without a GPU.
//
// Compiled for each shape, with these macros:
//   NUMBER            0 double, 1 float, 2 bfloat16, 3 float16
//   CHANNELS_IN, CHANNELS_OUT, TIED, INDEX (int or long long)
//   OUTPUTS           neighbouring outputs of a thread: a divisor of CHANNELS_OUT
//   INPUTS            neighbouring inputs that are read at once: a divisor of CHANNELS_IN
//   BATCHES           batches of a thread
//
// Letters: B batch, M sites, N sources, E edges, T weights, C channels in, O channels out.

#if NUMBER == 2 || NUMBER == 3
typedef unsigned short Stored;
typedef float Real;
#elif NUMBER == 1
typedef float Stored;
typedef float Real;
#else
typedef double Stored;
typedef double Real;
#endif

typedef long long Offset;

#define C CHANNELS_IN
#define O CHANNELS_OUT

template <int N>
struct alignas(N * sizeof(Stored)) Several {
  Stored at[N];
};

__device__ __forceinline__ unsigned bits_of(float value) {
  union {
    float number;
    unsigned bits;
  } both;
  both.number = value;
  return both.bits;
}

__device__ __forceinline__ float number_of(unsigned bits) {
  union {
    float number;
    unsigned bits;
  } both;
  both.bits = bits;
  return both.number;
}

__device__ __forceinline__ Real widen(Stored value) {
#if NUMBER == 2
  return number_of(unsigned(value) << 16);
#elif NUMBER == 3
  const unsigned sign = unsigned(value & 0x8000) << 16, body = unsigned(value & 0x7fff) << 13;
  const bool special = (value & 0x7c00) == 0x7c00;  // infinity or NaN: the exponent stays full
  return number_of(sign | (special ? body | 0x7f800000u : bits_of(number_of(body) * 0x1p112f)));
#else
  return value;
#endif
}

__device__ __forceinline__ Stored narrow(Real value) {
#if NUMBER == 2
  const unsigned bits = bits_of(value);
  if (value != value) return Stored(bits >> 16 | 0x40);
  return Stored((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
#elif NUMBER == 3
  const unsigned bits = bits_of(value), sign = bits >> 16 & 0x8000, size = bits & 0x7fffffff;
  if (size > 0x7f800000u) return Stored(sign | 0x7e00);
  if (size >= 0x477ff000u) return Stored(sign | 0x7c00);
  if (size < 0x38800000u)  // subnormal: adding 0.5 aligns the last kept bit and rounds
    return Stored(sign | (bits_of(number_of(size) + 0.5f) - bits_of(0.5f)));
  return Stored(sign | ((size - 0x38000000u + 0xfff + (size >> 13 & 1)) >> 13));
#else
  return value;
#endif
}

template <int N>
__device__ __forceinline__ void read(Real (&to)[N], const Stored* from) {
  const Several<N> values = *reinterpret_cast<const Several<N>*>(from);
#pragma unroll
  for (int k = 0; k < N; k++) to[k] = widen(values.at[k]);
}

template <int N>
__device__ __forceinline__ void write(Stored* to, const Real (&from)[N]) {
  Several<N> values;
#pragma unroll
  for (int k = 0; k < N; k++) values.at[k] = narrow(from[k]);
  *reinterpret_cast<Several<N>*>(to) = values;
}

__device__ __forceinline__ Offset thread_number() { return Offset(blockIdx.x) * blockDim.x + threadIdx.x; }

__device__ __forceinline__ Offset weight_of(const INDEX* tie, Offset e) { return TIED ? Offset(tie[e]) : e; }

// Which batch a thread reads: beyond the last it repeats the last, and writes nothing.
__device__ __forceinline__ Offset batch_of(int b, int batch) { return b < batch ? b : batch - 1; }

// y[b,i,o] = sum_e sum_c x[b,col[e],c] * weight[t,c,o]; a thread makes OUTPUTS outputs of a site and BATCHES batches.
extern "C" __global__ void gather_plain(const Stored* __restrict__ x, const Stored* __restrict__ weight,
                                        const long long* __restrict__ row_ptr, const INDEX* __restrict__ col,
                                        const INDEX* __restrict__ tie, Stored* __restrict__ y, Offset sites, Offset sources,
                                        int batch, int groups) {
  const Offset number = thread_number() / (O / OUTPUTS), site = number / groups;
  const int o = int(thread_number() % (O / OUTPUTS)) * OUTPUTS, b0 = int(number % groups) * BATCHES;
  if (site >= sites) return;
  Real sum[BATCHES][OUTPUTS] = {};
  const Offset end = row_ptr[site + 1];
  for (Offset e = row_ptr[site]; e < end; e++) {
    const Stored* w = weight + weight_of(tie, e) * (C * O) + o;
    const Offset source = col[e];
#pragma unroll 4
    for (int c = 0; c < C; c += INPUTS) {
      Real row[INPUTS][OUTPUTS];
#pragma unroll
      for (int k = 0; k < INPUTS; k++) read(row[k], w + (c + k) * O);
#pragma unroll
      for (int b = 0; b < BATCHES; b++) {
        Real value[INPUTS];
        read(value, x + (batch_of(b0 + b, batch) * sources + source) * C + c);
#pragma unroll
        for (int k = 0; k < INPUTS; k++)
#pragma unroll
          for (int v = 0; v < OUTPUTS; v++) sum[b][v] += value[k] * row[k][v];
      }
    }
  }
#pragma unroll
  for (int b = 0; b < BATCHES; b++)
    if (b0 + b < batch) write(y + ((b0 + b) * sites + site) * O + o, sum[b]);
}

// The same with weights [T, O, C]; a thread makes one output of a site and BATCHES batches.
extern "C" __global__ void gather_transposed(const Stored* __restrict__ x, const Stored* __restrict__ weight,
                                             const long long* __restrict__ row_ptr, const INDEX* __restrict__ col,
                                             const INDEX* __restrict__ tie, Stored* __restrict__ y, Offset sites, Offset sources,
                                             int batch, int groups) {
  const Offset number = thread_number() / O, site = number / groups;
  const int o = int(thread_number() % O), b0 = int(number % groups) * BATCHES;
  if (site >= sites) return;
  Real sum[BATCHES] = {};
  const Offset end = row_ptr[site + 1];
  for (Offset e = row_ptr[site]; e < end; e++) {
    const Stored* w = weight + (weight_of(tie, e) * O + o) * C;
    const Offset source = col[e];
#pragma unroll 4
    for (int c = 0; c < C; c += INPUTS) {
      Real row[INPUTS];
      read(row, w + c);
#pragma unroll
      for (int b = 0; b < BATCHES; b++) {
        Real value[INPUTS];
        read(value, x + (batch_of(b0 + b, batch) * sources + source) * C + c);
#pragma unroll
        for (int k = 0; k < INPUTS; k++) sum[b] += value[k] * row[k];
      }
    }
  }
#pragma unroll
  for (int b = 0; b < BATCHES; b++)
    if (b0 + b < batch) y[((b0 + b) * sites + site) * O + o] = narrow(sum[b]);
}

// out[e,c,o] = sum_b x[b,col[e],c] * grad[b,i,o]; a thread makes OUTPUTS outputs of all inputs of the edges of a site.
extern "C" __global__ void outer_edges(const Stored* __restrict__ x, const Stored* __restrict__ grad,
                                       const long long* __restrict__ row_ptr, const INDEX* __restrict__ col,
                                       Stored* __restrict__ out, Offset sites, Offset sources, int batch) {
  const Offset site = thread_number() / (O / OUTPUTS);
  const int o = int(thread_number() % (O / OUTPUTS)) * OUTPUTS;
  if (site >= sites) return;
  const Offset end = row_ptr[site + 1];
  for (Offset e = row_ptr[site]; e < end; e++) {
    const Offset source = col[e];
    for (int c = 0; c < C; c += INPUTS) {
      Real sum[INPUTS][OUTPUTS] = {};
#pragma unroll 4
      for (int b = 0; b < batch; b++) {
        Real value[INPUTS], g[OUTPUTS];
        read(value, x + (b * sources + source) * C + c);
        read(g, grad + (b * sites + site) * O + o);
#pragma unroll
        for (int k = 0; k < INPUTS; k++)
#pragma unroll
          for (int v = 0; v < OUTPUTS; v++) sum[k][v] += value[k] * g[v];
      }
#pragma unroll
      for (int k = 0; k < INPUTS; k++) write(out + (e * C + c + k) * O + o, sum[k]);
    }
  }
}

// out[part,t,c,o]: every parts-th of the edges of weight t, which lie from tie_ptr[t] on and are sorted by tie. A thread makes one
// number, in the type that sums have.
extern "C" __global__ void outer_ties(const Stored* __restrict__ x, const Stored* __restrict__ grad,
                                      const long long* __restrict__ tie_ptr, const INDEX* __restrict__ col,
                                      const INDEX* __restrict__ site, Real* __restrict__ out, Offset sites, Offset sources,
                                      int batch, Offset weights, int parts) {
  const Offset number = thread_number() / (C * O), t = number % weights;
  const int place = int(thread_number() % (C * O)), c = place / O, o = place % O;
  const Offset part = number / weights;
  if (part >= parts) return;
  Real sum = 0;
  for (Offset e = tie_ptr[t] + part; e < tie_ptr[t + 1]; e += parts)
    for (int b = 0; b < batch; b++)
      sum += widen(x[(b * sources + col[e]) * C + c]) * widen(grad[(b * sites + site[e]) * O + o]);
  out[(part * weights + t) * (C * O) + place] = sum;
}
