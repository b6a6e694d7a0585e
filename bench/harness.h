#pragma once
// What the bench of an op needs. The harness owns the data, the timing and the ceilings; an op's file gives cases:
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
// What the columns mean, how runs are made and which are counted: docs/performance.md.
//
//   ./nacre_bench --threads 2 --benchmark_filter=snake --benchmark_out=snake.json
//   ./nacre_bench --device cuda --cases cases.json       writes what there is, for bench/peers, and ends
//   ./nacre_bench --device cuda --small                  every case once on small shapes, no times: for tools that
//   check
//   ./nacre_bench --device cuda --progress done --limit 60 --benchmark_out=cuda.json
//
// With --progress the name of each case goes into that file before the case runs, and cases that it names are left out: what
// a process that was killed did not reach is done by another one, called alike. --limit ends the program where a case takes
// longer, in seconds. The file of --benchmark_out has each result as soon as it is there, but its end only at the end.
// Exit codes: 0 done, 1 a case failed, 2 usage, 4 cannot write, 6 the device failed or was lost, 124 a case ran past --limit.
#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <variant>
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
  /// One more figure of the case, shown behind the others.
  void figure(const std::string& name, double value) { figures[name] = value; }
  std::map<std::string, double> figures;

 private:
  /// `values` once or over and over.
  template <class T>
  void fill(View<T>, std::vector<T> values);
  std::vector<Memory> memory_;
  uint64_t drawn_ = 0;
};

/// What somebody else needs to run the same: "time", 16896.
struct Parameter {
  std::string name;
  std::variant<int64_t, std::string> value;
};

struct CaseInfo {
  std::string name;                 ///< op_direction[/variant]/label(shape)
  int64_t bytes = 0;                ///< that must be read or written, each once
  int64_t flops = 0;                ///< that the formula needs; a fused multiply-add is two
  std::string arithmetic = "fp32";  ///< whose peak counts: fp32, tf32 (also what the context is made with) or bf16
  std::string peak{};               ///< whose peak counts instead: an op may take tf32 products and be exact
  std::vector<Parameter> parameters{};
  double audio_seconds = 0;  ///< what one run works off; 0: not shown
  bool eager = false;        ///< cannot be captured: it waits, reads back, or replays a graph of its own
  /// Not empty: why this case cannot run here. It is listed, with this line, and not run.
  std::string skipped{};
};

class Suite {
 public:
  Suite(bool cuda, bool small) : cuda_(cuda), small_(small) {}
  /// Whether cases are for a CUDA device (PERFORMANCE's shapes) or for the CPU.
  bool cuda() const { return cuda_; }
  bool small() const { return small_; }
  /// n, or with --small at most `small`.
  int64_t least(int64_t n, int64_t small) const { return small_ && small < n ? small : n; }
  /// With --small: at most 2 x 70 x 40.
  Shape fit(Shape s) const { return {least(s.batch, 2), least(s.time, 70), s.width, least(s.channels, 40)}; }
  /// The CPU's shapes, or CUDA's, each fitted.
  std::vector<Shape> shapes(std::vector<Shape> cpu, std::vector<Shape> cuda = {}) const;
  /// `setup` makes the data and returns what to time; it is called only when the case is selected.
  void add(CaseInfo, std::function<Run(Data&)> setup);
  struct Entry {
    CaseInfo info;
    std::function<Run(Data&)> setup;
  };
  std::vector<Entry> entries;

 private:
  bool cuda_, small_;
};

/// What a setup throws where its case cannot run (a library that is missing): shown with its line, and no failure.
class Skip : public Error {
 public:
  explicit Skip(const std::string& why) : Error(ErrorKind::device, why) {}
};

/// A static object of this type is all that an op's bench needs to be found.
class Cases {
 public:
  explicit Cases(void (*define)(Suite&));
};

/// "16x4000x128": batch, time, channels; width only where it is not 1.
std::string label(Shape);
/// {op, direction, type, batch, time, channels}: the parameters of whatever takes one tensor.
std::vector<Parameter> tensor_parameters(const char* op, const char* direction, const std::string& type, Shape);
/// "fp32" or "bf16".
template <class T>
std::string type_name() {
  return sizeof(T) == 2 ? "bf16" : "fp32";
}

}  // namespace nacre::bench
