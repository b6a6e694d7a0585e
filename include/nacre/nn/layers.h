#pragma once
// Layers: plain classes with plan, forward and backward (the Layer concept), composed as members. T is the storage type
// of activations. A layer remembers its views at planning time, so forward and backward take only a Context.
#include <concepts>
#include <memory>
#include <string>
#include <vector>

#include "nacre/nn/parameters.h"
#include "nacre/nn/plan.h"
#include "nacre/ops/conv1d.h"

namespace nacre {

template <class L, class T>
concept Layer = requires(L layer, Plan& plan, Context& ctx, Flow<T> x) {
  { layer.plan(plan, x) } -> std::same_as<Flow<T>>;
  layer.forward(ctx);
  layer.backward(ctx);
};

enum class ActivationKind : uint8_t { snake, snake_beta, elu, leaky_relu, tanh };
/// "snake", "snake_beta", ...; throws Error(usage) listing the names.
ActivationKind activation_kind(const std::string& name);
std::string str(ActivationKind);

template <class T>
class ActivatedConv1d;

/// One elementwise nonlinearity. Snake registers <name>.alpha (1, C, 1), initialised to one.
template <class T>
class Activation {
 public:
  Activation(Parameters&, const std::string& name, int64_t channels, ActivationKind);
  Flow<T> plan(Plan&, Flow<T> x);
  void forward(Context&);
  void backward(Context&);

 private:
  friend class ActivatedConv1d<T>;
  ActivationKind kind_;
  Parameter* alpha_ = nullptr;
  Parameter* beta_ = nullptr;
  Read<T> x_;
  Made<T> y_;
  View<float> scratch_;
};

/// Weight-normalised convolution: <name>.weight_v [out, in / groups, taps], <name>.weight_g, <name>.bias.
template <class T>
class Conv1d {
 public:
  Conv1d(Parameters&, const std::string& name, int64_t in, int64_t out, int64_t taps, Conv1dGeometry = {});
  /// y = conv(x) + residual; residual may be absent.
  Flow<T> plan(Plan&, Flow<T> x, Flow<T> residual = {});
  void forward(Context&);
  void backward(Context&);

 private:
  friend class ActivatedConv1d<T>;
  void forward_of(Context&, View<const T> x);
  void backward_of_residual(Context&);
  void backward_of_weight(Context&, View<const T> x);

  Conv1dGeometry geometry_;
  int64_t out_;
  Weight* weight_;
  Parameter* bias_;
  Read<T> x_, residual_;
  Made<T> y_;
  View<float> forward_scratch_, backward_scratch_;
};

/// activation -> convolution -> + residual. Where snake_conv1d_fuses() says so, Snake is part of the convolution, and
/// of its input gradient. What Snake makes of x then lies in no memory between the passes; but on the CPU the weight
/// gradient finds it there, since making it again takes longer than reading it. Elsewhere they are two steps.
template <class T>
class ActivatedConv1d {
 public:
  ActivatedConv1d(Parameters&, const std::string& activation_name, const std::string& name, int64_t in, int64_t out,
                  int64_t taps, ActivationKind, Conv1dGeometry = {});
  Flow<T> plan(Plan&, Flow<T> x, Flow<T> residual = {});
  void forward(Context&);
  void backward(Context&);

 private:
  Activation<T> activation_;
  Conv1d<T> conv_;
  View<T> activated_;  ///< kept for the weight gradient, or empty
  bool fused_ = false, keeps_ = false;
};

/// Weight-normalised transposed convolution: <name>.weight_v [in, out, taps], one gain per input channel.
template <class T>
class ConvTranspose1d {
 public:
  ConvTranspose1d(Parameters&, const std::string& name, int64_t in, int64_t out, int64_t taps, int64_t stride,
                  int64_t padding, int64_t output_padding);
  Flow<T> plan(Plan&, Flow<T> x);
  void forward(Context&);
  void backward(Context&);

 private:
  Conv1dGeometry geometry_;  // of the convolution whose input gradient this is
  int64_t out_, taps_, output_padding_;
  Weight* weight_;
  Parameter* bias_;
  Read<T> x_;
  Made<T> y_;
  View<float> forward_scratch_, backward_scratch_;
};

/// Joins layers of different storage.
template <class From, class To>
class Cast {
 public:
  /// needs_gradient: false where x is the model's input.
  explicit Cast(bool needs_gradient = true) : needs_gradient_(needs_gradient) {}
  Flow<To> plan(Plan&, Flow<From> x);
  void forward(Context&);
  void backward(Context&);

 private:
  bool needs_gradient_;
  Read<From> x_;
  Made<To> y_;
};

/// activation -> conv k, dilation d -> activation -> conv 1 -> + x      (DAC's residual unit)
template <class T>
class ResidualUnit {
 public:
  ResidualUnit(Parameters&, const std::string& name, int64_t channels, int64_t taps, int64_t dilation, ActivationKind);
  Flow<T> plan(Plan&, Flow<T> x);
  void forward(Context&);
  void backward(Context&);

 private:
  ActivatedConv1d<T> wide_, narrow_;
};

}  // namespace nacre
