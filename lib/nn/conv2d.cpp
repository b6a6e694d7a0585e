// The layer Conv2d: a convolution over frames (time) and columns (width) of up to conv2d_max_parts activations side by
// side, with an optional leaky ReLU inside the step. Each part is an input of its own, with a gradient of its own.
#include <algorithm>
#include <array>
#include <utility>
#include <vector>

#include "nn/convolution.h"
#include "nn/layer_costs.h"

namespace nacre {
namespace {

/// The columns of a part, whose first one is column `begin` of all, that take part in the convolution.
int64_t columns_in(int64_t begin, int64_t width, int64_t first, int64_t columns) {
  return std::max<int64_t>(0, std::min(begin + width, first + columns) - std::max(begin, first));
}

/// Those of conv1d along the width (kernels/conv/conv2d.cpp), over frames that a kernel stacks as channels, again in
/// every direction; the input gradient is gathered from its stacked form. Where the stacked channels are padded with
/// zeros, so is a copy of the weight, and its gradient's sums are not those of other steps.
template <class T>
Costs costs_of(Shape x, int parts, Shape y, Shape weight, const Conv2dGeometry& g) {
  constexpr int64_t pack = 16 / sizeof(T);
  // `channels`: of a stacked row, one group of x.channels per tap of time; `pitch`: with the zeros that fill 16 bytes.
  const int64_t columns = g.columns > 0 ? g.columns : x.width - g.first_column, channels = weight.width * x.channels;
  const bool stacks =
      parts > 1 || columns < x.width || weight.width > 1 || g.time.stride > 1 || g.time.left > 0 || g.time.right > 0;
  const bool pads = stacks && channels % pack != 0 && weight.batch % pack == 0;
  const int64_t pitch = pads ? (channels + pack - 1) / pack * pack : channels;
  const Shape stacked{.batch = x.batch * y.time, .time = columns, .channels = pitch},
      padded{.batch = weight.batch, .time = weight.time, .channels = pitch},
      result{.batch = x.batch * y.time, .time = y.width, .channels = y.channels};
  Costs c = convolution_costs<T>(
      stacked, result, padded,
      {.stride = g.width.stride, .dilation = g.width.dilation, .left = g.width.left, .right = g.width.right}, false,
      false);
  const auto weights = static_cast<double>(weight.elements()), of_padded = static_cast<double>(padded.elements());
  // Products with the weight as it is: the zeros of the padding do not count as work.
  c.forward.products = c.input_gradient.products = c.weight_gradient.products =
      2 * static_cast<double>(y.rows()) * weights;
  if (!stacks) return c;
  // Frames of x that are read, and taps that read one.
  int64_t taps = 0;
  std::vector<char> read(static_cast<size_t>(x.time), 0);
  for (int64_t t = 0; t < y.time; ++t)
    for (int64_t k = 0; k < weight.width; ++k) {
      const int64_t frame = t * g.time.stride + k * g.time.dilation - g.time.left;
      if (frame >= 0 && frame < x.time) ++taps, read[static_cast<size_t>(frame)] = 1;
    }
  const auto frames = static_cast<double>(std::count(read.begin(), read.end(), 1)),
             of_frame = static_cast<double>(x.batch * columns * x.channels);
  const Work stacking{.bytes = sizeof(T) * (frames * of_frame + static_cast<double>(stacked.elements())),
                      .launches = 1};
  const double whole = static_cast<double>(x.elements());
  c.forward += stacking, c.weight_gradient += stacking;
  c.input_gradient += {.bytes = sizeof(T) * (static_cast<double>(taps) * of_frame + whole), .launches = 1};
  if (!pads) return c;
  // The padded copy of the weight is made for each pass that reads it; the weight gradient is cut out of a padded one.
  const Work padding{.bytes = sizeof(T) * (weights + of_padded), .launches = 1};
  c.forward += padding, c.input_gradient += padding;
  c.weight_gradient += {.bytes = float_bytes * (weights + of_padded), .launches = 1};
  c.sums_alone = std::exchange(c.sums, {});
  return c;
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
    // Addresses are null in the first walk, but the shapes of parts are set in both.
    Conv2dParts<const T> x;
    Conv2dParts<T> dx;
    std::array<bool, conv2d_max_parts> add_dx{};
    bool has_dx = false;
    x.count = dx.count = count;
    for (size_t i = 0; i < parts.size(); ++i) {
      const auto in = s.reads<T>(parts[i], Until::backward);
      s.reaches(parts[i], {weight_shape.width, geometry_.time.stride, geometry_.time.dilation, geometry_.time.left});
      x.part[i] = in.value, dx.part[i] = in.grad, add_dx[i] = in.add;
      // The op skips parts without a gradient. Without any, its input gradient is not called at all.
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
    // Where a gradient is added to, the columns that take no part are left alone.
    const int64_t first = geometry_.first_column,
                  columns = geometry_.columns > 0 ? geometry_.columns : whole.width - first;
    int64_t begin = 0;
    for (const Flow& part : parts) {
      const Shape p1 = part.shape;
      // Bytes of a column over all items and frames. Adding reads the used columns once more, and does not write the
      // others: used - (width - used) columns in all.
      const auto row = static_cast<double>(p1.batch * p1.time * p1.channels) * sizeof(T);
      const auto used = static_cast<double>(columns_in(begin, p1.width, first, columns));
      s.costs_adding(part, {.bytes = row * (2 * used - static_cast<double>(p1.width))});
      begin += p1.width;
    }
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
