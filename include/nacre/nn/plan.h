#pragma once
// Plan: the sequence of steps of a model, and the layout of its memory. The model is walked twice. The first walk
// records which steps write and read each activation; the activations' lifetimes are then packed into one block. The
// second walk hands out addresses and records the closures. Running the plan is then a loop over the recorded closures:
// nothing is allocated, every address is fixed, and the whole run can be captured as one graph.
//
// A *step* is one call of an op together with its adjoint. A *walk* is a sequence of steps whose backward passes run in
// reverse order when the walk ends. The program of a walk is: all forward passes, all backward passes in reverse order,
// then the functions registered with then(). An inner walk (a discriminator trained on what the generator has just
// produced) runs completely before the outer walk continues.
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "nacre/context.h"

namespace nacre {

class Parameters;
struct Parameter;
struct Weight;

enum class Purpose : uint8_t {
  inference,
  training,
  streaming  ///< inference over a signal that arrives in blocks, one per run; see StreamBlock
};
/// How long a step needs a value: until its forward pass or until its backward pass has run.
enum class Until : uint8_t { forward, backward };

/// A handle of an activation. The plan knows its lifetime from the first walk and its address in the second.
struct Flow {
  int id = -1;
  Shape shape{};
  Storage storage = Storage::float32;
  explicit operator bool() const noexcept { return id >= 0; }
};
/// An activation as seen by a step that reads it. `grad` is empty if no gradient is needed. The first writer of a
/// gradient in backward order overwrites it (add is false); all later writers add to it.
template <class T>
struct Input {
  View<const T> value{};
  View<T> grad{};
  bool add = false;
};
/// An activation as seen by the step that writes it. `grad` is complete when this step's backward pass runs.
template <class T>
struct Output {
  View<T> value{};
  View<const T> grad{};
  Flow flow{};
};
/// Destination of the gradient of an effective weight. Empty if the weight is frozen or nothing is trained. As for
/// activations, the first writer in backward order overwrites and all later writers add.
struct WeightGrad {
  View<float> grad{};
  bool add = false;
};

/// Work of one pass. Every tensor is counted as read or written once per launch. A fused multiply-add counts as two
/// operations. Bytes and launches are those of the CUDA back end in the usual case: the kernels that most shapes get.
struct Work {
  double products = 0;  ///< operations that tensor cores can execute
  double floats = 0;    ///< operations that tensor cores cannot execute: Snake, transforms, updates
  double bytes = 0;
  double launches = 0;  ///< of kernels and transforms; copies and zeroing have bytes only
  /// Operations on the zeros that a transposed convolution has between its inputs. Profilers count them beside
  /// `products`. No kernel executes them.
  double zeros = 0;
  Work& operator+=(const Work&) noexcept;
};
/// Work of a step. Its backward pass computes gradients of the activations that it reads and of its parameters.
struct Costs {
  Work forward{}, input_gradient{}, weight_gradient{};
  Work backward{};  ///< of the backward pass, whichever gradients are wanted
  /// Adding the parts of the step's gradients of parameters (Step::parts), which the plan does for many steps at once.
  /// Here `launches` is the number of sums, of which 60 share a launch.
  Work sums{};
  /// The same of sums that an op adds by itself, each in a launch of its own.
  Work sums_alone{};
  Costs& operator+=(const Costs&) noexcept;
};
struct CostRow {
  std::string name{};
  Work forward{}, backward{};
};

/// Positions first ... last (inclusive) along an activation's time axis. They may lie outside of the activation.
struct Span {
  int64_t first = 0, last = 0;
};
/// Positions of an input that position t of the output depends on: t * stride - left + dilation * (0 ... count - 1).
/// If transposed, the formula gives the positions of the output that position t of the input contributes to.
struct Footprint {
  int64_t count = 1, stride = 1, dilation = 1, left = 0;
  bool transposed = false;
  /// The span of the input that a span of the output depends on.
  Span of(Span output) const noexcept;
  bool own_position() const noexcept { return count == 1 && stride == 1 && left == 0; }
};

/// The block of a signal that a run of a streaming plan processes. Its length in frames is that of the plan. A *row* is
/// a position on the time axis of an activation, and every frame has the same number of rows there. An activation may
/// be late: with lag n, the rows of a run are those of the block, moved n rows towards the start of the signal. Rows
/// before the signal's start and behind its end have undefined values; layers that read beyond the ends replace them.
struct StreamBlock {
  int64_t first = 0;   ///< frames of the signal before this block
  int64_t total = -1;  ///< frames of the whole signal; -1: more follow this block
  /// Frames of the signal of each item of a batch, in place of `total`; empty: all have that. The caller owns the
  /// numbers.
  std::span<const int64_t> totals{};
  int64_t total_of(int64_t item) const noexcept { return totals.empty() ? total : totals[static_cast<size_t>(item)]; }
};

class Plan;

/// One op call and its adjoint, while the layer describes it. Only the newest step of a plan can be described further.
/// Views are null in the first walk. Closures are recorded in the second walk and must not allocate when they run.
class Step {
 public:
  /// Declares that this step reads x. until = backward: the backward pass reads the value again.
  template <class T>
  Input<T> reads(Flow x, Until until = Until::forward) const {
    const Raw r = read(x, storage_of<T>, until, -1);
    return {View<const T>(typed<T>(r.value, x.shape)), typed<T>(r.grad, x.shape), r.add};
  }
  /// Declares that this step reads x in its forward pass to compute y = x + ..., so the gradient of y passes to x
  /// unchanged. If x and y can share one gradient block, `grad` is empty and the step has nothing to do; otherwise it
  /// must copy or add the gradient.
  template <class T>
  Input<T> passes(Flow x, Flow y) const {
    const Raw r = read(x, storage_of<T>, Until::forward, y.id);
    return {View<const T>(typed<T>(r.value, x.shape)), typed<T>(r.grad, x.shape), r.add};
  }
  /// Declares that this step writes an activation. until = backward: the backward pass reads the value again. The
  /// activation has a gradient if a later step needs one and this step can use it, because it reads an activation with
  /// a gradient or trains parameters.
  template <class T>
  Output<T> makes(Shape shape, Until until = Until::forward) const {
    const Raw r = make(shape, storage_of<T>, until, -1);
    return {typed<T>(r.value, shape), View<const T>(typed<T>(r.grad, shape)), {r.id, shape, storage_of<T>}};
  }
  /// Returns the value of x as a second activation with a gradient of its own. Used by forks, whose backward pass
  /// combines the gradients of the branches.
  template <class T>
  Output<T> shares(Flow x) const {
    const Raw r = make(x.shape, storage_of<T>, Until::forward, x.id);
    return {typed<T>(r.value, x.shape), View<const T>(typed<T>(r.grad, x.shape)), {r.id, x.shape, storage_of<T>}};
  }
  /// Memory that this step's forward pass writes and its backward pass reads. Empty if nothing is trained.
  template <class T>
  View<T> saved(Shape shape) const {
    return typed<T>(save(shape, sizeof(T)), shape);
  }
  /// Working memory during the given pass of this step only.
  template <class T = float>
  View<T> scratch(Shape shape, Until used_in) const {
    return typed<T>(temporary(shape, sizeof(T), used_in), shape);
  }
  /// Memory for the parts of gradients that ops of this step's backward pass leave (ops/gradient_sums.h). The plan adds
  /// them, those of many steps at once, before the walk's then() functions. Empty if the shape is.
  View<float> parts(Shape shape) const { return typed<float>(partial(shape), shape); }
  /// Memory kept from one run to the next: the state of a stream. Zero initially and after Plan::reset(). Its size must
  /// not depend on the length of a block, so that plans of other blocks can continue the stream.
  template <class T>
  View<T> carries(Shape shape) const {
    return typed<T>(state(shape, sizeof(T)), shape);
  }
  WeightGrad gradient(const Weight&) const;
  /// Gradient of a parameter that is not a Weight; ops add to it. Empty if it is frozen or nothing is trained.
  View<float> gradient(const Parameter&) const;
  /// Declares that this step's backward pass or update changes memory that outlives the run (codebooks, moving
  /// averages). A run that is abandoned or ends early restores it.
  void changes(View<float>) const;

