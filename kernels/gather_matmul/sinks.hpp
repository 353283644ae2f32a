// Where edge_outer puts the results of edges, which come in order.
#pragma once

#include "problem.hpp"

namespace SCISPARSE_NAMESPACE {
namespace {

// A kernel asks for space, fills it with the results of some edges, and hands them over.
template <class R>
class Sink {
 public:
  virtual R* space() = 0;
  virtual void take(int64_t e, int64_t edges, int64_t per_edge) = 0;
  virtual bool wants(int64_t) const { return true; }  // results of other edges need not be computed

 protected:
  ~Sink() = default;
};

// Each edge has its own weight: results go to the output in place, or, narrowed, by way of a stage.
template <class R>
class OutputSink final : public Sink<R> {
 public:
  // The first result is number `position` of the output; `most` bounds those handed over at once.
  OutputSink(Numbers<R, void> out, int64_t position, int64_t most)
      : out_(out), position_(position), stage_(out.are_reals() ? 0 : most) {}

  explicit operator bool() const { return bool(stage_); }

  R* space() override { return out_.are_reals() ? out_.template as<R>() + position_ : stage_.get(); }

  void take(int64_t, int64_t edges, int64_t per_edge) override {
    if (!out_.are_reals()) out_.write(stage_.get(), edges * per_edge, position_);
    position_ += edges * per_edge;
  }

 private:
  Numbers<R, void> out_;
  int64_t position_;
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
  R* space() override { return stage_.get(); }

  void take(int64_t e, int64_t edges, int64_t per_edge) override {
    for (int64_t j = 0; j < edges; j++) {
      if (!wants(e + j)) continue;
      const R* from = stage_.get() + j * per_edge;
      R* to = sums_ + (at(tie_, e + j) - first_) * per_edge;
      for (int64_t k = 0; k < per_edge; k++) to[k] += from[k];
    }
  }

 private:
  Indices tie_;
  int64_t first_, last_;
  R* sums_;
  Buffer<R> stage_;
};

}  // namespace
}  // namespace SCISPARSE_NAMESPACE
