// W neighbouring sites that read neighbouring sources, one in each lane, for edges that carry single numbers (C = O = 1).
#pragma once

#include "problem.hpp"

namespace SCISPARSE_NAMESPACE {
namespace {

// The edges of W sites by tap: lane s of tap k is edge k of site s. No input needs a gather, which is slower than scalar loads.
template <class R>
class SiteLanes {
 public:
  static constexpr int W = width<R>, most_taps = 64;
  using V = Vec<R, W>;

  // Takes sites [i, i + W) if there are as many, of the same fan-in, and every edge reads the source after that of the same edge
  // of the site before.
  bool take(const Pattern& pattern, int64_t i) {
    if (i + W > pattern.sites) return false;
    const int64_t* row_ptr = pattern.row_ptr + i;
    first_edge = row_ptr[0];
    taps = row_ptr[1] - first_edge;
    if (taps < 1 || taps > most_taps) return false;
    for (int s = 1; s <= W; s++)
      if (row_ptr[s] != first_edge + s * taps) return false;
    if (!neighbours_follow(pattern.col)) return false;
    for (int64_t k = 0; k < taps; k++) source[k] = at(pattern.col, first_edge + k);
    // Lanes beyond the last tap may hold anything, so whole vectors are read where there are edges enough.
    whole_until_ = pattern.row_ptr[pattern.sites] - W;
    return true;
  }

  int64_t edges() const { return taps * W; }

  // to[k * W + s] = values[edge k of site s]
  template <class T>
  SCISPARSE_INLINE void by_tap(const T* values, R* to) const {
    for (int64_t k = 0; k < taps; k += W) {
      V t[W];
      for (int s = 0; s < W; s++) {
        const int64_t e = first_edge + s * taps + k;
        t[s] = load<W>(values + e, e <= whole_until_ ? W : int(min_of(W, taps - k)));
      }
      transpose<log2_of(W), 1>(t);
      std::memcpy(to + k * W, t, sizeof t);
    }
  }

  // The inverse: to[edge k of site s, counted from first_edge] = from[k * W + s].
  SCISPARSE_INLINE void by_edge(const R* from, R* to) const {
    for (int64_t k = 0; k < taps; k += W) {
      V t[W];
      std::memcpy(t, from + k * W, sizeof t);
      transpose<log2_of(W), 1>(t);
      for (int s = 0; s < W; s++) store(to + s * taps + k, t[s], int(min_of(W, taps - k)));
    }
  }

  int64_t first_edge, taps;
  int64_t source[most_taps];  // the first of the W that each tap reads

 private:
  bool neighbours_follow(const Indices& col) const {
    return with_indices(col, first_edge, [&](const auto& c) {
      int64_t breaks = 0;
      for (int64_t k = 0; k < (W - 1) * taps; k++) breaks |= c[k + taps] - c[k] - 1;
      return breaks == 0;
    });
  }

  int64_t whole_until_;
};

}  // namespace
}  // namespace SCISPARSE_NAMESPACE
