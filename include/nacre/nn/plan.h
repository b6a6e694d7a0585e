#pragma once
// Plan: the program of a model, and where its memory is. The model is walked twice. The first walk records who writes and
// who reads each activation; lifetimes are then packed into one block. The second walk hands out addresses and records the
// steps. After that running is a loop over the steps: nothing is allocated, every address is fixed, and the whole run can
// be captured as one graph.
//
// A *step* is one call of an op with its adjoint. A *walk* is a sequence of steps whose backward passes run in reverse
// order when the walk ends. The program of a walk is: all forward passes, all backward passes in reverse, then what was
// registered with then(). An inner walk (a discriminator that is trained on what the generator just made) runs completely
// before the outer walk goes on.
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "nacre/context.h"

namespace nacre {

class Parameters;
struct Parameter;
struct Weight;

enum class Purpose : uint8_t { inference, training };
/// How long a step needs something: while its forward pass runs, or until its backward pass has run.
enum class Until : uint8_t { forward, backward };

/// An activation: a name for a value that has a lifetime, and in the second walk an address.
struct Flow {
  int id = -1;
  Shape shape{};
  Storage storage = Storage::float32;
  explicit operator bool() const noexcept { return id >= 0; }
};
/// What a step gets for an activation that it reads. `grad` is empty where no gradient is needed. The first writer of a
/// gradient in backward order overwrites it (add is false), all others add.
template <class T>
struct Input {
  View<const T> value{};
  View<T> grad{};
  bool add = false;
};
/// What a step gets for an activation that it writes. `grad` is complete when this step's backward pass runs.
template <class T>
struct Output {
  View<T> value{};
  View<const T> grad{};
  Flow flow{};
};
/// Where a step puts the gradient of an effective weight; empty where the weight is frozen or nothing is trained. As for
/// activations, the first writer in backward order overwrites.
struct WeightGrad {
  View<float> grad{};
  bool add = false;
};

/// What one pass does, every tensor read or written once. A fused multiply-add is two operations.
struct Work {
  double products = 0;  ///< operations that tensor cores can do
  double floats = 0;    ///< operations that they cannot: Snake, transforms, updates
  double bytes = 0;
  Work& operator+=(const Work&) noexcept;
};
/// What a step does. Its backward pass computes gradients of what it reads and of its parameters.
struct Costs {
  Work forward{}, input_gradient{}, weight_gradient{};
  Costs& operator+=(const Costs&) noexcept;
};
struct CostRow {
  std::string name{};
  Work forward{}, backward{};
};

/// Positions along an activation's time, from the first to the last; they may lie outside of it.
struct Span {
  int64_t first = 0, last = 0;
};
/// Position t of the output depends on these positions of an input: t * stride - left + dilation * (0 ... count - 1).
/// transposed: position t of the input feeds these positions of the output.
struct Footprint {
  int64_t count = 1, stride = 1, dilation = 1, left = 0;
  bool transposed = false;
  /// The span of the input that a span of the output depends on.
  Span of(Span output) const noexcept;
};

class Plan;

/// One op call and its adjoint, while it is being described. Only the newest step of a plan can be described further.
/// Views are null in the first walk. The closures are recorded in the second walk and must not allocate when they run.
class Step {
 public:
  /// This step reads x; until = backward: its backward pass reads the value again.
  template <class T>
  Input<T> reads(Flow x, Until until = Until::forward) const {
    const Raw r = read(x, storage_of<T>, until, -1);
    return {View<const T>(typed<T>(r.value, x.shape)), typed<T>(r.grad, x.shape), r.add};
  }
  /// This step reads x in its forward pass to make y = x + ...: the gradient of y passes to x unchanged. Where x and y can
  /// share one block of gradients, `grad` is empty and there is nothing to do; otherwise the step copies or adds.
  template <class T>
  Input<T> passes(Flow x, Flow y) const {
    const Raw r = read(x, storage_of<T>, Until::forward, y.id);
    return {View<const T>(typed<T>(r.value, x.shape)), typed<T>(r.grad, x.shape), r.add};
  }
  /// This step writes an activation; until = backward: its backward pass reads the value again. The activation has a
  /// gradient where a later step needs one and where this step can use it: it reads an activation with a gradient, or
  /// trains parameters.
  template <class T>
  Output<T> makes(Shape shape, Until until = Until::forward) const {
    const Raw r = make(shape, storage_of<T>, until, -1);
    return {typed<T>(r.value, shape), View<const T>(typed<T>(r.grad, shape)), {r.id, shape, storage_of<T>}};
  }
  /// The value of x under a second name with a gradient of its own. A fork is made of these: its backward pass joins the
  /// gradients of the branches.
  template <class T>
  Output<T> shares(Flow x) const {
    const Raw r = make(x.shape, storage_of<T>, Until::forward, x.id);
    return {typed<T>(r.value, x.shape), View<const T>(typed<T>(r.grad, x.shape)), {r.id, x.shape, storage_of<T>}};
  }
  /// Written in this step's forward pass, read in its backward pass. Empty where nothing is trained.
  template <class T>
  View<T> saved(Shape shape) const {
    return typed<T>(save(shape, sizeof(T)), shape);
  }
  /// Working memory during that pass of this step only.
  template <class T = float>
  View<T> scratch(Shape shape, Until used_in) const {
    return typed<T>(temporary(shape, sizeof(T), used_in), shape);
  }
  /// Kept from one run to the next, zero at first and after Plan::reset(): the state of a stream.
  template <class T>
  View<T> carries(Shape shape) const {
    return typed<T>(state(shape, sizeof(T)), shape);
  }
  WeightGrad gradient(const Weight&) const;
  /// Of a parameter that is not a weight; ops add to it. Empty where it is frozen or nothing is trained.
  View<float> gradient(const Parameter&) const;
  /// This step changes memory that outlives the run before the run is over (codebooks, moving averages). A run that is
  /// given up puts it back.
  void changes(View<float>) const;

