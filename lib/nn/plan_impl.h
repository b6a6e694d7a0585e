#pragma once
// The records that a plan makes during its walks: steps, activations, blocks, and the program.
#include <algorithm>
#include <map>
#include <optional>
#include <utility>

#include "nacre/nn/parameters.h"
#include "nacre/nn/plan.h"

namespace nacre {

struct Plan::Impl {
  enum class Walk : uint8_t { none, first, second };
  /// A pass of a step. time() turns it into a number on the time axis once it is known which steps are active.
  struct Moment {
    int step = 0;
    Until pass = Until::forward;
  };
  /// A part of the plan's memory. It is alive from the first to the last of its moments, or always.
  struct Block {
    size_t bytes = 0, offset = 0;
    std::vector<Moment> moments{};
    bool always = false;
    bool needed = true;  // false: working memory of a backward pass that never runs
    int begin = 0, end = 0;
  };
  /// One reading of an activation by a step.
  struct Reading {
    int step = 0;
    int passes_to = -1;    // output whose gradient passes to the activation unchanged, or -1
    bool writes = false;   // the step's backward pass writes the gradient of the activation
    bool add = false;      // it adds to the gradient instead of overwriting it
    bool aliased = false;  // the activation's gradient shares the block of that output's gradient
    std::optional<Work> adding{};  // of Step::costs_adding()
  };
  /// An activation or a second name of one: detach() and shares() make records that refer to the block of another
  /// value.
  struct Activation {
    Shape shape{};
    Storage storage = Storage::float32;
    size_t bytes = 0;
    int made = -1;  // number of the step that made it; -1: a source
    int walk = 0;
    bool differentiable = false;
    int value = -1, grad = -1;  // numbers of the blocks
    int64_t lag = -1;           // as set, in rows; -1: that of the inputs of the step
    bool shared = false;        // the gradient's block belongs to an activation that the gradient passes to as well
    std::vector<Reading> readings{};
    size_t next_reading = 0;  // used in the second walk
  };
  /// A step and its two moments on a common time axis. Forward moments are assigned when steps are made. Backward
  /// moments are assigned in reverse order when their walk ends. The moments of an inner walk therefore all precede
  /// those of the steps that the outer walk makes afterwards.
  struct StepRecord {
    std::string name;
    int walk = 0;
    int forward = 0, backward = 0;
    std::vector<int> inputs{}, outputs{};  // numbers of the activations
    bool trains = false;
    bool active = false;         // a gradient reaches it
    std::vector<int> parts{};    // blocks of Step::parts()
    bool finishes_sums = false;  // all parts that wait are added after its backward pass
    Costs for_reader{};
    std::map<int, Footprint> reaches{};  // the key is the block of the input's value
  };
  /// Costs as a layer stated them, kept until it is known which backward passes run.
  struct Counted {
    int step = 0;
    std::string row{};
    Costs costs{};
  };
  /// One call of Step::gradient(weight). The uses are in forward order.
  struct WeightUse {
    int step = 0;
    const Weight* weight = nullptr;
    bool writes = false, add = false;
  };
  enum class Kind : uint8_t { forward, backward, update, then };
  /// A recorded closure. The program is a sequence of them.
  struct Op {
    std::function<void(Context&)> run;
    int step = 0;  // -1: belongs to no step
    int walk = 0;
    Kind kind = Kind::forward;
  };
  /// A walk that has not ended. `later` holds backward and update closures, `last` those registered with then().
  struct Open {
    int number = 0;
    std::vector<int> steps{};
    std::vector<Op> later{}, last{};
  };

  // Between the walks, the n-th step, activation and call of one walk correspond to the n-th of the other. The vectors
  // hold the records of the first walk, and the counters next_... say how far the second one has come.
  Impl(Context& c, Purpose p, int64_t frames) : ctx(c), purpose(p), block_frames(frames) {}

  Context& ctx;
  Purpose purpose;
  int64_t block_frames, start_frames = 0;
  Walk walk = Walk::none;
  bool surveys = false;  // no second walk follows
  // clock: the next free moment. walks: the number of the next walk; the outermost has number 0.
  int clock = 0, walks = 0;
  std::vector<StepRecord> steps;
  std::vector<std::string> names;
  std::vector<Counted> counted;
  std::vector<CostRow> rows;
  int newest = -1;     // number of the step
  int unsettled = -1;  // step whose outputs have not yet been found to have gradients or not
  // A stack: the innermost walk is the last one.
  std::vector<Open> open;
  std::vector<const Parameters*> frozen;
  std::vector<Activation> activations;
  std::vector<Block> blocks;
  std::vector<WeightUse> uses;
  size_t next_activation = 0, next_use = 0;
  std::vector<int> calls;  // block of the n-th call for scratch, saved, carried or persistent memory
  size_t next_call = 0;
  std::vector<Op> program;
  // carried: what reset() clears. changed: what keep_state() copies into `undo`.
  std::vector<View<std::byte>> carried;
  std::vector<View<float>> changed;
  Memory memory, undo;
  StreamBlock stream_block;
  std::optional<View<const int32_t>> labels;  // of set_labels()
  bool runs_inner = true;
  /// Whether run() includes the op.
  bool runs(const Op& op) const noexcept { return runs_inner || op.walk == 0; }
  // In bytes; see Plan::bytes(), peak_live_bytes() and unshared_bytes().
  size_t total = 0, live = 0, unshared = 0;

