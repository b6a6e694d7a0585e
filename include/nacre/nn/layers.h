#pragma once
// Layers: const descriptions that record their steps in a plan. A layer holds parameters and sizes, never an address, so
// one object may stand in any number of places and plans. It must not outlive its Parameters; a plan may outlive the layer.
// Every layer works on activations of either storage, whichever its input has.
#include <concepts>
#include <functional>
#include <string>
#include <vector>

#include "nacre/nn/parameters.h"
#include "nacre/nn/plan.h"
#include "nacre/ops/conv1d.h"

namespace nacre {

template <class L>
concept Layer = requires(const L layer, Plan& plan, Flow x) {
  { layer.plan(plan, x) } -> std::same_as<Flow>;
};

/// Layers one after the other.
class Chain {
 public:
  template <Layer L>
  Chain& operator<<(L layer) {
    layers_.push_back([layer = std::move(layer)](Plan& p, Flow x) { return layer.plan(p, x); });
    return *this;
  }
  Flow plan(Plan&, Flow) const;

 private:
  std::vector<std::function<Flow(Plan&, Flow)>> layers_;
};

enum class ActivationKind : uint8_t { snake, snake_beta, elu, leaky_relu, tanh };
/// "snake", "snake_beta", ...; throws Error(usage) listing the names.
ActivationKind activation_kind(const std::string& name);
std::string str(ActivationKind);

/// One elementwise nonlinearity. Snake registers <name>.alpha (1, C, 1), initialised to one; snake_beta registers
/// <name>.alpha and <name>.beta, logarithms initialised to zero.
class Activation {
 public:
  Activation(Parameters&, const std::string& name, int64_t channels, ActivationKind);
  Flow plan(Plan&, Flow x) const;

  const Parameter* alpha() const noexcept { return alpha_; }  ///< of Snake, else null
  const Parameter* beta() const noexcept { return beta_; }    ///< of snake_beta, else null

 private:
  std::string name_;
  ActivationKind kind_;
  const Parameter* alpha_ = nullptr;
  const Parameter* beta_ = nullptr;
};

/// Weight-normalised convolution: <name>.weight_v [out, in / groups, taps], <name>.weight_g, <name>.bias.
/// The weight begins uniform in +-1/sqrt(fan in), as in PyTorch; the bias begins at zero (DAC, section 2.6 of its
/// description).
class Conv1d {
 public:
  Conv1d(Parameters&, const std::string& name, int64_t in, int64_t out, int64_t taps, Conv1dGeometry = {});
  /// y = conv(x) + residual; residual may be absent.
  Flow plan(Plan&, Flow x, Flow residual = {}) const;

  const std::string& name() const noexcept { return name_; }
  const Weight& weight() const noexcept { return *weight_; }
  const Parameter& bias() const noexcept { return *bias_; }
  const Conv1dGeometry& geometry() const noexcept { return geometry_; }
  Shape output(Shape input) const;

 private:
  std::string name_;
  Conv1dGeometry geometry_;
  const Weight* weight_;
  const Parameter* bias_;
};

/// activation -> convolution -> + residual. Where snake_conv1d_fuses() says so, Snake is part of the convolution and of its
/// input gradient. The activated input is then stored nowhere between the passes, except on the CPU: there the weight
/// gradient reads what the forward pass saved, since computing it again takes longer. Elsewhere they are two steps.
class ActivatedConv1d {
 public:
  ActivatedConv1d(Parameters&, const std::string& activation_name, const std::string& name, int64_t in, int64_t out,
                  int64_t taps, ActivationKind, Conv1dGeometry = {});
  Flow plan(Plan&, Flow x, Flow residual = {}) const;

 private:
  Activation activation_;
  Conv1d conv_;
};

/// Weight-normalised transposed convolution: <name>.weight_v [in, out, taps], one gain per input channel.
/// Weight and bias begin uniform in +-1/sqrt(out taps), as in PyTorch.
class ConvTranspose1d {
 public:
  ConvTranspose1d(Parameters&, const std::string& name, int64_t in, int64_t out, int64_t taps, int64_t stride,
                  int64_t padding, int64_t output_padding);
  Flow plan(Plan&, Flow x) const;

 private:
  std::string name_;
  Conv1dGeometry geometry_;  // of the convolution whose input gradient this is
  int64_t output_padding_;
  const Weight* weight_;
  const Parameter* bias_;
};

/// The same values in another storage; x itself where it has that storage.
Flow stored_as(Plan&, Flow x, Storage);

/// activation -> conv k, dilation d -> activation -> conv 1 -> + x      (DAC's residual unit)
class ResidualUnit {
 public:
  ResidualUnit(Parameters&, const std::string& name, int64_t channels, int64_t taps, int64_t dilation, ActivationKind);
  Flow plan(Plan&, Flow x) const;

 private:
  ActivatedConv1d wide_, narrow_;
};

}  // namespace nacre
