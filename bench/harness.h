#pragma once
// What the bench of an op needs. The harness owns the data, the timing and the ceilings; an op's file gives cases:
//
//   static const Cases cases([](Suite& suite) {
//     for (Shape s : {Shape{.batch = 16, .time = 4000, .channels = 128}})
//       suite.add({.name = "tanh_forward/" + label(s), .bytes = 8 * s.elements(), .flops = 12 * s.elements()},
//                 [=](Data& data) -> Run {
//                   const View<float> x = data.random(s), y = data.random(s);
//                   return [=](Context& ctx) { tanh_forward(ctx, {.x = x, .y = y}); };
//                 });
//   });
//
// Each line shows GB/s and GFLOP/s, both as percent of what this machine reached in this process with these threads
// (copy of the same footprint, fused multiply-adds in registers), and floor%: the roofline's time
// max(bytes / copy, flops / fma) as percent of the measured time, so that 100 is as fast as it can be.
//
//   ./nacre_bench --threads 2 --benchmark_filter=snake --benchmark_out=snake.json
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "nacre/context.h"

namespace nacre::bench {

/// What is timed. Launches on the context given, allocates nothing.
using Run = std::function<void(Context&)>;

/// Buffers of one case; they live while it runs.
class Data {
 public:
  explicit Data(Context& c) : ctx(c) {}
  Context& ctx;
  /// Uniform in [low, high): zeros would flatter caches, power and denormals alike. Outputs are made so, too.
  template <class T = float>
  View<T> random(Shape, double low = -1, double high = 1);
  /// Uniform integers in [0, n).
  View<int32_t> indices(Shape, int32_t n);
  /// Zeros: state that starts so.
  template <class T = float>
  View<T> zeros(Shape s) {
    memory_.emplace_back(ctx, static_cast<size_t>(s.elements()) * sizeof(T));
    return {reinterpret_cast<T*>(memory_.back().data()), s};
  }

 private:
  std::vector<Memory> memory_;
  uint64_t drawn_ = 0;
};

struct CaseInfo {
  std::string name;   ///< op_direction[/variant]/label(shape)
  int64_t bytes = 0;  ///< that must be read or written, each once
  int64_t flops = 0;  ///< that the formula needs; a fused multiply-add is two
};

class Suite {
 public:
  /// `setup` makes the data and returns what to time; it is called only when the case is selected.
  void add(CaseInfo, std::function<Run(Data&)> setup);
  struct Entry {
    CaseInfo info;
    std::function<Run(Data&)> setup;
  };
  std::vector<Entry> entries;
};

/// A static object of this type is all that an op's bench needs to be found.
class Cases {
 public:
  explicit Cases(void (*define)(Suite&));
};

/// "16x4000x128": batch, time, channels; width only where it is not 1.
std::string label(Shape);

}  // namespace nacre::bench
