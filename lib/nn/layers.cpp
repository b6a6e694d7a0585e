// The layers of layers.h but Conv2d, Film, Lstm and rows_of(), which have files of their own.
//
// A step is described in one order: what it reads and makes, its memory, the gradients that it wants, its costs and
// reach, and the two closures. Closures capture views and pointers to parameters by value, never `this`: a plan may
// outlive the layer. They read a parameter's view when they run.
//
// Where a step has a residual, its backward pass writes the residual's gradient first. The residual is declared after
// x, and the last reading of an activation is the first writer of its gradient. So x may be its own residual: the first
// write overwrites and the second one adds.
#include "nacre/nn/layers.h"

#include <algorithm>

#include "nacre/ops/add.h"
#include "nacre/ops/convert.h"
#include "nacre/ops/elu.h"
#include "nacre/ops/group_norm.h"
#include "nacre/ops/snake.h"
#include "nacre/ops/snake_conv1d.h"
#include "nacre/ops/tanh.h"
#include "nn/convolution.h"
#include "nn/layer_costs.h"
#include "nn/streaming.h"

namespace nacre {
namespace {

// The value of a parameter that a layer may lack, and where its gradient goes; empty without one.
View<const float> value_of(const Parameter* p) {
  return p != nullptr ? View<const float>(p->value) : View<const float>{};
}
View<float> gradient_of(const Step& s, const Parameter* p) { return p != nullptr ? s.gradient(*p) : View<float>{}; }

// What a convolution with this weight [out, taps, 1, in] reads along the time axis.
Footprint footprint_of(Shape weight, const Conv1dGeometry& g, bool transposed = false) {
  return {weight.time, g.stride, g.dilation, g.left, transposed};
}

}  // namespace

Flow Chain::plan(Plan& p, Flow x) const {
  for (const auto& layer : layers_) x = layer(p, x);
  return x;
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

Activation::Activation(Parameters& parameters, const std::string& name, int64_t channels, ActivationKind kind)
    : name_(name), kind_(kind) {
  const auto add = [&](const char* which, Init init) {
    return &parameters.add(name + which, {1, channels, 1}, {.channels = channels}, init);
  };
  if (kind == ActivationKind::snake) alpha_ = add(".alpha", {Init::one});
  if (kind == ActivationKind::snake_beta) {  // snake_beta's alpha and beta are logarithms
    alpha_ = add(".alpha", {Init::zero});
    beta_ = add(".beta", {Init::zero});
  }
}

namespace {

// Snake as a step of its own. beta: null for plain Snake, whose scale is alpha; else both are logarithms. The backward
// pass calls the op even where x has no gradient, because alpha needs it.
template <class T>
Flow plan_snake(Plan& p, const std::string& name, Flow x, const Parameter* alpha, const Parameter* beta,
                const Costs& costs) {
  const Step s = p.step(name);
  const bool log_scale = beta != nullptr;
  const auto in = s.reads<T>(x, Until::backward);
  const auto out = s.makes<T>(x.shape);
  const Shape of_parts = snake_backward_parts(p.context(), x.shape, log_scale);
  const View<float> parts = s.parts(of_parts);
  const View<float> scratch =
      // Either the op leaves its partial sums in `parts` for the plan, or it adds them itself in scratch.
      s.scratch(beside_parts(snake_backward_scratch(p.context(), x.shape, log_scale), of_parts), Until::backward);
  const View<float> dalpha = s.gradient(*alpha), dbeta = gradient_of(s, beta);
  s.costs_reader(costs);
  s.forward([=](Context& c) {
    snake_forward<T>(
        c, {.x = in.value, .alpha = alpha->value, .beta = value_of(beta), .y = out.value, .log_scale = log_scale});
  });
  s.backward([=](Context& c) {
    snake_backward<T>(c, {.x = in.value,
                          .alpha = alpha->value,
                          .beta = value_of(beta),
                          .dy = out.grad,
                          .dx = in.grad,
                          .dalpha = dalpha,
                          .dbeta = dbeta,
                          .scratch = scratch,
                          .parts = parts,
                          .log_scale = log_scale,
                          .add_dx = in.add});
  });
  return out.flow;
}

/// All other kinds are differentiated from their output, so their backward pass does not read x.
template <class T>
Flow plan_elementwise(Plan& p, const std::string& name, Flow x, ActivationKind kind) {
  const Step s = p.step(name);
  const auto in = s.reads<T>(x);
  const auto out = s.makes<T>(x.shape, Until::backward);
  // The tanh at the end of a decoder has no reader with a row.
  if (kind == ActivationKind::tanh)
    s.costs(elementwise_costs<T>(x.shape));
  else
    s.costs_reader(elementwise_costs<T>(x.shape));
  // The ops have different argument types with equal field names; the braces fill either.
  const auto record = [&](auto forward, auto backward) {
    s.forward([=](Context& c) { forward(c, {.x = in.value, .y = out.value}); });
    s.backward([=](Context& c) {
      if (in.grad) backward(c, {.y = out.value, .dy = out.grad, .dx = in.grad, .add_dx = in.add});
    });
  };
  switch (kind) {
    case ActivationKind::elu:
      record(elu_forward<T>, elu_backward<T>);
      break;
    case ActivationKind::leaky_relu:
      record(leaky_relu_forward<T>, leaky_relu_backward<T>);
      break;
    default:
      record(tanh_forward<T>, tanh_backward<T>);
      break;
  }
  return out.flow;
}

}  // namespace

Flow Activation::plan(Plan& p, Flow x) const {
  return visit(x.storage, [&]<class T>(Type<T>) {
    return alpha_ != nullptr
               ? plan_snake<T>(p, name_, x, alpha_, beta_, snake_costs<T>(x.shape, beta_ != nullptr ? 2 : 1))
               : plan_elementwise<T>(p, name_, x, kind_);
  });
}

// ---- GroupNorm

GroupNorm::GroupNorm(Parameters& parameters, const std::string& name, int64_t channels, int64_t groups, NormOver over)
    : name_(name),
      groups_(groups),
      over_(over),
      gain_(&parameters.add(name + ".weight", {channels}, {.channels = channels}, {Init::one})),
      bias_(&parameters.add(name + ".bias", {channels}, {.channels = channels}, {Init::zero})) {
  if (groups < 1 || channels % groups != 0)
    throw Error(ErrorKind::usage,
                name + ": " + std::to_string(channels) + " channels in " + std::to_string(groups) + " groups");
}

Flow GroupNorm::plan(Plan& p, Flow x, Flow residual) const {
  if (p.streaming() && over_ == NormOver::item)
    throw Error(ErrorKind::usage, name_ + ": cannot be streamed: it normalises over the whole signal");
  if (p.streaming() && residual) residual = delayed(p, name_, residual, p.lag(x));
  return visit(x.storage, [&]<class T>(Type<T>) {
    const Step s = p.step(name_);
    Context& context = p.context();
    const auto in = s.reads<T>(x, Until::backward);
    const auto out = s.makes<T>(x.shape);
    const auto skip = residual ? s.passes<T>(residual, out.flow) : Input<T>{};
    const Shape statistics = group_norm_statistics(x.shape, groups_, over_);
    // Nothing is saved where nothing is trained, but the forward pass needs the statistics in any case.
    const bool saves = p.training();
    const View<float> mean = saves ? s.saved<float>(statistics) : s.scratch(statistics, Until::forward);
    const View<float> deviation = saves ? s.saved<float>(statistics) : s.scratch(statistics, Until::forward);
    const View<float> scratch =
        s.scratch(group_norm_forward_scratch<T>(context, x.shape, groups_, over_), Until::forward);
    const View<float> backward_scratch =
        s.scratch(group_norm_backward_scratch<T>(context, x.shape, groups_, over_), Until::backward);
    const View<float> dgain = s.gradient(*gain_), dbias = s.gradient(*bias_);
    s.costs(norm_costs<T>(x.shape, static_cast<bool>(residual)));
    // The statistics of an item depend on all of its positions.
    if (over_ == NormOver::item) s.reaches(x, {.count = 2 * x.shape.time - 1, .left = x.shape.time - 1});
    s.forward([=, gain = gain_, bias = bias_, groups = groups_, over = over_](Context& c) {
      group_norm_forward<T>(c, {.x = in.value,
                                .gain = gain->value,
                                .bias = bias->value,
                                .residual = skip.value,
                                .y = out.value,
                                .mean = mean,
                                .inverse_deviation = deviation,
                                .scratch = scratch,
                                .groups = groups,
                                .over = over});
    });
    s.backward([=, gain = gain_, groups = groups_, over = over_](Context& c) {
      if (skip.grad) accumulate<T>(c, {.x = out.grad, .y = skip.grad, .add = skip.add});
      group_norm_backward<T>(c, {.x = in.value,
                                 .gain = gain->value,
                                 .mean = mean,
                                 .inverse_deviation = deviation,
                                 .dy = out.grad,
                                 .dx = in.grad,
                                 .dgain = dgain,
                                 .dbias = dbias,
                                 .scratch = backward_scratch,
                                 .groups = groups,
                                 .over = over,
                                 .add_dx = in.add});
    });
    return out.flow;
  });
}

// ---- Conv1d

Conv1d::Conv1d(Parameters& parameters, const std::string& name, int64_t in, int64_t out, int64_t taps,
               Conv1dGeometry geometry, Norm norm, BiasStart bias)
    : name_(name),
      geometry_(geometry),
      weight_(add_weight(parameters, name, norm, {out, in / geometry.groups, taps},
                         {.batch = out, .time = taps, .channels = in / geometry.groups},
                         uniform_by_fan_in(in / geometry.groups * taps))),
      bias_(add_bias(parameters, name, out, bias, in / geometry.groups * taps)),
      norm_(add_norm(parameters, name, norm, out)) {}

// The copy refers to the same parameters.
Conv1d Conv1d::leaky(float slope) const {
  expect_leaky(name_, norm_.has_value(), slope);
  Conv1d copy = *this;
  copy.slope_ = slope;
  return copy;
}

Conv1d Conv1d::padded_right(int64_t more) const {
  Conv1d layer = *this;
  layer.geometry_.right += more;
  return layer;
}
Shape Conv1d::output(Shape input) const {
  return {.batch = input.batch,
          .time = conv1d_length(input.time, weight_->shape.time, geometry_),
          .channels = weight_->shape.batch};
}

Flow Conv1d::plan(Plan& p, Flow x, Flow residual) const {
  if (slope_ > 0 && residual) throw Error(ErrorKind::usage, name_ + ": a residual with leaky()");
  if (p.streaming()) return plan_streamed(p, x, residual);
  if (norm_) return norm_->plan(p, plan_convolution(p, x, {}), residual);
  return plan_convolution(p, x, residual);
}

/// The convolution of a block and of the rows before it that it reads, without padding.
Flow Conv1d::plan_streamed(Plan& p, Flow x, Flow residual) const {
  const StreamedRows rows = streamed_rows(name_, weight_->shape.time, geometry_, p.lag(x));
  Conv1d layer = *this;
  // The carried rows contain what the padding would have added (fill_outside() in streaming.cpp).
  layer.geometry_.left = layer.geometry_.right = 0, layer.geometry_.padding = Padding::zero;
  const Flow in = with_carried_rows(p, name_, x, rows.carried, geometry_);
  // A norm takes the residual itself and delays it there.
  const Flow skip = residual && !norm_ ? delayed(p, name_, residual, rows.lag) : Flow{};
  const Flow y = layer.plan_convolution(p, in, skip);
  p.set_lag(y, rows.lag);
  return norm_ ? norm_->plan(p, y, residual) : y;
}

// y = conv(x) + residual, or leaky_relu(conv(x)), as one step without the norm of the output.
Flow Conv1d::plan_convolution(Plan& p, Flow x, Flow residual) const {
  return visit(x.storage, [&]<class T>(Type<T>) {
    const Step s = p.step(name_);
    Context& context = p.context();
    const Shape shape = weight_->shape, y = output(x.shape);
    const auto in = s.reads<T>(x, Until::backward);
    const auto out = s.makes<T>(y, LeakyEnd<T>::keeps(slope_));
    const LeakyEnd<T> end(s, slope_, out);
    const auto skip = residual ? s.passes<T>(residual, out.flow) : Input<T>{};
    const View<float> scratch =
        s.scratch(conv1d_forward_scratch<T>(context, x.shape, shape, geometry_), Until::forward);
    const Shape of_parts = conv1d_weight_gradient_parts<T>(context, x.shape, shape, y, geometry_),
                of_weight = conv1d_weight_gradient_scratch<T>(context, x.shape, shape, y, geometry_);
    const View<float> parts = s.parts(of_parts);
    const View<float> backward_scratch =
        s.scratch(larger(conv1d_input_gradient_scratch<T>(context, x.shape, shape, y, geometry_),
                         beside_parts(of_weight, of_parts)),
                  Until::backward);
    const WeightGrad dweight = s.gradient(*weight_);
    const View<float> dbias = s.gradient(*bias_);
    Costs costs = convolution_costs<T>(x.shape, y, shape, geometry_, false, static_cast<bool>(residual));
    if (slope_ > 0) costs += leaky_costs<T>(y);
    s.costs(costs);
    s.reaches(x, footprint_of(shape, geometry_));
    s.forward([=, weight = weight_, bias = bias_, geometry = geometry_](Context& c) {
      conv1d_forward<T>(c, {.x = in.value,
                            .weight = weight->value<T>(),
                            .bias = bias->value,
                            .residual = skip.value,
                            .y = out.value,
                            .scratch = scratch,
                            .geometry = geometry});
      end.forward(c);
    });
    s.backward([=, weight = weight_, geometry = geometry_](Context& c) {
      if (skip.grad) accumulate<T>(c, {.x = out.grad, .y = skip.grad, .add = skip.add});
      // Before both gradients: with a leaky ReLU they need the gradient in front of it.
      const View<const T> dy = end.backward(c);
      if (dweight.grad)
        conv1d_weight_gradient<T>(c, {.x = in.value,
                                      .dy = dy,
                                      .dweight = dweight.grad,
                                      .dbias = dbias,
                                      .scratch = backward_scratch,
                                      .parts = parts,
                                      .geometry = geometry,
                                      .add_dweight = dweight.add});
      if (in.grad)
        conv1d_input_gradient<T>(c, {.dy = dy,
                                     .weight = weight->value<T>(),
                                     .dx = in.grad,
                                     .scratch = backward_scratch,
                                     .geometry = geometry,
                                     .add_dx = in.add});
    });
    return out.flow;
  });
}

// ---- ActivatedConv1d

ActivatedConv1d::ActivatedConv1d(Parameters& parameters, const std::string& activation_name, const std::string& name,
                                 int64_t in, int64_t out, int64_t taps, ActivationKind kind, Conv1dGeometry geometry,
                                 Norm norm)
    : activation_(parameters, activation_name, in, kind), conv_(parameters, name, in, out, taps, geometry, norm) {}

namespace {

/// Snake inside the convolution. saves: the forward pass writes the activated input for the weight gradient.
template <class T>
Flow plan_fused(Plan& p, const Activation& activation, const Conv1d& conv, Flow x, Flow residual, bool saves) {
  const Step s = p.step(conv.name());
  Context& context = p.context();
  const Weight* const weight = &conv.weight();
  const Parameter *const bias = &conv.bias(), *const alpha = activation.alpha(), *const beta = activation.beta();
  const Conv1dGeometry geometry = conv.geometry();
  const bool log_scale = beta != nullptr;
  const Shape shape = weight->shape, y = conv.output(x.shape);
  const auto in = s.reads<T>(x, Until::backward);
  const auto out = s.makes<T>(y);
  const auto skip = residual ? s.passes<T>(residual, out.flow) : Input<T>{};
  // In training only: `saves` is false elsewhere, and the forward pass then computes Snake inside the convolution.
  const View<T> activated = saves ? s.saved<T>(x.shape) : View<T>{};
  const View<float> scratch = s.scratch(saves ? conv1d_forward_scratch<T>(context, x.shape, shape, geometry)
                                              : snake_conv1d_forward_scratch<T>(context, x.shape, shape, geometry),
                                        Until::forward);
  const View<float> backward_scratch =
      s.scratch(larger(snake_conv1d_input_gradient_scratch<T>(context, x.shape, shape, y, geometry),
                       saves ? conv1d_weight_gradient_scratch<T>(context, x.shape, shape, y, geometry)
                             : snake_conv1d_weight_gradient_scratch<T>(context, x.shape, shape, y, geometry)),
                Until::backward);
  const View<float> weight_parts =
      s.parts(saves ? conv1d_weight_gradient_parts<T>(context, x.shape, shape, y, geometry)
                    : snake_conv1d_weight_gradient_parts<T>(context, x.shape, shape, y, geometry));
  const View<float> snake_parts = s.parts(snake_conv1d_input_gradient_parts<T>(context, x.shape, shape, y, geometry));
  const WeightGrad dweight = s.gradient(*weight);
  const View<float> dbias = s.gradient(*bias), dalpha = s.gradient(*alpha), dbeta = gradient_of(s, beta);
  Costs costs = convolution_costs<T>(x.shape, y, shape, geometry, false, static_cast<bool>(residual));
  costs += snake_costs_inside<T>(x.shape, shape, geometry, log_scale ? 2 : 1, context.precision());
  s.costs(costs);
  s.reaches(x, footprint_of(shape, geometry));
  s.forward([=](Context& c) {
    if (!saves)
      return snake_conv1d_forward<T>(c, {.x = in.value,
                                         .alpha = alpha->value,
                                         .beta = value_of(beta),
                                         .weight = weight->value<T>(),
                                         .bias = bias->value,
                                         .residual = skip.value,
                                         .y = out.value,
                                         .scratch = scratch,
                                         .geometry = geometry,
                                         .log_scale = log_scale});
    snake_forward<T>(
        c, {.x = in.value, .alpha = alpha->value, .beta = value_of(beta), .y = activated, .log_scale = log_scale});
    conv1d_forward<T>(c, {.x = activated,
                          .weight = weight->value<T>(),
                          .bias = bias->value,
                          .residual = skip.value,
                          .y = out.value,
                          .scratch = scratch,
                          .geometry = geometry});
  });
  s.backward([=](Context& c) {
    if (skip.grad) accumulate<T>(c, {.x = out.grad, .y = skip.grad, .add = skip.add});
    if (dweight.grad && saves)
      conv1d_weight_gradient<T>(c, {.x = activated,
                                    .dy = out.grad,
                                    .dweight = dweight.grad,
                                    .dbias = dbias,
                                    .scratch = backward_scratch,
                                    .parts = weight_parts,
                                    .geometry = geometry,
                                    .add_dweight = dweight.add});
    else if (dweight.grad)
      snake_conv1d_weight_gradient<T>(c, {.x = in.value,
                                          .alpha = alpha->value,
                                          .beta = value_of(beta),
                                          .dy = out.grad,
                                          .dweight = dweight.grad,
                                          .dbias = dbias,
                                          .scratch = backward_scratch,
                                          .parts = weight_parts,
                                          .geometry = geometry,
                                          .log_scale = log_scale,
                                          .add_dweight = dweight.add});
    snake_conv1d_input_gradient<T>(c, {.x = in.value,
                                       .alpha = alpha->value,
                                       .beta = value_of(beta),
                                       .dy = out.grad,
                                       .weight = weight->value<T>(),
                                       .dx = in.grad,
                                       .dalpha = dalpha,
                                       .dbeta = dbeta,
                                       .scratch = backward_scratch,
                                       .parts = snake_parts,
                                       .geometry = geometry,
                                       .log_scale = log_scale,
                                       .add_dx = in.add});
  });
  return out.flow;
}

}  // namespace

Flow ActivatedConv1d::plan(Plan& p, Flow x, Flow residual) const {
  return visit(x.storage, [&]<class T>(Type<T>) {
    Context& c = p.context();
    // In a streaming plan Snake is a step of its own: inside the convolution it would be computed again for the rows
    // of the blocks before.
    if (p.streaming()) return conv_.plan(p, activation_.plan(p, x), residual);
    const bool fuses =
        activation_.alpha() != nullptr && snake_conv1d_fuses<T>(c, x.shape, conv_.weight().shape, conv_.geometry());
    if (!fuses && activation_.alpha() != nullptr) {
      // Costs are those on CUDA, which always fuses.
      const Costs inside = snake_costs_inside<T>(x.shape, conv_.weight().shape, conv_.geometry(),
                                                 activation_.beta() != nullptr ? 2 : 1, c.precision());
      const Flow y = plan_snake<T>(p, activation_.name(), x, activation_.alpha(), activation_.beta(), inside);
      return conv_.plan(p, y, residual);
    }
    if (!fuses) return conv_.plan(p, activation_.plan(p, x), residual);
    const bool saves = p.training() && c.device().kind == Device::cpu;
    // The norm comes between the convolution and the residual, so it takes the residual.
    if (conv_.norm()) return conv_.norm()->plan(p, plan_fused<T>(p, activation_, conv_, x, {}, saves), residual);
    return plan_fused<T>(p, activation_, conv_, x, residual, saves);
  });
}

// ---- ConvTranspose1d

ConvTranspose1d::ConvTranspose1d(Parameters& parameters, const std::string& name, int64_t in, int64_t out, int64_t taps,
                                 int64_t stride, int64_t padding, int64_t output_padding, Norm norm)
    : ConvTranspose1d(parameters, name, in, out, taps, {.stride = stride, .left = padding, .right = padding},
                      output_padding, norm) {}
ConvTranspose1d::ConvTranspose1d(Parameters& parameters, const std::string& name, int64_t in, int64_t out, int64_t taps,
                                 int64_t stride, Trim trim, Norm norm)
    : ConvTranspose1d(parameters, name, in, out, taps, {.stride = stride, .left = trim.left, .right = trim.right}, 0,
                      norm) {}
ConvTranspose1d::ConvTranspose1d(Parameters& parameters, const std::string& name, int64_t in, int64_t out, int64_t taps,
                                 Conv1dGeometry geometry, int64_t output_padding, Norm norm)
    : name_(name),
      geometry_(geometry),
      output_padding_(output_padding),
      weight_(add_weight(parameters, name, norm, {in, out, taps}, {.batch = in, .time = taps, .channels = out},
                         uniform_by_fan_in(out * taps))),
      bias_(&parameters.add(name + ".bias", {out}, {.channels = out}, uniform_by_fan_in(out * taps))),
      norm_(add_norm(parameters, name, norm, out)) {}

Flow ConvTranspose1d::plan(Plan& p, Flow x) const {
  if (p.streaming()) {
    const int64_t taps = weight_->shape.time, stride = geometry_.stride;
    const StreamedRows rows = streamed_transposed_rows(name_, taps, geometry_, p.lag(x));
    ConvTranspose1d layer = *this;
    // Cuts off what starts in front of the first output that no earlier block has given, and the tail that rows of the
    // next block still add to. time rows give time * stride outputs.
    layer.geometry_.left = rows.carried * stride, layer.geometry_.right = taps - stride, layer.output_padding_ = 0;
    const Flow y = layer.plan_convolution(p, with_carried_rows(p, name_, x, rows.carried, {}));
    p.set_lag(y, rows.lag);
    return norm_ ? norm_->plan(p, y) : y;
  }
  const Flow y = plan_convolution(p, x);
  return norm_ ? norm_->plan(p, y) : y;
}

// The layer is the adjoint of a convolution from y to x with this weight [in, taps, 1, out]. Its forward pass is that
// convolution's input gradient, its own input gradient that convolution's forward pass, and its weight gradient that
// convolution's with the roles of input and result exchanged: x of the op is dy here.
Flow ConvTranspose1d::plan_convolution(Plan& p, Flow x) const {
  return visit(x.storage, [&]<class T>(Type<T>) {
    const Step s = p.step(name_);
    Context& context = p.context();
    const Shape shape = weight_->shape;
    const int64_t time =
        (x.shape.time - 1) * geometry_.stride - geometry_.left - geometry_.right + shape.time + output_padding_;
    const Shape y{.batch = x.shape.batch, .time = time, .channels = shape.channels};
    const auto in = s.reads<T>(x, Until::backward);
    const auto out = s.makes<T>(y);
    const View<float> scratch =
        s.scratch(conv1d_input_gradient_scratch<T>(context, y, shape, x.shape, geometry_), Until::forward);
    const Shape of_parts = conv1d_weight_gradient_parts<T>(context, y, shape, x.shape, geometry_),
                of_weight = conv1d_weight_gradient_scratch<T>(context, y, shape, x.shape, geometry_);
    const View<float> parts = s.parts(of_parts);
    const View<float> backward_scratch =
        s.scratch(larger(conv1d_forward_scratch<T>(context, y, shape, geometry_), beside_parts(of_weight, of_parts)),
                  Until::backward);
    const WeightGrad dweight = s.gradient(*weight_);
    const View<float> dbias = s.gradient(*bias_);
    Costs costs = convolution_costs<T>(y, x.shape, shape, geometry_, true, false);
    // A transposed convolution by definition reads x with stride - 1 zeros between its rows; profilers count those
    // products.
    costs.forward.zeros = 2 * static_cast<double>(x.shape.batch * (time - x.shape.time) * shape.elements());
    s.costs(costs);
    s.reaches(x, footprint_of(shape, geometry_, true));
    s.forward([=, weight = weight_, bias = bias_, geometry = geometry_](Context& c) {
      conv1d_input_gradient<T>(c, {.dy = in.value,
                                   .weight = weight->value<T>(),
                                   .bias = bias->value,
                                   .dx = out.value,
                                   .scratch = scratch,
                                   .geometry = geometry});
    });
    s.backward([=, weight = weight_, geometry = geometry_](Context& c) {
      if (dweight.grad)
        conv1d_weight_gradient<T>(c, {.x = out.grad,
                                      .dy = in.value,
                                      .dweight = dweight.grad,
                                      .dbias_of_x = dbias,
                                      .scratch = backward_scratch,
                                      .parts = parts,
                                      .geometry = geometry,
                                      .add_dweight = dweight.add});
      if (in.grad)
        conv1d_forward<T>(c, {.x = out.grad,
                              .weight = weight->value<T>(),
                              // Adds to the gradient in place: y of the op may be its residual.
                              .residual = in.add ? View<const T>(in.grad) : View<const T>{},
                              .y = in.grad,
                              .scratch = backward_scratch,
                              .geometry = geometry});
    });
    return out.flow;
  });
}

// ---- stored_as

namespace {

// The backward pass rounds the gradient to the storage of x.
template <class From, class To>
Flow plan_convert(Plan& p, Flow x) {
  const Step s = p.step("convert");
  const auto in = s.reads<From>(x);
  const auto out = s.makes<To>(x.shape);
  const Work work{.bytes = (sizeof(From) + sizeof(To)) * static_cast<double>(x.shape.elements()), .launches = 1};
  s.costs({.forward = work, .input_gradient = work});
  s.forward([=](Context& c) { convert<From, To>(c, {.x = in.value, .y = out.value}); });
  s.backward([=](Context& c) {
    if (in.grad) convert<To, From>(c, {.x = out.grad, .y = in.grad, .add = in.add});
  });
  return out.flow;
}

}  // namespace

Flow stored_as(Plan& p, Flow x, Storage storage) {
  if (x.storage == storage) return x;
  return storage == Storage::float32 ? plan_convert<bf16, float>(p, x) : plan_convert<float, bf16>(p, x);
}

// ---- ResidualUnit

ResidualUnit::ResidualUnit(Parameters& parameters, const std::string& name, int64_t channels, int64_t taps,
                           int64_t dilation, ActivationKind kind)
    : wide_(parameters, name + ".block.0", name + ".block.1", channels, channels, taps, kind,
            {.dilation = dilation, .left = (taps - 1) / 2 * dilation, .right = (taps - 1) / 2 * dilation}),
      narrow_(parameters, name + ".block.2", name + ".block.3", channels, channels, 1, kind) {}

Flow ResidualUnit::plan(Plan& p, Flow x) const { return narrow_.plan(p, wide_.plan(p, x), x); }

static_assert(Layer<Chain> && Layer<ResidualUnit> && Layer<Activation> && Layer<Conv1d> && Layer<ConvTranspose1d>);

}  // namespace nacre
