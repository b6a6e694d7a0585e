#pragma once
// Parameters: every trained number of a model in a few flat blocks, found by the names that PyTorch checkpoints use.
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

/// How a tensor in a file relates to ours.
enum class StoredAs : uint8_t {
  same,        ///< same order
  convolution  ///< file [first, in, taps], memory [first, taps, in]: channels last
};

/// The initial values of a parameter, drawn by Parameters::initialise().
struct Init {
  enum Kind : uint8_t {
    zero,
    one,
    uniform,           ///< in +-scale
    normal,            ///< of mean 0 and standard deviation scale
    norm_of_direction  ///< of the gain of a weight: the norm of the row of v
  };
  Kind kind = zero;
  double scale = 0;
  /// Random numbers come from the name up to its last dot, so that parameters of one parent begin equal.
  bool shared = false;
};
/// Uniform in +-1/sqrt(fan_in): PyTorch's default for convolutions. The fan in of a weight stored as [a, b, taps] is
/// b * taps, for transposed convolutions as well.
Init uniform_by_fan_in(int64_t fan_in);

class Parameters;

struct Parameter {
  const Parameters* owner = nullptr;
  std::vector<std::string>
      names;                    ///< in the file; more than one: pieces along the first axis (codebooks of all stages)
  std::vector<int64_t> stored;  ///< shape of one piece in the file
  StoredAs stored_as = StoredAs::same;
  Shape shape{};  ///< of the whole, in memory
  bool trained = true;
  Init init{};
  View<float> value{}, grad{};  ///< grad is empty where nothing is trained

  /// One piece as a file holds it, and back.
  std::vector<float> to_file(std::span<const float> whole, size_t piece) const;
  void from_file(std::span<const float> piece_values, size_t piece, std::span<float> whole) const;
  int64_t piece_elements() const;
};

/// A weight that is stored as direction and gain (weight normalisation): w = g v / |v|, row by row.
struct Weight {
  Parameter* v = nullptr;
  Parameter* g = nullptr;
  Shape shape{};
  View<float> value32{};
  View<bf16> value16{};
  View<float> grad{};  ///< gradient of w, which becomes those of v and g once per step

  template <class T>
  View<const T> value() const {
    if constexpr (std::is_same_v<T, float>)
      return value32;
    else
      return value16;
  }
};

class Parameters {
 public:
  Parameters() = default;
  Parameters(const Parameters&) = delete;
  Parameters& operator=(const Parameters&) = delete;

  /// A parameter by name; a second call with the same name and shape returns the first one's, so that two instances of
  /// a model (one for training, one for evaluation) share it, with the initial values of the first. Throws Error(usage)
  /// on another shape.
  Parameter& add(std::string name, std::vector<int64_t> stored, Shape, Init, StoredAs = StoredAs::same,
                 bool trained = true);
  /// `names.size()` tensors of one shape, stacked along the first axis of memory.
  Parameter& add_stack(std::vector<std::string> names, std::vector<int64_t> stored, Shape whole, Init,
                       StoredAs = StoredAs::same, bool trained = true);
  /// name.weight_v and name.weight_g (pieces: one name per layer of a stack). stored is the shape of weight_v in the
  /// file. The initial values are those of weight_v; weight_g begins as the norms of its rows.
  Weight& add_weight(std::vector<std::string> names, std::vector<int64_t> stored, Shape whole, Init,
                     StoredAs = StoredAs::convolution);

  /// Lays out the blocks and zeroes them. No add() after this, except of what is there already.
  void allocate(Context&, bool with_gradients, Storage = Storage::float32);
  bool allocated() const noexcept { return allocated_; }
  bool with_gradients() const noexcept { return with_gradients_; }

  /// Gives every parameter its initial values, a pure function of its registration, its name and the seed. Then
  /// refresh() has been called. Throws Error(usage) before allocate().
  void initialise(Context&, uint64_t seed);

  /// Effective weights from v and g. Once after each change of parameters.
  void refresh(Context&);
  /// Records the step whose backward pass clears the gradients that steps only add to. It must be the last step of its
  /// walk, so that it is the first to run backward. Gradients of effective weights are not cleared: the first step that
  /// trains a weight overwrites its gradient, which saves clearing it and reading it back.
  void clear_gradients(Plan&) const;
  /// Gradients of effective weights become those of v and g. Once per step, after backward.
  void finish_gradients(Context&);

  /// The end of a step in one op (weight_norm_adamw.h): what finish_gradients, adamw over all trained values and
  /// refresh do one after the other. value and grad must be values() and gradients(), scratch update_scratch().
  void update(Context&, const AdamW&);
  Shape update_scratch(Context&) const;

  /// Takes over every value of a model with the same parameters; `values` replaces its trained ones where given
  /// (averaged weights). Then refresh() has been called.
  void assign(Context&, const Parameters& other, View<const float> values = {});

  /// The two blocks that hold a step's gradients when its backward passes are over: those of effective weights and those of
  /// all other parameters.
  std::array<View<float>, 2> step_gradients() const noexcept;

  View<float> values() const noexcept { return values_; }
  View<float> gradients() const noexcept { return gradients_; }
  int64_t trained_elements() const noexcept { return values_.elements(); }
  /// Elements as a model card counts them: effective weights, not direction and gain.
  int64_t effective_elements() const;

  std::deque<Parameter>& all() noexcept { return parameters_; }
  const std::deque<Parameter>& all() const noexcept { return parameters_; }

  /// Calls f(name, stored shape, values as the file holds them) for every tensor, sorted by name.
  void each_tensor(
      Context&,
      const std::function<void(const std::string&, const std::vector<int64_t>&, std::span<const float>)>& f) const;
  /// The same tensors of another block laid out like values(): optimizer moments, averaged weights.
  void each_tensor(
      Context&, View<const float> block,
      const std::function<void(const std::string&, const std::vector<int64_t>&, std::span<const float>)>& f) const;
  /// Sets one tensor from a file's values; `block` empty: the parameter itself. False when the name is unknown.
  /// Throws Error(input) when the shape differs.
  bool set_tensor(Context&, const std::string& name, const std::vector<int64_t>& stored, std::span<const float> values,
                  View<float> block = {});

 private:
  struct Place {
    Parameter* parameter;
    size_t piece;
  };
  Place find(const std::string& name);
  std::deque<Parameter> parameters_;
  std::deque<Weight> weights_;
  std::vector<WeightRow> rows_host_;
  View<const WeightRow> rows_{};
  View<float> values_{}, gradients_{}, buffers_{}, directions_{}, gains_{}, direction_grads_{}, gain_grads_{};
  View<float> weights32_{}, weight_grads_{};
  View<bf16> weights16_{};
  Memory values_memory_, gradients_memory_, buffers_memory_, weights_memory_, weight_grads_memory_, rows_memory_;
  bool allocated_ = false, with_gradients_ = false;
};

}  // namespace nacre
