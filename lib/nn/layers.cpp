#include "nacre/nn/layers.h"

#include <algorithm>

#include "nacre/ops/add.h"
#include "nacre/ops/convert.h"
#include "nacre/ops/elu.h"
#include "nacre/ops/leaky_relu.h"
#include "nacre/ops/snake.h"
#include "nacre/ops/snake_conv1d.h"
#include "nacre/ops/tanh.h"

namespace nacre {
namespace {

/// One block that serves two calls of the same step, one after the other.
Shape larger(Shape a, Shape b) { return a.elements() >= b.elements() ? a : b; }

}  // namespace

ActivationKind activation_kind(const std::string& name) {
  for (const ActivationKind k : {ActivationKind::snake, ActivationKind::snake_beta, ActivationKind::elu,
                                 ActivationKind::leaky_relu, ActivationKind::tanh})
    if (str(k) == name) return k;
  throw Error(ErrorKind::usage,
              "activation \"" + name + "\" is unknown; choose snake, snake_beta, elu, leaky_relu or tanh");
}
std::string str(ActivationKind k) {
  switch (k) {
    case ActivationKind::snake:
      return "snake";
    case ActivationKind::snake_beta:
      return "snake_beta";
    case ActivationKind::elu:
      return "elu";
    case ActivationKind::leaky_relu:
      return "leaky_relu";
    case ActivationKind::tanh:
      return "tanh";
  }
  return "?";
}

// ---- Activation
// ----------------------------------------------------------------------------------------------------------

template <class T>
Activation<T>::Activation(Parameters& parameters, const std::string& name, int64_t channels, ActivationKind kind)
    : kind_(kind) {
  if (kind == ActivationKind::snake || kind == ActivationKind::snake_beta)
    alpha_ = &parameters.add(name + ".alpha", {1, channels, 1}, {.channels = channels});
  if (kind == ActivationKind::snake_beta)
    beta_ = &parameters.add(name + ".beta", {1, channels, 1}, {.channels = channels});
}

template <class T>
Flow<T> Activation<T>::plan(Plan& p, Flow<T> x) {
  p.next_step();
  const bool keeps_input = alpha_ != nullptr;  // the others are differentiated from their output
  x_ = p.reads(x, keeps_input ? Phase::backward : Phase::forward);
  y_ = p.makes<T>(x.shape, keeps_input ? Phase::forward : Phase::backward);
  if (keeps_input)
    scratch_ = p.scratch(snake_backward_scratch(p.context(), x.shape, beta_ != nullptr), Phase::backward);
  return y_.flow;
}

template <class T>
void Activation<T>::forward(Context& c) {
  switch (kind_) {
    case ActivationKind::snake:
    case ActivationKind::snake_beta:
      return snake_forward<T>(c, {.x = x_.value,
                                  .alpha = alpha_->value,
                                  .beta = beta_ != nullptr ? View<const float>(beta_->value) : View<const float>{},
                                  .y = y_.value,
                                  .log_scale = beta_ != nullptr});
    case ActivationKind::elu:
      return elu_forward<T>(c, {.x = x_.value, .y = y_.value});
    case ActivationKind::leaky_relu:
      return leaky_relu_forward<T>(c, {.x = x_.value, .y = y_.value});
    case ActivationKind::tanh:
      return tanh_forward<T>(c, {.x = x_.value, .y = y_.value});
  }
}

template <class T>
void Activation<T>::backward(Context& c) {
  const View<const T> y = y_.value;
  switch (kind_) {
    case ActivationKind::snake:
    case ActivationKind::snake_beta:
      return snake_backward<T>(c, {.x = x_.value,
                                   .alpha = alpha_->value,
                                   .beta = beta_ != nullptr ? View<const float>(beta_->value) : View<const float>{},
                                   .dy = y_.grad,
                                   .dx = x_.grad,
                                   .dalpha = alpha_->grad,
                                   .dbeta = beta_ != nullptr ? beta_->grad : View<float>{},
                                   .scratch = scratch_,
                                   .log_scale = beta_ != nullptr,
                                   .add_dx = x_.add});
    case ActivationKind::elu:
      return elu_backward<T>(c, {.y = y, .dy = y_.grad, .dx = x_.grad, .add_dx = x_.add});
    case ActivationKind::leaky_relu:
      return leaky_relu_backward<T>(c, {.y = y, .dy = y_.grad, .dx = x_.grad, .add_dx = x_.add});
    case ActivationKind::tanh:
      return tanh_backward<T>(c, {.y = y, .dy = y_.grad, .dx = x_.grad, .add_dx = x_.add});
  }
}

// ---- Conv1d
// --------------------------------------------------------------------------------------------------------------

template <class T>
Conv1d<T>::Conv1d(Parameters& parameters, const std::string& name, int64_t in, int64_t out, int64_t taps,
                  Conv1dGeometry geometry)
    : geometry_(geometry),
      out_(out),
      weight_(&parameters.add_weight({name}, {out, in / geometry.groups, taps},
                                     {.batch = out, .time = taps, .channels = in / geometry.groups})),
      bias_(&parameters.add(name + ".bias", {out}, {.channels = out})) {}

template <class T>
Flow<T> Conv1d<T>::plan(Plan& p, Flow<T> x, Flow<T> residual) {
  p.next_step();
  Context& c = p.context();
  const Shape w = weight_->shape;
  const Shape y{.batch = x.shape.batch, .time = conv1d_length(x.shape.time, w.time, geometry_), .channels = out_};
  x_ = p.reads(x, Phase::backward);
  y_ = p.makes<T>(y);
  residual_ = residual.id >= 0 ? p.passes(residual, y_.flow) : Read<T>{};
  forward_scratch_ = p.scratch(conv1d_forward_scratch<T>(c, x.shape, w, geometry_), Phase::forward);
  if (p.training())
    backward_scratch_ = p.scratch(larger(conv1d_input_gradient_scratch<T>(c, x.shape, w, y, geometry_),
                                         conv1d_weight_gradient_scratch<T>(c, x.shape, w, y, geometry_)),
                                  Phase::backward);
  return y_.flow;
}

template <class T>
void Conv1d<T>::forward(Context& c) {
  forward_of(c, x_.value);
}
template <class T>
void Conv1d<T>::forward_of(Context& c, View<const T> x) {
  conv1d_forward<T>(c, {.x = x,
                        .weight = weight_->value<T>(),
                        .bias = bias_->value,
                        .residual = residual_.value,
                        .y = y_.value,
                        .scratch = forward_scratch_,
                        .geometry = geometry_});
}

template <class T>
void Conv1d<T>::backward(Context& c) {
  backward_of_residual(c);
  backward_of_weight(c, x_.value);
  if (x_.grad)
    conv1d_input_gradient<T>(c, {.dy = y_.grad,
                                 .weight = weight_->value<T>(),
                                 .dx = x_.grad,
                                 .scratch = backward_scratch_,
                                 .geometry = geometry_,
                                 .add_dx = x_.add});
}
template <class T>
void Conv1d<T>::backward_of_residual(Context& c) {
  if (residual_.grad) accumulate<T>(c, {.x = y_.grad, .y = residual_.grad, .add = residual_.add});
}
template <class T>
void Conv1d<T>::backward_of_weight(Context& c, View<const T> x) {
  conv1d_weight_gradient<T>(c, {.x = x,
                                .dy = y_.grad,
                                .dweight = weight_->grad,
                                .dbias = bias_->grad,
                                .scratch = backward_scratch_,
                                .geometry = geometry_,
                                .add_dweight = weight_->adds()});
}

// ---- ActivatedConv1d
// -----------------------------------------------------------------------------------------------------

template <class T>
ActivatedConv1d<T>::ActivatedConv1d(Parameters& parameters, const std::string& activation_name, const std::string& name,
                                    int64_t in, int64_t out, int64_t taps, ActivationKind kind, Conv1dGeometry geometry)
    : activation_(parameters, activation_name, in, kind), conv_(parameters, name, in, out, taps, geometry) {}

template <class T>
Flow<T> ActivatedConv1d<T>::plan(Plan& p, Flow<T> x, Flow<T> residual) {
  Context& c = p.context();
  const Shape w = conv_.weight_->shape;
  const Conv1dGeometry& g = conv_.geometry_;
  fused_ = activation_.alpha_ != nullptr && snake_conv1d_fuses<T>(c, x.shape, w, g);
  keeps_ = fused_ && p.training() && c.device().kind == Device::cpu;
  if (!fused_) return conv_.plan(p, activation_.plan(p, x), residual);
  p.next_step();
  const Shape y{.batch = x.shape.batch, .time = conv1d_length(x.shape.time, w.time, g), .channels = conv_.out_};
  conv_.x_ = p.reads(x, Phase::backward);
  conv_.y_ = p.makes<T>(y);
  conv_.residual_ = residual.id >= 0 ? p.passes(residual, conv_.y_.flow) : Read<T>{};
  if (keeps_) activated_ = p.kept<T>(x.shape);
  conv_.forward_scratch_ = p.scratch(
      keeps_ ? conv1d_forward_scratch<T>(c, x.shape, w, g) : snake_conv1d_forward_scratch<T>(c, x.shape, w, g),
      Phase::forward);
  if (p.training())
    conv_.backward_scratch_ = p.scratch(larger(snake_conv1d_input_gradient_scratch<T>(c, x.shape, w, y, g),
                                               keeps_ ? conv1d_weight_gradient_scratch<T>(c, x.shape, w, y, g)
                                                      : snake_conv1d_weight_gradient_scratch<T>(c, x.shape, w, y, g)),
                                        Phase::backward);
  return conv_.y_.flow;
}

template <class T>
void ActivatedConv1d<T>::forward(Context& c) {
  if (!fused_) {
    activation_.forward(c);
    return conv_.forward(c);
  }
  const Parameter* const beta = activation_.beta_;
  const View<const float> b = beta != nullptr ? View<const float>(beta->value) : View<const float>{};
  if (keeps_) {
    snake_forward<T>(c, {.x = conv_.x_.value,
                         .alpha = activation_.alpha_->value,
                         .beta = b,
                         .y = activated_,
                         .log_scale = beta != nullptr});
    return conv_.forward_of(c, activated_);
  }
  snake_conv1d_forward<T>(c, {.x = conv_.x_.value,
                              .alpha = activation_.alpha_->value,
                              .beta = b,
                              .weight = conv_.weight_->template value<T>(),
                              .bias = conv_.bias_->value,
                              .residual = conv_.residual_.value,
                              .y = conv_.y_.value,
                              .scratch = conv_.forward_scratch_,
                              .geometry = conv_.geometry_,
                              .log_scale = beta != nullptr});
}

template <class T>
void ActivatedConv1d<T>::backward(Context& c) {
  if (!fused_) {
    conv_.backward(c);
    return activation_.backward(c);
  }
  const Parameter* const beta = activation_.beta_;
  const View<const float> b = beta != nullptr ? View<const float>(beta->value) : View<const float>{};
  conv_.backward_of_residual(c);
  if (keeps_)
    conv_.backward_of_weight(c, activated_);
  else
    snake_conv1d_weight_gradient<T>(c, {.x = conv_.x_.value,
                                        .alpha = activation_.alpha_->value,
                                        .beta = b,
                                        .dy = conv_.y_.grad,
                                        .dweight = conv_.weight_->grad,
                                        .dbias = conv_.bias_->grad,
                                        .scratch = conv_.backward_scratch_,
                                        .geometry = conv_.geometry_,
                                        .log_scale = beta != nullptr,
                                        .add_dweight = conv_.weight_->adds()});
  snake_conv1d_input_gradient<T>(c, {.x = conv_.x_.value,
                                     .alpha = activation_.alpha_->value,
                                     .beta = b,
                                     .dy = conv_.y_.grad,
                                     .weight = conv_.weight_->template value<T>(),
                                     .dx = conv_.x_.grad,
                                     .dalpha = activation_.alpha_->grad,
                                     .dbeta = beta != nullptr ? beta->grad : View<float>{},
                                     .scratch = conv_.backward_scratch_,
                                     .geometry = conv_.geometry_,
                                     .log_scale = beta != nullptr,
                                     .add_dx = conv_.x_.add});
}

// ---- ConvTranspose1d
// -----------------------------------------------------------------------------------------------------

template <class T>
ConvTranspose1d<T>::ConvTranspose1d(Parameters& parameters, const std::string& name, int64_t in, int64_t out,
                                    int64_t taps, int64_t stride, int64_t padding, int64_t output_padding)
    : geometry_{.stride = stride, .left = padding, .right = padding},
      out_(out),
      taps_(taps),
      output_padding_(output_padding),
      weight_(&parameters.add_weight({name}, {in, out, taps}, {.batch = in, .time = taps, .channels = out})),
      bias_(&parameters.add(name + ".bias", {out}, {.channels = out})) {}

template <class T>
Flow<T> ConvTranspose1d<T>::plan(Plan& p, Flow<T> x) {
  p.next_step();
  Context& c = p.context();
  const int64_t time = (x.shape.time - 1) * geometry_.stride - 2 * geometry_.left + taps_ + output_padding_;
  const Shape y{.batch = x.shape.batch, .time = time, .channels = out_};
  x_ = p.reads(x, Phase::backward);
  y_ = p.makes<T>(y);
  forward_scratch_ =
      p.scratch(conv1d_input_gradient_scratch<T>(c, y, weight_->shape, x.shape, geometry_), Phase::forward);
  if (p.training())
    backward_scratch_ = p.scratch(larger(conv1d_forward_scratch<T>(c, y, weight_->shape, geometry_),
                                         conv1d_weight_gradient_scratch<T>(c, y, weight_->shape, x.shape, geometry_)),
                                  Phase::backward);
  return y_.flow;
}

template <class T>
void ConvTranspose1d<T>::forward(Context& c) {
  conv1d_input_gradient<T>(c, {.dy = x_.value,
                               .weight = weight_->value<T>(),
                               .bias = bias_->value,
                               .dx = y_.value,
                               .scratch = forward_scratch_,
                               .geometry = geometry_});
}

template <class T>
void ConvTranspose1d<T>::backward(Context& c) {
  conv1d_weight_gradient<T>(c, {.x = y_.grad,
                                .dy = x_.value,
                                .dweight = weight_->grad,
                                .dbias_of_x = bias_->grad,
                                .scratch = backward_scratch_,
                                .geometry = geometry_,
                                .add_dweight = weight_->adds()});
  if (!x_.grad) return;
  conv1d_forward<T>(c, {.x = y_.grad,
                        .weight = weight_->value<T>(),
                        .residual = x_.add ? View<const T>(x_.grad) : View<const T>{},
                        .y = x_.grad,
                        .scratch = backward_scratch_,
                        .geometry = geometry_});
}

// ---- Cast
// -----------------------------------------------------------------------------------------------------

template <class From, class To>
Flow<To> Cast<From, To>::plan(Plan& p, Flow<From> x) {
  p.next_step();
  x_ = p.reads(x, Phase::forward);
  y_ = p.makes<To>(x.shape, Phase::forward, needs_gradient_);
  return y_.flow;
}
template <class From, class To>
void Cast<From, To>::forward(Context& c) {
  convert<From, To>(c, {.x = x_.value, .y = y_.value});
}
template <class From, class To>
void Cast<From, To>::backward(Context& c) {
  if (needs_gradient_ && x_.grad) convert<To, From>(c, {.x = y_.grad, .y = x_.grad, .add = x_.add});
}

// ---- ResidualUnit
// --------------------------------------------------------------------------------------------------------

template <class T>
ResidualUnit<T>::ResidualUnit(Parameters& parameters, const std::string& name, int64_t channels, int64_t taps,
                              int64_t dilation, ActivationKind kind)
    : wide_(parameters, name + ".block.0", name + ".block.1", channels, channels, taps, kind,
            {.dilation = dilation, .left = (taps - 1) / 2 * dilation, .right = (taps - 1) / 2 * dilation}),
      narrow_(parameters, name + ".block.2", name + ".block.3", channels, channels, 1, kind) {}

template <class T>
Flow<T> ResidualUnit<T>::plan(Plan& p, Flow<T> x) {
  return narrow_.plan(p, wide_.plan(p, x), x);
}
template <class T>
void ResidualUnit<T>::forward(Context& c) {
  wide_.forward(c);
  narrow_.forward(c);
}
template <class T>
void ResidualUnit<T>::backward(Context& c) {
  narrow_.backward(c);
  wide_.backward(c);
}

template class Activation<float>;
template class Activation<bf16>;
template class Conv1d<float>;
template class Conv1d<bf16>;
template class ActivatedConv1d<float>;
template class ActivatedConv1d<bf16>;
template class ConvTranspose1d<float>;
template class ConvTranspose1d<bf16>;
template class Cast<float, bf16>;
template class Cast<bf16, float>;
template class ResidualUnit<float>;
template class ResidualUnit<bf16>;
static_assert(Layer<ResidualUnit<float>, float> && Layer<ConvTranspose1d<bf16>, bf16>);

}  // namespace nacre