  /// Adds a row to Plan::costs(), named `row`, or after the step if `row` is empty. Must be called after reads().
  /// input_gradient counts if an activation that is read has a gradient, weight_gradient if the step trains parameters.
  void costs(Costs, std::string row = {}) const;
  /// As costs(), but added to the row of the step that reads the result, if that row has its step's name. The row of a
  /// convolution then includes the preceding activation, whether or not the two are one step.
  void costs_reader(const Costs&) const;
  /// What the backward pass does beyond its costs where it adds to the gradient of x instead of overwriting it. By
  /// default it reads the gradient. Bytes may be negative: those of parts that it then leaves alone. Must be called
  /// after reads().
  void costs_adding(Flow x, const Work&) const;
  /// Declares which positions of x the output depends on. By default it is the output's own position.
  void reaches(Flow x, const Footprint&) const;

  void forward(std::function<void(Context&)>) const;
  /// The closure is dropped if no gradient reaches this step.
  void backward(std::function<void(Context&)>) const;
  /// Trains this step's own state from what its passes computed. Runs right after the backward pass. Recorded only in
  /// training plans.
  void update(std::function<void(Context&)>) const;
  /// The number that identifies this step in Plan::run_until().
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
  std::byte* partial(Shape) const;
  std::byte* state(Shape, size_t size) const;
  Plan* plan_;
  int number_;
};

/// Ends a freeze of parameters when it is destroyed; see Plan::freeze().
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
  /// block_frames: length of a block, at least 1 if the purpose is streaming, else 0.
  Plan(Context&, Purpose, int64_t block_frames = 0);
  Plan(Plan&&) noexcept;
  Plan& operator=(Plan&&) noexcept;
  ~Plan();

  /// Walks twice and allocates the block in between. The walk must make the same calls both times.
  /// Throws Error(usage) that names the step if it does not, and Error(memory) if the block cannot be allocated.
  void reserve(const std::function<void(Plan&)>& walk);
  /// Runs only the first walk and the layout: no memory, no program. Parameters that are not allocated count as
  /// trained.
  void survey(const std::function<void(Plan&)>& walk);