  // In bytes: a multiple of a cache line and of any vector, as in kernels/runtime/context.cpp.
  static constexpr size_t alignment = 256;
  // Parts of gradients that wait to be added, in bytes: about half of the L2 of a large GPU.
  static constexpr size_t most_parts = size_t{32} << 20;
  static size_t rounded(size_t bytes) { return (bytes + alignment - 1) / alignment * alignment; }
  bool training() const { return purpose == Purpose::training; }
  int64_t lag(int id);
  template <class T>
  static auto& nth(T& v, int i) {
    return v[static_cast<size_t>(i)];
  }
  std::string name(int step) const { return step < 0 ? "the beginning" : "\"" + nth(steps, step).name + "\""; }
  [[noreturn]] void refuse(const std::string& what) const {
    throw Error(ErrorKind::usage, "plan: at step " + std::to_string(newest) + ", " + name(newest) + ": " + what);
  }
  [[noreturn]] void walks_differ() const { refuse("the second walk differs from the first"); }
  /// The moment of a pass. A backward pass that never runs extends no lifetime beyond the forward pass.
  int time(Moment m) const {
    const StepRecord& s = nth(steps, m.step);
    return m.pass == Until::forward || !s.active ? s.forward : s.backward;
  }
  std::byte* address(int block) {
    // Null in the first walk, for a missing gradient, and for working memory of a backward pass that never runs.
    if (walk != Walk::second || block < 0 || !nth(blocks, block).needed) return nullptr;
    return memory.data() + nth(blocks, block).offset;
  }
  int add_block(size_t bytes, std::vector<Moment> moments, bool always = false) {
    blocks.push_back({.bytes = rounded(bytes), .moments = std::move(moments), .always = always});
    return static_cast<int>(blocks.size()) - 1;
  }
  Activation& at(int id) {
    if (id < 0 || static_cast<size_t>(id) >= activations.size()) refuse("reads an activation that no step made");
    return nth(activations, id);
  }
  void expect_walking(const char* call) const {
    if (walk == Walk::none || open.empty())
      throw Error(ErrorKind::usage, std::string("plan: ") + call + " is called outside of a walk");
  }
  /// A step that is complete has been settled, and its closures have their place in the program.
  void expect_newest(int step) const {
    expect_walking("a step");
    if (step != newest) refuse("step " + name(step) + " is described after a newer step was created");
  }
  /// Address of the block for the n-th call of this kind. The first walk creates the block.
  std::byte* call(size_t bytes, std::vector<Moment> moments, bool always) {
    if (bytes == 0) return nullptr;
    if (walk == Walk::first) {
      calls.push_back(add_block(bytes, std::move(moments), always));
      return nullptr;
    }
    if (next_call >= calls.size() || nth(blocks, calls[next_call]).bytes != rounded(bytes)) walks_differ();
    return address(calls[next_call++]);
  }
  bool trainable(const Parameters& p) const {
    if (!training() || std::find(frozen.begin(), frozen.end(), &p) != frozen.end()) return false;
    // Closures hold the addresses of gradients, so these must exist. A survey records no closures.
    if (!p.allocated() && !surveys)
      refuse("the parameters have no memory yet; allocate them before a plan for training");
    return !p.allocated() || p.with_gradients();
  }
  bool reads_differentiable(const StepRecord& s) const {
    return std::any_of(s.inputs.begin(), s.inputs.end(), [&](int id) { return nth(activations, id).differentiable; });
  }
  bool differentiable(const StepRecord& s) const { return training() && (s.trains || reads_differentiable(s)); }
  /// Called when the newest step is complete. Its outputs have gradients if one of its inputs has, or if it trains.
  void settle() {
    // makes() cannot know this, because a step may declare inputs and weights after its outputs.
    if (walk == Walk::first && unsettled >= 0) {
      const StepRecord& s = nth(steps, unsettled);
      for (const int id : s.outputs) nth(activations, id).differentiable = differentiable(s);
    }
    unsettled = -1;
  }
  void begin_walk() {
    settle();
    open.push_back({.number = walks++});
  }
  void end_walk();
  void find_active();
  void order_writers();
  void share_gradients();
  void place_sums();
  void count();
  void lay_out();
  void pack();
  void keep_state(bool restore);
};

}  // namespace nacre
