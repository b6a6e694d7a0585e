#pragma once
// Parameters: all parameters of a model in a few flat blocks, accessible under the names that PyTorch checkpoints use.
#include <array>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "nacre/context.h"
#include "nacre/ops/weight_norm_adamw.h"
#include "nacre/nn/plan.h"

namespace nacre {

/// Memory layout of a tensor in a file, relative to the layout in memory.
enum class StoredAs : uint8_t {
  same,  ///< same order
  /// File [first, in, taps], memory [first, taps, in]: channels last. In two dimensions file [first, in, taps of time,
  /// taps of width], memory [first, taps of width, taps of time, in]. The axes after the first are in reverse order.
  convolution
};

/// How Parameters::initialise() sets the initial values of a parameter.
struct Init {
  enum Kind : uint8_t {
    zero,
    one,
    uniform,           ///< uniform in +-scale
    normal,            ///< normal with mean 0 and standard deviation scale
    norm_of_direction  ///< for the gain of a weight: the norm of the corresponding row of v
  };
  Kind kind = zero;
  double scale = 0;
  /// The random stream is chosen by the name up to its last dot, so parameters of one parent start with equal values.
  bool shared = false;
};
/// Uniform in +-1/sqrt(fan_in), PyTorch's default for convolutions. The fan-in of a weight stored as [a, b, taps] is
/// b * taps, also for transposed convolutions.
Init uniform_by_fan_in(int64_t fan_in);

class Parameters;

struct Parameter {
  const Parameters* owner = nullptr;
  std::vector<std::string> names;  ///< in the file; several: pieces along the first axis (one codebook per stage)
  std::vector<int64_t> stored;  ///< shape of one piece in the file
  StoredAs stored_as = StoredAs::same;
  Shape shape{};  ///< shape of the whole parameter in memory
  bool trained = true;
  Init init{};
  View<float> value{}, grad{};  ///< grad is empty if the parameter is not trained

  /// Converts one piece from the memory layout to the file layout, and back.
  std::vector<float> to_file(std::span<const float> whole, size_t piece) const;
  void from_file(std::span<const float> piece_values, size_t piece, std::span<float> whole) const;
  int64_t piece_elements() const;
};

/// A weight stored as direction v and gain g (weight normalisation): w = g v / |v|, row by row. A plain weight has no
/// gain: w = v.
struct Weight {
  Parameter* v = nullptr;
  Parameter* g = nullptr;  ///< null: a plain weight
  Shape shape{};
  View<float> value32{};
  View<bf16> value16{};
  View<float> grad{};  ///< gradient of w; finish_gradients() converts it to gradients of v and g once per step

  template <class T>
  View<const T> value() const {
    if constexpr (std::is_same_v<T, float>)
      return value32;
    else
      return value16;
  }
};

/// Memory that follows from the parameters as effective weights do, for example a product of weights. It is the same
/// for all plans.
struct Derived {
  std::string name;
  Shape shape{};
  View<float> value{};  ///< from Parameters::allocate() on
  /// Writes the value. It must not allocate.
  std::function<void(Context&, View<float>)> compute{};
};

class Parameters {
 public:
  Parameters() = default;
  Parameters(const Parameters&) = delete;
  Parameters& operator=(const Parameters&) = delete;

  /// Registers a parameter. A second call with the same name and shape returns the existing parameter, whose initial
  /// values stay those of the first call. Two instances of a model (one for training, one for evaluation) share their
  /// parameters in this way. Throws Error(usage) if the shape differs.
  Parameter& add(std::string name, std::vector<int64_t> stored, Shape, Init, StoredAs = StoredAs::same,
                 bool trained = true);
  /// Registers `names.size()` tensors of one shape, stacked along the first axis in memory.
  Parameter& add_stack(std::vector<std::string> names, std::vector<int64_t> stored, Shape whole, Init,
                       StoredAs = StoredAs::same, bool trained = true);
  /// Registers name.weight_v and name.weight_g, with one name per piece of a stack. `stored` is the shape of weight_v
  /// in the file. `Init` applies to weight_v; weight_g is initialised to the norms of its rows.
  Weight& add_weight(std::vector<std::string> names, std::vector<int64_t> stored, Shape whole, Init,
                     StoredAs = StoredAs::convolution);
  /// Registers name.weight, a weight without weight normalisation. A layer's weight has one form: throws Error(usage)
  /// if the names are registered with weight normalisation, as add_weight() does in the opposite case.
  Weight& add_plain_weight(std::vector<std::string> names, std::vector<int64_t> stored, Shape whole, Init,
                           StoredAs = StoredAs::convolution);