  /// Runs the whole program in order. Allocates nothing.
  void run();
  /// As run(), but calls `give_up` before every pass until the first then() function has run; after that the run always
  /// completes. Returns false if the run was abandoned. What the steps had changed (Step::changes) is then restored.
  bool run(const std::function<bool()>& give_up);
  /// Whether run() runs inner walks; true at first. Without them, everything that belongs to them (a discriminator's
  /// training) is as if the run had not been.
  void set_inner(bool) noexcept;
  /// Runs the outermost walk up to and including the given pass of the given step, without updates.
  void run_until(int step, Until);
  /// Runs all forward and backward passes, without updates.
  void run_gradients();
  /// Zeroes the memory that steps carry from one run to the next.
  void reset();
  /// That memory in bytes, a copy of it on the host, and its way back into this plan or another one of the same steps.
  /// Throw Error(usage) for a span of another size.
  size_t state_bytes() const noexcept;
  void read_state(std::span<std::byte>) const;
  void write_state(std::span<const std::byte>);
  /// Copies that memory from another plan of the same steps, in stream order.
  void continue_from(const Plan&);
  /// The block of the next run of a streaming plan. Steps read it when they run, so a captured graph keeps that of its
  /// capture.
  StreamBlock& block() noexcept;

  Context& context() const noexcept;
  bool training() const noexcept;
  bool streaming() const noexcept;
  int64_t block_frames() const noexcept;
  /// Rows by which an activation of a streaming plan is late. Unless a layer has set it, it is that of the activations
  /// that the step reads. Throws Error(usage) if these differ, and if the step depends on other rows (Step::reaches):
  /// its layer then keeps nothing from block to block.
  int64_t lag(Flow) const;
  /// Frames that the first block of a stream must have at least.
  int64_t start_frames() const noexcept;
  /// True in the second walk, when addresses are known and closures are recorded. Large objects are built only then.
  bool recording() const noexcept;
  /// Size of the block, and size of the live data at the worst moment. They are equal if the packing is optimal.
  size_t bytes() const noexcept;
  size_t peak_live_bytes() const noexcept;
  /// Size of the block if no memory were shared. The difference to bytes() is what the plan saves.
  size_t unshared_bytes() const noexcept;
  /// Names of the steps, in the order of their forward passes.
  const std::vector<std::string>& steps() const noexcept;
  /// Costs of the steps, in the order of their forward passes. A backward pass that does not run costs nothing.
  const std::vector<CostRow>& costs() const noexcept;
  /// The span of `from` that a span of `to` depends on (receptive field). Throws Error(usage) if `to` does not depend
  /// on it.
  Span reach(Flow to, Span, Flow from) const;

  // ---- called by what is walked ----

  /// Begins a new step. The name is the layer's name in checkpoints, or a description of the step.
  Step step(std::string name);
  /// Number of the newest step.
  int last_step() const noexcept;
  /// Memory that the caller fills, as an activation (for example the input audio). with_gradient: its gradient can be
  /// read after the run.
  template <class T>
  Output<T> source(Shape shape, bool with_gradient = false) {
    const Step::Raw r = root(shape, storage_of<T>, with_gradient);
    return {Step::typed<T>(r.value, shape), View<const T>(Step::typed<T>(r.grad, shape)), {r.id, shape, storage_of<T>}};
  }
  /// The same value as an activation that passes no gradient on.
  Flow detach(Flow x);
  /// Declares by how many rows an activation is late.
  void set_lag(Flow, int64_t rows);
  /// Declares that the first block of a stream must have at least this many frames.
  void require_start(int64_t frames);
  /// Keeps the value readable after the run.
  template <class T>
  View<const T> result(Flow x) {
    return View<const T>(Step::typed<T>(finish(x, storage_of<T>), x.shape));
  }
  /// Memory that lives as long as the plan: inputs, results, counters. Initially zero.
  template <class T>
  View<T> persistent(Shape shape) {
    return Step::typed<T>(permanent(shape, sizeof(T)), shape);
  }
  /// The labels of the items of a batch, [1, 1, 1, batch], for the layers that a label conditions (Film). The caller
  /// fills them before a run; they hold until the end of the walk.
  void set_labels(View<const int32_t>);
  /// Those labels; all 0 if the walk has set none. Throws Error(usage) that names the step if there are not `batch`.
  View<const int32_t> labels(int64_t batch);
  /// Runs an inner walk. Its backward passes and its then() functions run before the outer walk continues, and its
  /// activations share memory with later ones. No gradient leaves it: it must read detached activations.
  void inner(const std::function<void(Plan&)>& walk);
  /// Until the result is destroyed, steps get no gradients of these parameters. Gradients of activations are
  /// unaffected.
  Frozen freeze(const Parameters&);
  /// Whether a backward pass of the current walk writes this weight's gradient. Known in the second walk.
  bool trains(const Weight&) const;
  /// Registers a function that runs after the backward passes of the current walk: updates of weights. Recorded only in
  /// training plans.
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
