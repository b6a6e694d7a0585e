#include <array>

#include "nn/convolution.h"

namespace nacre {
namespace {

/// Bytes include the stacked frames (conv2d.h): taps of time / stride of time times x, written and read. A weight
/// gradient is float, read and written.
template <class T>
Costs costs_of(Shape x, int parts, Shape y, Shape weight, const Conv2dGeometry& g) {
  const int64_t columns = g.columns > 0 ? g.columns : x.width - g.first_column;
  const bool stacks = parts > 1 || columns < x.width || weight.width > 1 || g.time != Conv2dAxis{};
  const double xs = static_cast<double>(x.batch * x.time * columns * x.channels),
               stacked = stacks ? 2 * static_cast<double>(weight.width) / static_cast<double>(g.time.stride) : 0,
               tensors = sizeof(T) * (xs * (1 + stacked) + static_cast<double>(y.elements())),
               weights = static_cast<double>(weight.elements()), products = 2 * static_cast<double>(y.rows()) * weights;
  return {.forward = {.products = products, .bytes = tensors + sizeof(T) * weights},
          .input_gradient = {.products = products, .bytes = tensors + sizeof(T) * weights},
          .weight_gradient = {.products = products, .bytes = tensors + 8 * weights}};
}

}  // namespace

Conv2d::Conv2d(Parameters& parameters, const std::string& name, int64_t in, int64_t out, int64_t taps_time,
               int64_t taps_width, Conv2dGeometry geometry, Norm norm, BiasStart bias)
    : name_(name),
      geometry_(geometry),
      weight_(add_weight(parameters, name, norm, {out, in, taps_time, taps_width},
                         {.batch = out, .time = taps_width, .width = taps_time, .channels = in},
                         uniform_by_fan_in(in * taps_time * taps_width))),
      bias_(add_bias(parameters, name, out, bias, in * taps_time * taps_width)),
      norm_(add_norm(parameters, name, norm, out)) {}

Conv2d Conv2d::leaky(float slope) const {
  expect_leaky(name_, norm_.has_value(), slope);
  Conv2d copy = *this;
  copy.slope_ = slope;
  return copy;
}

Flow Conv2d::plan(Plan& p, std::span<const Flow> parts) const {
  if (parts.empty() || parts.size() > static_cast<size_t>(conv2d_max_parts))
    throw Error(ErrorKind::usage, name_ + ": " + std::to_string(parts.size()) + " parts, expected 1 to " +
                                      std::to_string(conv2d_max_parts));
  const Flow y = visit(parts[0].storage, [&]<class T>(Type<T>) {
    const Step s = p.step(name_);
    Context& context = p.context();
    const int count = static_cast<int>(parts.size());
    const Shape weight_shape = weight_->shape;
    Conv2dParts<const T> x;
    Conv2dParts<T> dx;
    std::array<bool, conv2d_max_parts> add_dx{};
    bool has_dx = false;
    x.count = dx.count = count;
    for (size_t i = 0; i < parts.size(); ++i) {
      const auto in = s.reads<T>(parts[i], Until::backward);
      s.reaches(parts[i], {weight_shape.width, geometry_.time.stride, geometry_.time.dilation, geometry_.time.left});
      x.part[i] = in.value, dx.part[i] = in.grad, add_dx[i] = in.add;
      has_dx = has_dx || in.grad;
    }
    const Shape whole = x.shape(), shape = output(whole);
    const auto out = s.makes<T>(shape, LeakyEnd<T>::keeps(slope_));
    const LeakyEnd<T> end(s, slope_, out);
    const View<float> scratch =
        s.scratch(conv2d_forward_scratch<T>(context, whole, count, weight_shape, geometry_), Until::forward);
    const View<float> backward_scratch =
        s.scratch(larger(conv2d_input_gradient_scratch<T>(context, whole, count, weight_shape, geometry_),
                         conv2d_weight_gradient_scratch<T>(context, whole, count, weight_shape, geometry_)),
                  Until::backward);
    const View<float> weight_parts =
        s.parts(conv2d_weight_gradient_parts<T>(context, whole, count, weight_shape, geometry_));
    const WeightGrad dweight = s.gradient(*weight_);
    const View<float> dbias = s.gradient(*bias_);
    Costs costs = costs_of<T>(whole, count, shape, weight_shape, geometry_);
    if (slope_ > 0) costs += leaky_costs<T>(shape);
    s.costs(costs);
    s.forward([=, weight = weight_, bias = bias_, geometry = geometry_](Context& c) {
      conv2d_forward<T>(c, {.x = x,
                            .weight = weight->value<T>(),
                            .bias = bias->value,
                            .y = out.value,
                            .scratch = scratch,
                            .geometry = geometry});
      end.forward(c);
    });
    s.backward([=, weight = weight_, geometry = geometry_](Context& c) {
      const View<const T> dy = end.backward(c);
      if (dweight.grad)
        conv2d_weight_gradient<T>(c, {.x = x,
                                      .dy = dy,
                                      .dweight = dweight.grad,
                                      .dbias = dbias,
                                      .scratch = backward_scratch,
                                      .parts = weight_parts,
                                      .geometry = geometry,
                                      .add_dweight = dweight.add});
      if (has_dx)
        conv2d_input_gradient<T>(c, {.dy = dy,
                                     .weight = weight->value<T>(),
                                     .dx = dx,
                                     .add_dx = add_dx,
                                     .scratch = backward_scratch,
                                     .geometry = geometry});
    });
    return out.flow;
  });
  return norm_ ? norm_->plan(p, y) : y;
}

static_assert(Layer<Conv2d>);

}  // namespace nacre
