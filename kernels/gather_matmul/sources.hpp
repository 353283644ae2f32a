// Sources with neighbouring batches in neighbouring lanes, kept in a cache.
#pragma once

#include "rows.hpp"

namespace SCISPARSE_NAMESPACE {
namespace {

// The inputs of a source as [groups, C / UNIT, G, UNIT]: a group is G = W / Q batches, a vector W reals. UNIT is Q where inputs are
// summed over, else 1.
//
// A source is packed when first asked for and stays until another takes its slot, so one that neighbouring sites share is
// transposed once. Where a source is too narrow to fill vectors, several neighbours share a slot.
template <class R, int Q, int UNIT>
class SourceCache {
 public:
  static constexpr int W = width<R>, G = W / Q;
  using V = Vec<R, W>;

  explicit SourceCache(const Forward<R>& p)
      : p_(p), shift_(shift_of(p.in)), groups_(ceil_div(p.batch, G)), group_pitch_(round_up((p.in << shift_) * G, W)),
        slots_(slots_of(ceil_div(p.pattern.sources, int64_t(1) << shift_), p.cache_bytes)),
        packed_(slots_ * groups_ * group_pitch_ + W), slot_(slots_), widened_(p.in << shift_) {
    for (int64_t s = 0; slot_ && s < slots_; s++) slot_.get()[s] = {-1, -1};
  }

  explicit operator bool() const { return packed_ && slot_ && widened_; }
  int64_t group_pitch() const { return group_pitch_; }

  // Sources found up to now may be overwritten.
  void release() { round_++; }

  // The first group of a source, or null if its slot holds a source found since the last release.
  SCISPARSE_INLINE const R* find(int64_t source) {
    const int64_t number = source >> shift_, place = number & (slots_ - 1);
    Slot& slot = slot_.get()[place];
    R* packed = packed_.get() + place * groups_ * group_pitch_;
    if (__builtin_expect(slot.number != number, 0)) {
      if (slot.round == round_) return nullptr;
      pack(number << shift_, packed);
      slot.number = number;
    }
    slot.round = round_;
    return packed + (source & ((int64_t(1) << shift_) - 1)) * p_.in * G;
  }

 private:
  struct Slot {
    int64_t number, round;
  };

  static int shift_of(int64_t in) {
    int shift = 0;
    while ((in << shift) < W) shift++;
    return shift;
  }

  int64_t slots_of(int64_t numbers, int64_t bytes) const {
    int64_t slots = 16;
    while (slots < numbers && 2 * slots * groups_ * group_pitch_ * int64_t(sizeof(R)) <= bytes) slots *= 2;
    return slots;
  }

  __attribute__((noinline)) void pack(int64_t source, R* packed) const {
    const int64_t count = min_of(int64_t(1) << shift_, p_.pattern.sources - source) * p_.in;
    for (int64_t g = 0; g < groups_; g++)
      for (int64_t c = 0; c < count; c += W) {
        const int n = int(min_of(W, count - c));
        V t[G];
        for (int k = 0; k < G; k++) {
          const int64_t b = g * G + k;
          t[k] = b < p_.batch ? row((b * p_.pattern.sources + source) * p_.in + c, n) : V{};
        }
        transpose<log2_of(G), UNIT>(t);
        for (int k = 0; k < ceil_div(n, Q); k++) store(packed + g * group_pitch_ + c * G + k * W, t[k]);
      }
  }

  SCISPARSE_INLINE V row(int64_t offset, int n) const {
    if (p_.x.are_reals()) {
      const R* from = p_.x.template as<R>() + offset;
      ask_to_read(from + 2 * W);
      return load<W>(from, n);
    }
    p_.x.read(offset, n, widened_.get());
    return load<W>(widened_.get(), n);
  }

  const Forward<R>& p_;
  int shift_;
  int64_t groups_, group_pitch_, slots_, round_ = 0;
  Buffer<R> packed_;
  Buffer<Slot> slot_;
  Buffer<R> widened_;
};

}  // namespace
}  // namespace SCISPARSE_NAMESPACE
