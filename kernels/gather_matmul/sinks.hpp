// Where edge_outer puts the results of edges, which come in order.
#pragma once

#include "problem.hpp"

namespace SCISPARSE_NAMESPACE {
namespace {

// A kernel asks for space for the results of some edges, fills it, and hands them over.
template <class R>
class Sink {
 public:
  virtual R* space(int64_t numbers) = 0;
  virtual void take(int64_t e, int64_t edges, int64_t per_edge) = 0;
  virtual bool wants(int64_t) const { return true; }  // results of other edges need not be computed

 protected:
  ~Sink() = default;
};

// Each edge has its own weight: results go to the output as they are, in whole cache lines, past the caches when `streaming`.
template <class R>
class OutputSink final : public Sink<R> {
 public:
  // The first result is number `position` of the output; `most` bounds the space asked for at once.
  OutputSink(Numbers<R, void> out, int64_t position, int64_t most, bool streaming)
      : out_(out), streaming_(streaming), line_(64 / out.bytes()),
        begin_((reinterpret_cast<intptr_t>(out.data) / out.bytes() + position) % line_), filled_(begin_),
        start_(position - begin_), capacity_(most + 4096), stage_(capacity_ + width<R>) {}

  explicit operator bool() const { return bool(stage_); }

  R* space(int64_t numbers) override {
    if (filled_ + numbers > capacity_) write_lines();
    return stage_.get() + filled_;
  }

  void take(int64_t, int64_t edges, int64_t per_edge) override { filled_ += edges * per_edge; }

  void finish() {
    write_lines();
    out_.write(stage_.get() + begin_, filled_ - begin_, start_ + begin_);
#if SCISPARSE_ISA >= 2
    _mm_sfence();
#endif
  }

 private:
  void write_lines() {
    const int64_t whole = filled_ / line_ * line_;
    if (whole == 0) return;
    int64_t k = 0;
    if (begin_ > 0) {  // the first results do not begin a line
      out_.write(stage_.get() + begin_, line_ - begin_, start_ + begin_);
      k = line_;
    }
    if (streaming_)
      for (; k < whole; k += line_) stream_line(k);
    else
      out_.write(stage_.get() + k, whole - k, start_ + k);
    std::memmove(stage_.get(), stage_.get() + whole, size_t(filled_ - whole) * sizeof(R));
    start_ += whole;
    filled_ -= whole;
    begin_ = 0;
  }

  SCISPARSE_INLINE void stream_line(int64_t k) {
    using Bytes = Vec<char, simd_bytes>;
    alignas(64) char narrowed[64] = {};
    const char* line = reinterpret_cast<const char*>(stage_.get() + k);
    if (!out_.are_reals()) {
      Numbers<R, void>{narrowed, out_.dtype}.write(stage_.get() + k, line_, 0);
      line = narrowed;
    }
    char* to = static_cast<char*>(out_.data) + (start_ + k) * out_.bytes();
#pragma GCC unroll 4
    for (int l = 0; l < 64; l += simd_bytes) {
      Bytes bytes;
      std::memcpy(&bytes, line + l, sizeof bytes);
      stream(to + l, bytes);
    }
  }

  Numbers<R, void> out_;
  bool streaming_;
  int64_t line_;                              // numbers in a cache line
  int64_t begin_, filled_, start_, capacity_;  // the stage holds [begin, filled) of numbers counted from `start`, which begins a line
  Buffer<R> stage_;
};

// Edges with a tie in [first, last) are added to sums [last - first, C, O].
template <class R>
class SumSink final : public Sink<R> {
 public:
  SumSink(const Indices& tie, int64_t first, int64_t last, int64_t most, R* sums)
      : tie_(tie), first_(first), last_(last), sums_(sums), stage_(most) {}

  explicit operator bool() const { return bool(stage_); }
  bool wants(int64_t e) const override { return at(tie_, e) >= first_ && at(tie_, e) < last_; }
  R* space(int64_t) override { return stage_.get(); }

  void take(int64_t e, int64_t edges, int64_t per_edge) override {
    for (int64_t j = 0; j < edges; j++) {
      if (!wants(e + j)) continue;
      const R* from = stage_.get() + j * per_edge;
      R* to = sums_ + (at(tie_, e + j) - first_) * per_edge;
      for (int64_t k = 0; k < per_edge; k++) to[k] += from[k];
    }
  }

  void finish() {}

 private:
  Indices tie_;
  int64_t first_, last_;
  R* sums_;
  Buffer<R> stage_;
};

}  // namespace
}  // namespace SCISPARSE_NAMESPACE