  /// A row of Plan::costs() with the step's name or `row`; called after reads(). input_gradient counts where an
  /// activation that is read has a gradient, weight_gradient where the step trains parameters.
  void costs(Costs, std::string row = {}) const;
  /// As costs(), but counted in the row of the step that reads the result, if that row has its step's name. So the row
  /// of a convolution includes the activation before it, whether the two are one step or not.
  void costs_reader(const Costs&) const;
  /// Which positions of x the output depends on. Without this call it is the output's own position.
  void reaches(Flow x, const Footprint&) const;

  void forward(std::function<void(Context&)>) const;
  /// Not recorded where no gradient reaches this step.
  void backward(std::function<void(Context&)>) const;
  /// Training of this step's own state from what its passes left; runs right after the backward pass. Recorded in plans
  /// for training only.
  void update(std::function<void(Context&)>) const;
  /// Names the step in Plan::run_until().
  int number() const noexcept { return number_; }

 private:
  friend class Plan;
  struct Raw {
    std::byte* value = nullptr;
    std::byte* grad = nullptr;
    int id = -1;
    bool add = false;
  };
  Step(Plan& plan, int number) : plan_(&plan), number_(number) {}
  template <class T>
  static View<T> typed(std::byte* p, Shape shape) {
    return p == nullptr ? View<T>(nullptr, shape) : View<T>(reinterpret_cast<T*>(p), shape);
  }
  Raw make(Shape, Storage, Until, int shares) const;
  Raw read(Flow, Storage, Until, int passes_to) const;
  std::byte* save(Shape, size_t size) const;
  std::byte* temporary(Shape, size_t size, Until) const;
  std::byte* state(Shape, size_t size) const;
  Plan* plan_;
  int number_;
};

/// Ends the freezing of parameters; see Plan::freeze().
class [[nodiscard]] Frozen {
 public:
  explicit Frozen(std::function<void()> thaw) : thaw_(std::move(thaw)) {}
  Frozen(const Frozen&) = delete;
  Frozen& operator=(const Frozen&) = delete;
  ~Frozen() { thaw_(); }

