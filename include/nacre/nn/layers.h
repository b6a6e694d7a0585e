#pragma once
// Layers are const descriptions that record their steps in a plan. A layer holds parameters and sizes but no addresses,
// so one object may be used any number of times in any number of plans. A layer must not outlive its Parameters; a plan
// may outlive the layer. Every layer accepts activations of either storage and uses the storage of its input.
#include <concepts>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "nacre/nn/parameters.h"
#include "nacre/nn/plan.h"
#include "nacre/ops/conv1d.h"
#include "nacre/ops/conv2d.h"
#include "nacre/ops/group_norm.h"

namespace nacre {

template <class L>
concept Layer = requires(const L layer, Plan& plan, Flow x) {
  { layer.plan(plan, x) } -> std::same_as<Flow>;
};

/// A network: records its steps in the plan and returns its output.
using Net = std::function<Flow(Plan&, Flow)>;

/// Layers applied one after the other. A Chain converts to a Net.
class Chain {
 public:
  template <Layer L>
  Chain& operator<<(L layer) {
    layers_.push_back([layer = std::move(layer)](Plan& p, Flow x) { return layer.plan(p, x); });
    return *this;
  }
  Flow plan(Plan&, Flow) const;
  Flow operator()(Plan& p, Flow x) const { return plan(p, x); }

 private:
  std::vector<Net> layers_;
};

enum class ActivationKind : uint8_t { snake, snake_beta, elu, leaky_relu, tanh };
/// The word for it in configurations.
std::string str(ActivationKind);

/// One elementwise nonlinearity. Snake registers <name>.alpha of shape (1, C, 1), initialised to one. snake_beta
/// registers <name>.alpha and <name>.beta, which hold logarithms and are initialised to zero.
class Activation {
 public:
  Activation(Parameters&, const std::string& name, int64_t channels, ActivationKind);
  Flow plan(Plan&, Flow x) const;

  const std::string& name() const noexcept { return name_; }
  const Parameter* alpha() const noexcept { return alpha_; }  ///< null for kinds without alpha
  const Parameter* beta() const noexcept { return beta_; }    ///< null except for snake_beta

 private:
  std::string name_;
  ActivationKind kind_;
  const Parameter* alpha_ = nullptr;
  const Parameter* beta_ = nullptr;
};

/// A factor and an offset per channel, chosen by the label of an item (film.h, Plan::labels). Registers <name>.gamma
/// and <name>.beta [labels, channels], initialised to one and zero: with every label the layer starts as the identity.
class Film {
 public:
  Film(Parameters&, const std::string& name, int64_t channels, int64_t labels);
  Flow plan(Plan&, Flow x) const;

 private:
  std::string name_;
  const Parameter* gamma_;
  const Parameter* beta_;
};

/// How a convolution is normalised: not at all, by its weight (weight_norm.h), or by its output (group_norm.h).
enum class Norm : uint8_t {
  none,
  weight,
  /// One mean and variance per item, over all positions and channels. Every output then depends on the whole input, so
  /// a network with it gives other values in windows than over the whole.
  group,
  layer  ///< one mean and variance per position, over the channels
};

/// Mean and variance normalisation of an activation, with parameters <name>.weight and <name>.bias of one value per
/// channel, initialised to one and zero.
class GroupNorm {
 public:
  /// Throws Error(usage) if `groups` does not divide `channels`.
  GroupNorm(Parameters&, const std::string& name, int64_t channels, int64_t groups, NormOver);
  /// y = norm(x) + residual. The residual may be absent.
  Flow plan(Plan&, Flow x, Flow residual = {}) const;

 private:
  std::string name_;
  int64_t groups_;
  NormOver over_;
  const Parameter* gain_;
  const Parameter* bias_;
};

/// How the bias of a convolution is initialised: to zero, or uniformly in +-1/sqrt(fan in) as the weight, which is
/// PyTorch's default.
enum class BiasStart : uint8_t { zero, uniform };

/// Convolution with parameters <name>.weight_v [out, in / groups, taps], <name>.weight_g and <name>.bias. Without
/// weight normalisation, <name>.weight takes the place of the first two. Norm::group and Norm::layer add
/// <name>.norm.weight and <name>.norm.bias.
/// The weight is initialised uniformly in +-1/sqrt(fan in), as in PyTorch. By default, the bias is initialised to zero
/// (section 2.6 of the DAC description).
class Conv1d {
 public:
  Conv1d(Parameters&, const std::string& name, int64_t in, int64_t out, int64_t taps, Conv1dGeometry = {},
         Norm = Norm::weight, BiasStart = BiasStart::zero);
  /// y = conv(x) + residual, where conv includes the normalisation. The residual may be absent.
  Flow plan(Plan&, Flow x, Flow residual = {}) const;
  /// The same layer with y = leaky_relu(conv(x)), in one step: the value before the activation is not stored. Throws
  /// Error(usage) if the output is normalised or the slope is not positive; plan() then takes no residual.
  Conv1d leaky(float slope) const;

  /// The same layer with `more` positions of padding at the right end.
  Conv1d padded_right(int64_t more) const;

  const std::string& name() const noexcept { return name_; }
  const std::optional<GroupNorm>& norm() const noexcept { return norm_; }  ///< of the output
  const Weight& weight() const noexcept { return *weight_; }
  const Parameter& bias() const noexcept { return *bias_; }
  const Conv1dGeometry& geometry() const noexcept { return geometry_; }
  Shape output(Shape input) const;