  /// As add_plain_weight(), under exactly this name.
  Weight& add_named_weight(std::string name, std::vector<int64_t> stored, Shape whole, Init, StoredAs = StoredAs::same);

  /// Registers memory that the end of refresh() and of update() computes, in the order of registration. A second call
  /// with the same name returns the first one. Throws Error(usage) if the shape differs, or after allocate().
  const Derived& derive(std::string name, Shape, std::function<void(Context&, View<float>)> compute);

  /// Allocates the blocks, filled with zeros. After this call, add() only accepts parameters that already exist.
  void allocate(Context&, bool with_gradients, Storage = Storage::float32);
  bool allocated() const noexcept { return allocated_; }
  bool with_gradients() const noexcept { return with_gradients_; }

  /// Sets every parameter to its initial values and calls refresh(). The values are a pure function of the
  /// registration, the name and the seed. Throws Error(usage) before allocate().
  void initialise(Context&, uint64_t seed);

  /// Computes effective weights from v and, where there is one, g, then what is derived from them. Must be called once
  /// after each change of the parameters.
  void refresh(Context&);
  /// Records a step whose backward pass clears the gradients that other steps only accumulate into. The step must be
  /// the last of its walk, so that its backward pass runs first. It does not clear gradients of effective weights: the
  /// first step that trains a weight overwrites its gradient, which saves one write and one read of it.
  void clear_gradients(Plan&) const;
  /// Converts gradients of effective weights to gradients of v and g. Called once per step, after the backward pass.
  void finish_gradients(Context&);

  /// The end of a training step in one op (weight_norm_adamw.h). It does what finish_gradients(), adamw over all
  /// trained values and refresh() do in sequence. value and grad must be values() and gradients(); scratch must have
  /// the shape update_scratch().
  void update(Context&, const AdamW&);
  Shape update_scratch(Context&) const;

  /// Copies all values from a model with the same parameters, then calls refresh(). `values`, if given, replaces the
  /// trained values (averaged weights).
  void assign(Context&, const Parameters& other, View<const float> values = {});

  /// The two blocks that hold a step's gradients after its backward passes: the gradients of effective weights, and the
  /// gradients of all other parameters.
  std::array<View<float>, 2> step_gradients() const noexcept;

  View<float> values() const noexcept { return values_; }
  View<float> gradients() const noexcept { return gradients_; }
  int64_t trained_elements() const noexcept { return values_.elements(); }
  /// Number of elements as published model sizes count them: effective weights, not directions and gains.
  int64_t effective_elements() const;

  std::deque<Parameter>& all() noexcept { return parameters_; }
  const std::deque<Parameter>& all() const noexcept { return parameters_; }
  const std::deque<Weight>& weights() const noexcept { return weights_; }

  /// Calls f(name, shape in the file, values in file layout) for every tensor, sorted by name.
  void each_tensor(
      Context&,
      const std::function<void(const std::string&, const std::vector<int64_t>&, std::span<const float>)>& f) const;
  /// The same for another block with the layout of values(): optimizer moments, averaged weights.
  void each_tensor(
      Context&, View<const float> block,
      const std::function<void(const std::string&, const std::vector<int64_t>&, std::span<const float>)>& f) const;
  /// Sets one tensor from values in file layout. If `block` is empty, the parameter itself is set. Returns false if the
  /// name is unknown. Throws Error(input) if the shape differs.
  bool set_tensor(Context&, const std::string& name, const std::vector<int64_t>& stored, std::span<const float> values,
                  View<float> block = {});

 private:
  struct Place {
    Parameter* parameter;
    size_t piece;
  };
  Place find(const std::string& name);
  void expect_one_form(const std::vector<std::string>& names, const char* of_other_form);
  Weight& weight_of(Parameter& v, Parameter* g);
  void compute_derived(Context&) const;
  std::deque<Parameter> parameters_;
  std::deque<Weight> weights_;
  std::deque<Derived> derived_;
  std::vector<WeightRow> rows_host_;
  View<const WeightRow> rows_{};
  View<float> values_{}, gradients_{}, buffers_{}, directions_{}, gains_{}, direction_grads_{}, gain_grads_{};
  View<float> weights32_{}, weight_grads_{};
  View<bf16> weights16_{};
  Memory values_memory_, gradients_memory_, buffers_memory_, weights_memory_, weight_grads_memory_, rows_memory_,
      derived_memory_;
  bool allocated_ = false, with_gradients_ = false;
};

}  // namespace nacre
