// W neighbouring sites, one in each lane, for edges that carry single numbers (C = O = 1).
#pragma once

#include "problem.hpp"

namespace SCISPARSE_NAMESPACE {
namespace {

// W index values from e on as 32-bit numbers, -1 from the n-th on.
template <int W>
SCISPARSE_INLINE Vec<int32_t, W> load_indices(const Indices& indices, int64_t e, int n) {
  if (indices.bits == 32) {
    const int32_t* from = static_cast<const int32_t*>(indices.data) + e;
    return first_or_negative<W>(load_bits<int32_t, W>(from, n), n);
  }
  const int64_t* from = static_cast<const int64_t*>(indices.data) + e;
  int32_t values[W];
  if (n == W)
    for (int l = 0; l < W; l++) values[l] = int32_t(from[l]);
  else
    for (int l = 0; l < W; l++) values[l] = l < n ? int32_t(from[l]) : -1;
  return load_bits<int32_t, W>(values, W);
}

// Index values of `count` edges from e on need no more than 32 bits.
inline bool are_short(const Indices& indices, int64_t e, int64_t count) {
  if (indices.bits != 64) return true;
  const int64_t* from = static_cast<const int64_t*>(indices.data) + e;
  int64_t high = 0;
  for (int64_t k = 0; k < count; k++) high |= from[k] >> 31;
  return high == 0;
}

// The edges of W sites by tap: lane s of tap k is edge k of site s.
template <class R>
class SiteLanes {
 public:
  static constexpr int W = width<R>, most_taps = 64;
  using V = Vec<R, W>;
  using Index = Vec<int32_t, W>;

  // Takes sites [i, i + W). False where rows are too long, or too unequal to fill the lanes.
  bool take(const Pattern& pattern, int64_t i) {
    const int64_t* row_ptr = pattern.row_ptr + i;
    sites = int(min_of(W, pattern.sites - i));
    first_edge = row_ptr[0];
    edges = row_ptr[sites] - first_edge;
    if (edges > W * most_taps) return false;
    for (int s = 0; s < sites; s++) start_[s] = int32_t(row_ptr[s] - first_edge);
    for (int s = sites; s <= W; s++) start_[s] = int32_t(edges);
    int32_t most = 0, fewest = most_taps;
    for (int s = 0; s < W; s++) {
      const int32_t fan_in = start_[s + 1] - start_[s];
      most = fan_in > most ? fan_in : most;
      fewest = fan_in < fewest ? fan_in : fewest;
    }
    taps = most;
    if (taps > most_taps || taps * W > 2 * edges + W) return false;
    runs = fewest > 0 && fewest == most && neighbours_follow(pattern.col);
    for (int64_t k = 0; runs && k < taps; k++) source[k] = at(pattern.col, first_edge + k);
    // Lanes beyond the last tap may then hold anything, so whole vectors are read where there are edges enough.
    whole_until_ = runs ? pattern.row_ptr[pattern.sites] - W : -1;
    return true;
  }

  // to[k * W + s] = edge k of site s, where values(e, n) are those of the n edges from e on.
  template <class Values, class E>
  SCISPARSE_INLINE void by_tap(const Values& values, E* to) const {
    for (int64_t k = 0; k < taps; k += W) {
      Vec<E, W> t[W];
      for (int s = 0; s < W; s++) {
        const int64_t e = first_edge + start_[s] + k;
        t[s] = values(e, e <= whole_until_ ? W : edges_from(s, k));
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
      for (int s = 0; s < sites; s++)
        if (edges_from(s, k) > 0) store(to + start_[s] + k, t[s], edges_from(s, k));
    }
  }

  int sites;
  int64_t first_edge, edges, taps;
  bool runs;                  // every tap reads W sources in a row,
  int64_t source[most_taps];  // of which this is the first

 private:
  SCISPARSE_INLINE int edges_from(int s, int64_t k) const {
    return int(max_of(0, min_of(W, start_[s + 1] - start_[s] - k)));
  }

  // Each edge of a site reads the source after that of the same edge of the site before.
  bool neighbours_follow(const Indices& col) const {
    const int64_t count = (W - 1) * taps;
    if (col.bits == 32) {
      const int32_t* c = static_cast<const int32_t*>(col.data) + first_edge;
      int32_t differences = 0;
      for (int64_t k = 0; k < count; k++) differences |= c[k + taps] - c[k] - 1;
      return differences == 0;
    }
    const int64_t* c = static_cast<const int64_t*>(col.data) + first_edge;
    int64_t breaks = 0;
    for (int64_t k = 0; k < count; k++) breaks |= c[k + taps] - c[k] - 1;
    return breaks == 0;
  }

  int32_t start_[W + 1];  // of the sites, and of the one after, counted from first_edge
  int64_t whole_until_;
};

}  // namespace
}  // namespace SCISPARSE_NAMESPACE