 private:
  std::function<void()> thaw_;
};

class Plan {
 public:
  Plan(Context&, Purpose);
  Plan(Plan&&) noexcept;
  Plan& operator=(Plan&&) noexcept;
  ~Plan();

  /// Walks twice and allocates in between. The walk must make the same calls both times.
  /// Throws Error(usage) naming the step when it does not, Error(memory) when the block cannot be had.
  void reserve(const std::function<void(Plan&)>& walk);
  /// The first walk and the layout only: no memory, nothing to run. Parameters that are not allocated count as trained.
  void survey(const std::function<void(Plan&)>& walk);

  /// The whole program, in order. Allocates nothing.
  void run();
  /// As run(), but asks `give_up` before every pass until the first then() has run: from there on the run is completed.
  /// False if it was given up; what the steps had changed (Step::changes) is then as before the run.
  bool run(const std::function<bool()>& give_up);
  /// The outermost walk up to that pass of that step, without any update.
  void run_until(int step, Until);
  /// All forward and backward passes, without any update.
  void run_gradients();
  /// Zeroes what steps carry from one run to the next.
  void reset();

  Context& context() const noexcept;
  bool training() const noexcept;
  /// The second walk: addresses are known and closures are recorded. What is large is built only then.
  bool recording() const noexcept;
  /// Bytes of the block, and of the live data at the worst moment: equal when the packing is perfect.
  size_t bytes() const noexcept;
  size_t peak_live_bytes() const noexcept;
  /// Bytes if nothing shared memory: what the plan saves is the difference.
  size_t unshared_bytes() const noexcept;
  /// Names of the steps in the order of their forward passes.
  const std::vector<std::string>& steps() const noexcept;
  /// What the steps cost, in the order of their forward passes. A backward pass that does not run costs nothing.
  const std::vector<CostRow>& costs() const noexcept;
  /// The span of `from` that a span of `to` depends on: a receptive field. Throws Error(usage) if there is none.
  Span reach(Flow to, Span, Flow from) const;

  // ---- called by what is walked ----

  /// A new step. The name is that of the layer in checkpoints, or what the step does.
  Step step(std::string name);
  /// Number of the newest step.
  int last_step() const noexcept;
  /// Memory that is filled from outside, as an activation: the audio a model reads. with_gradient: its gradient can be read
  /// after the run.
  template <class T>
  Output<T> source(Shape shape, bool with_gradient = false) {
    const Step::Raw r = root(shape, storage_of<T>, with_gradient);
    return {Step::typed<T>(r.value, shape), View<const T>(Step::typed<T>(r.grad, shape)), {r.id, shape, storage_of<T>}};
  }
  /// The same value, through which no gradient passes.
  Flow detach(Flow x);
  /// The value stays readable after the run.
  template <class T>
  View<const T> result(Flow x) {
    return View<const T>(Step::typed<T>(finish(x, storage_of<T>), x.shape));
  }
  /// Memory that lives as long as the plan: inputs, results, counters. Zero at first.
  template <class T>
  View<T> persistent(Shape shape) {
    return Step::typed<T>(permanent(shape, sizeof(T)), shape);
  }
  /// A walk of its own: its backward passes and what it registers with then() run before the outer walk goes on, and its
  /// activations share memory with what comes later. A gradient cannot leave it: it reads detached activations.
  void inner(const std::function<void(Plan&)>& walk);
  /// Until the result is destroyed, steps get no gradients of these parameters; gradients of activations are unaffected.
  Frozen freeze(const Parameters&);
  /// Whether a backward pass of the present walk writes this weight's gradient. Known in the second walk.
  bool trains(const Weight&) const;
  /// After the backward passes of the present walk: updates of weights. Recorded in plans for training only.
  void then(std::function<void(Context&)>);

 private:
  friend class Step;
  void first_walk(const std::function<void(Plan&)>& walk);
  Step::Raw root(Shape, Storage, bool with_gradient);
  std::byte* finish(Flow, Storage);
  std::byte* permanent(Shape, size_t size);
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace nacre
