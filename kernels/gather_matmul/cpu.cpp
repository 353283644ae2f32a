#include "cpu.hpp"

#include <cstring>
#include <new>
#include <vector>

namespace {

struct bf16 { uint16_t bits; };
struct f16 { uint16_t bits; };

float as_float(uint32_t u) { float f; std::memcpy(&f, &u, 4); return f; }
uint32_t as_bits(float f) { uint32_t u; std::memcpy(&u, &f, 4); return u; }

double widen(double v) { return v; }
float widen(float v) { return v; }
float widen(bf16 v) { return as_float(uint32_t(v.bits) << 16); }
float widen(f16 v) {
  uint32_t sign = uint32_t(v.bits & 0x8000) << 16, body = uint32_t(v.bits & 0x7fff) << 13;
  if ((v.bits & 0x7c00) == 0x7c00) return as_float(sign | body | 0x7f800000);
  return as_float(sign | as_bits(as_float(body) * as_float(0x77800000)));
}
void narrow(double v, double& r) { r = v; }
void narrow(float v, float& r) { r = v; }
void narrow(float v, bf16& r) {
  uint32_t u = as_bits(v);
  if (v != v) { r.bits = uint16_t(u >> 16 | 0x40); return; }
  r.bits = uint16_t((u + 0x7fff + (u >> 16 & 1)) >> 16);
}
void narrow(float v, f16& r) {
  uint32_t u = as_bits(v), sign = u >> 16 & 0x8000, a = u & 0x7fffffff;
  if (a > 0x7f800000) { r.bits = uint16_t(sign | 0x7e00); return; }
  if (a >= 0x477ff000) { r.bits = uint16_t(sign | 0x7c00); return; }
  if (a < 0x38800000) { r.bits = uint16_t(sign | (as_bits(as_float(a) + 0.5f) - as_bits(0.5f))); return; }
  r.bits = uint16_t(sign | ((a - 0x38000000 + 0xfff + (a >> 13 & 1)) >> 13));
}

int64_t at(const void* p, int bits, int64_t e) {
  return bits == 32 ? static_cast<const int32_t*>(p)[e] : static_cast<const int64_t*>(p)[e];
}

template <class T>
int forward(int64_t B, int64_t M, int64_t N, int64_t C, int64_t O, const T* x, const T* w, const int64_t* row_ptr,
            const void* col, int col_bits, const void* tie, int tie_bits, bool transposed, T* y, int threads) {
  using R = decltype(widen(T()));
  bool failed = false;
#pragma omp parallel for num_threads(threads > 1 ? threads : 1) schedule(static)
  for (int64_t i = 0; i < M; i++) {
    R* acc = new (std::nothrow) R[size_t(O + 1)];
    if (!acc) { failed = true; continue; }
    for (int64_t b = 0; b < B; b++) {
      for (int64_t o = 0; o < O; o++) acc[o] = 0;
      for (int64_t e = row_ptr[i]; e < row_ptr[i + 1]; e++) {
        const T* xe = x + (b * N + at(col, col_bits, e)) * C;
        const T* we = w + (tie ? at(tie, tie_bits, e) : e) * C * O;
        for (int64_t c = 0; c < C; c++)
          for (int64_t o = 0; o < O; o++) acc[o] += widen(xe[c]) * widen(we[transposed ? o * C + c : c * O + o]);
      }
      for (int64_t o = 0; o < O; o++) narrow(acc[o], y[(b * M + i) * O + o]);
    }
    delete[] acc;
  }
  return failed ? 3 : 0;
}

template <class T>
int outer(int64_t B, int64_t M, int64_t N, int64_t C, int64_t O, int64_t num, const T* x, const T* g,
          const int64_t* row_ptr, const void* col, int col_bits, const void* tie, int tie_bits, T* out, int) {
  using R = decltype(widen(T()));
  R* acc = new (std::nothrow) R[size_t(num * C * O + 1)]();
  if (!acc) return 3;
  for (int64_t i = 0; i < M; i++)
    for (int64_t e = row_ptr[i]; e < row_ptr[i + 1]; e++) {
      R* d = acc + (tie ? at(tie, tie_bits, e) : e) * C * O;
      for (int64_t b = 0; b < B; b++) {
        const T* xe = x + (b * N + at(col, col_bits, e)) * C;
        const T* gi = g + (b * M + i) * O;
        for (int64_t c = 0; c < C; c++)
          for (int64_t o = 0; o < O; o++) d[c * O + o] += widen(xe[c]) * widen(gi[o]);
      }
    }
  for (int64_t k = 0; k < num * C * O; k++) narrow(acc[k], out[k]);
  delete[] acc;
  return 0;
}

}  // namespace

extern "C" int scisparse_isa(void) { return 1; }

#define DISPATCH(call)                     \
  switch (dtype) {                         \
    case 0: { using T = double; return call; } \
    case 1: { using T = float; return call; }  \
    case 2: { using T = bf16; return call; }   \
    case 3: { using T = f16; return call; }    \
    default: return 1;                     \
  }

extern "C" int scisparse_gather_matmul(int dtype, int isa, int64_t B, int64_t M, int64_t N, int64_t C, int64_t O,
                                       const void* x, const void* weight, const int64_t* row_ptr, const void* col,
                                       int col_bits, const void* tie, int tie_bits, int transpose_weight, void* y,
                                       int threads) {
  if (isa < 0 || isa > scisparse_isa()) return 2;
  DISPATCH((forward<T>(B, M, N, C, O, static_cast<const T*>(x), static_cast<const T*>(weight), row_ptr, col, col_bits,
                       tie, tie_bits, transpose_weight != 0, static_cast<T*>(y), threads)))
}

extern "C" int scisparse_edge_outer(int dtype, int isa, int64_t B, int64_t M, int64_t N, int64_t C, int64_t O,
                                    int64_t num_weights, const void* x, const void* grad, const int64_t* row_ptr,
                                    const void* col, int col_bits, const void* tie, int tie_bits, void* out,
                                    int threads) {
  if (isa < 0 || isa > scisparse_isa()) return 2;
  DISPATCH((outer<T>(B, M, N, C, O, num_weights, static_cast<const T*>(x), static_cast<const T*>(grad), row_ptr, col,
                     col_bits, tie, tie_bits, static_cast<T*>(out), threads)))
}