 private:
  Flow plan_convolution(Plan&, Flow x, Flow residual) const;
  Flow plan_streamed(Plan&, Flow x, Flow residual) const;
  std::string name_;
  Conv1dGeometry geometry_;
  const Weight* weight_;
  const Parameter* bias_;
  std::optional<GroupNorm> norm_;
  float slope_ = 0;  // of the leaky ReLU; 0: none
};

/// Convolution over frames and columns (conv2d.h), with parameters <name>.weight_v [out, in, taps of time, taps of
/// width], <name>.weight_g and <name>.bias; for other kinds of normalisation, initial values and leaky() as Conv1d.
class Conv2d {
 public:
  Conv2d(Parameters&, const std::string& name, int64_t in, int64_t out, int64_t taps_time, int64_t taps_width,
         Conv2dGeometry = {}, Norm = Norm::weight, BiasStart = BiasStart::zero);
  /// The input is the parts side by side along the width: 1 to conv2d_max_parts, different activations of one storage.
  Flow plan(Plan&, std::span<const Flow> parts) const;
  Flow plan(Plan& p, Flow x) const { return plan(p, std::span<const Flow>(&x, 1)); }
  Conv2d leaky(float slope) const;

  const std::string& name() const noexcept { return name_; }
  const Weight& weight() const noexcept { return *weight_; }
  const Parameter& bias() const noexcept { return *bias_; }
  const Conv2dGeometry& geometry() const noexcept { return geometry_; }
  Shape output(Shape input) const { return conv2d_output(input, weight_->shape, geometry_); }

 private:
  std::string name_;
  Conv2dGeometry geometry_;
  const Weight* weight_;
  const Parameter* bias_;
  std::optional<GroupNorm> norm_;
  float slope_ = 0;  // as in Conv1d
};

/// activation -> convolution -> + residual. Where snake_conv1d_fuses() returns true, one step computes Snake inside the
/// convolution and inside its input gradient. The activated input is then not stored between the passes. The CPU is an
/// exception: its forward pass saves the activated input for the weight gradient, because computing it again takes
/// longer. Otherwise the activation and the convolution are two steps.
class ActivatedConv1d {
 public:
  ActivatedConv1d(Parameters&, const std::string& activation_name, const std::string& name, int64_t in, int64_t out,
                  int64_t taps, ActivationKind, Conv1dGeometry = {}, Norm = Norm::weight);
  Flow plan(Plan&, Flow x, Flow residual = {}) const;

 private:
  Activation activation_;
  Conv1d conv_;
};

/// Positions that are cut off from the ends of a transposed convolution's result, which has (time - 1) stride + taps.
struct Trim {
  int64_t left = 0, right = 0;
};

/// Transposed convolution with parameters <name>.weight_v [in, out, taps], <name>.weight_g (one gain per input channel)
/// and <name>.bias; for other kinds of normalisation as Conv1d. Weight and bias are initialised uniformly in
/// +-1/sqrt(out taps), as in PyTorch.
class ConvTranspose1d {
 public:
  ConvTranspose1d(Parameters&, const std::string& name, int64_t in, int64_t out, int64_t taps, int64_t stride,
                  int64_t padding, int64_t output_padding, Norm = Norm::weight);
  ConvTranspose1d(Parameters&, const std::string& name, int64_t in, int64_t out, int64_t taps, int64_t stride, Trim,
                  Norm = Norm::weight);
  Flow plan(Plan&, Flow x) const;

 private:
  ConvTranspose1d(Parameters&, const std::string& name, int64_t in, int64_t out, int64_t taps, Conv1dGeometry,
                  int64_t output_padding, Norm);
  Flow plan_convolution(Plan&, Flow x) const;
  std::string name_;
  Conv1dGeometry geometry_;  // geometry of the convolution whose input gradient this layer computes
  int64_t output_padding_;
  const Weight* weight_;
  const Parameter* bias_;
  std::optional<GroupNorm> norm_;
};

/// A stack of LSTM layers (lstm.h) with a skip around the whole: y = lstm_{layers - 1}(... lstm_0(x)) + x. Parameters
/// of layer k are <name>.weight_ih_l<k> and <name>.weight_hh_l<k> [4 channels, channels], <name>.bias_ih_l<k> and
/// <name>.bias_hh_l<k> [4 channels], PyTorch's names and order of gates, initialised uniformly in +-1/sqrt(channels).
///
/// The state is zero before the first position. In streaming plans it is carried from block to block.
class Lstm {
 public:
  Lstm(Parameters&, const std::string& name, int64_t channels, int64_t layers);
  Flow plan(Plan&, Flow x) const;

 private:
  struct Part {
    const Weight *weight_x, *weight_h;
    const Parameter *bias_x, *bias_h;
  };
  template <class T>
  Flow plan_layer(Plan&, Flow x, size_t k) const;
  std::string name_;
  std::vector<Part> layers_;
};

/// Positions first ... first + time - 1 of x along the time axis; those outside of x are zero. Returns x itself if
/// nothing changes. In a streaming plan, `time` must be that of x, and its rows are `first` rows later.
Flow rows_of(Plan&, Flow x, int64_t first, int64_t time);

/// Converts x to another storage. Returns x itself if it already has that storage.
Flow stored_as(Plan&, Flow x, Storage);

/// DAC's residual unit: activation -> conv k, dilation d -> activation -> conv 1 -> + x
class ResidualUnit {
 public:
  ResidualUnit(Parameters&, const std::string& name, int64_t channels, int64_t taps, int64_t dilation, ActivationKind);
  Flow plan(Plan&, Flow x) const;

 private:
  ActivatedConv1d wide_, narrow_;
};

}  // namespace nacre
