#pragma once
// Interface for the bench of an op. The harness owns the data, the timing and the ceilings. The file of an op adds
// cases:
//
//   static const Cases cases([](Suite& suite) {
//     for (Shape s : suite.shapes({{.batch = 16, .time = 4000, .channels = 128}}))
//       suite.add({.name = "tanh_forward/" + label(s), .bytes = 8 * s.elements(), .flops = 12 * s.elements()},
//                 [=](Data& data) -> Run {
//                   const View<float> x = data.random(s), y = data.random(s);
//                   return [=](Context& ctx) { tanh_forward(ctx, {.x = x, .y = y}); };
//                 });
//   });
//
// docs/performance.md defines the columns, how runs are made and which of them count.
//
//   ./nacre_bench --threads 2 --benchmark_filter=snake --benchmark_out=snake.json
//   ./nacre_bench --device cuda --cases cases.json       writes the list of cases for bench/peers, and ends
//   ./nacre_bench --device cuda --small                  runs every case once on small shapes without timing, for
//                                                        tools that check memory accesses
//   ./nacre_bench --device cuda --progress done --limit 60 --benchmark_out=cuda.json
//
// With --progress, the name of each case is appended to the file before the case runs, and cases that the file names
// are skipped. If the process is killed, the same command continues with the next case. --limit ends the program when a
// case takes more than that many seconds. The file of --benchmark_out gets each result at once, and its closing
// brackets at the end of the program. Exit codes: 0 done, 1 a case failed, 2 usage, 4 cannot write, 6 the device failed
// or was lost, 124 a case ran past --limit.
#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <variant>
#include <vector>

#include "nacre/context.h"

namespace nacre::bench {

/// The function that is timed. It launches work on the given context and allocates nothing.
using Run = std::function<void(Context&)>;

/// Buffers of one case. They live while the case runs.
class Data {
 public:
  explicit Data(Context& c) : ctx(c) {}
  Context& ctx;
  /// Uniform values in [low, high). Outputs are filled, too: zeros would be too favourable to caches, power and
  /// denormals.
  template <class T = float>
  View<T> random(Shape, double low = -1, double high = 1);
  /// Uniform integers in [0, n).
  View<int32_t> indices(Shape, int32_t n);
  /// Zeros, for state that starts at zero.
  template <class T = float>
  View<T> zeros(Shape s) {
    memory_.emplace_back(ctx, static_cast<size_t>(s.elements()) * sizeof(T));
    return {reinterpret_cast<T*>(memory_.back().data()), s};
  }
  /// Adds a figure to the case. It is printed after the standard columns.
  void figure(const std::string& name, double value) { figures[name] = value; }
  std::map<std::string, double> figures;

 private:
  /// Fills a buffer with `values`, repeated as often as needed.
  template <class T>
  void fill(View<T>, std::vector<T> values);
  std::vector<Memory> memory_;
  uint64_t drawn_ = 0;
};

/// One parameter of a case for another program that runs the same, for example "time", 16896.
struct Parameter {
  std::string name;
  std::variant<int64_t, std::string> value;
};

struct CaseInfo {
  std::string name;                 ///< op_direction[/variant]/label(shape)
  int64_t bytes = 0;                ///< read or written, each byte counted once
  int64_t flops = 0;                ///< operations of the formula; a fused multiply-add is two
  std::string arithmetic = "fp32";  ///< fp32, tf32 (also the context's precision) or bf16; selects the peak
  std::string peak{};               ///< overrides the peak: an op may use tf32 products and be exact
  std::vector<Parameter> parameters{};
  double audio_seconds = 0;  ///< seconds of audio that one run processes; 0: not shown
  bool eager = false;        ///< cannot be captured: waits, reads back, or replays its own graph
  bool uneven = false;       ///< runs differ in their work, so speeds are those of their mean; p99 is shown. CPU only
  /// Not empty: the reason why this case cannot run here. The case is listed with this line and does not run.
  std::string skipped{};
};

class Suite {
 public:
  Suite(bool cuda, bool small) : cuda_(cuda), small_(small) {}
  /// Whether cases are for a CUDA device (shapes of docs/performance.md) or for the CPU.
  bool cuda() const { return cuda_; }
  bool small() const { return small_; }
  /// n, or min(n, small) with --small.
  int64_t least(int64_t n, int64_t small) const { return small_ && small < n ? small : n; }
  /// With --small, limits a shape to 2 x 70 x 40.
  Shape fit(Shape s) const { return {least(s.batch, 2), least(s.time, 70), s.width, least(s.channels, 40)}; }
  /// The shapes for the CPU or for CUDA, each limited by fit().
  std::vector<Shape> shapes(std::vector<Shape> cpu, std::vector<Shape> cuda = {}) const;
  /// `setup` makes the data and returns the function to time. It is called only if the case is selected.
  void add(CaseInfo, std::function<Run(Data&)> setup);
  struct Entry {
    CaseInfo info;
    std::function<Run(Data&)> setup;
  };
  std::vector<Entry> entries;

 private:
  bool cuda_, small_;
};

/// A setup throws this if its case cannot run, for example without a library. The case prints its line and is no
/// failure.
class Skip : public Error {
 public:
  explicit Skip(const std::string& why) : Error(ErrorKind::device, why) {}
};

/// A static object of this type registers the cases of an op's bench.
class Cases {
 public:
  explicit Cases(void (*define)(Suite&));
};

/// "16x4000x128": batch, time, channels. The width follows only if it is not 1.
std::string label(Shape);
/// {op, direction, type, batch, time, channels}: the parameters of an op on one tensor.
std::vector<Parameter> tensor_parameters(const char* op, const char* direction, const std::string& type, Shape);
/// The name of the type, "fp32" or "bf16".
template <class T>
std::string type_name() {
  return sizeof(T) == 2 ? "bf16" : "fp32";
}

}  // namespace nacre::bench
