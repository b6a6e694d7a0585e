#pragma once
// What convolutions, activations and norms cost, for Step::costs().
#include <algorithm>

#include "nacre/nn/plan.h"
#include "nacre/ops/cuda_parts.h"

namespace nacre {

inline constexpr double float_bytes = sizeof(float);

/// Bytes of the parts that Snake's own kernel leaves: two sums per channel each.
template <class T>
double snake_part_bytes(Shape x) {
  return 2 * float_bytes * static_cast<double>(snake_parts<T>(x) * x.channels);
}
/// The sums of its gradients: of the parts, with the parameters and their gradients, which are read and written.
/// `parameters`: vectors of one value per channel, 1 or 2.
inline Work snake_sums(double part_bytes, Shape x, int parameters) {
  return {.bytes = part_bytes + 3 * float_bytes * static_cast<double>(parameters * x.channels), .launches = 1};
}
/// Snake alone. Forward: a sine, its square and a sum. Backward: a sine, a cosine and two sums over time; it reads x
/// again, and the gradient of its result.
template <class T>
Costs snake_costs(Shape x, int parameters) {
  const auto n = static_cast<double>(x.elements()), bytes = sizeof(T) * n, parts = snake_part_bytes<T>(x);
  return {.forward = {.floats = 20 * n, .bytes = 2 * bytes, .launches = 1},
          .input_gradient = {.floats = 60 * n, .bytes = 3 * bytes + parts, .launches = 1},
          .sums = snake_sums(parts, x, parameters)};
}
/// Snake in front of a convolution. Where it is inside of the convolution's kernels, the input gradient reads x and
/// leaves the parts of two sums per channel. Elsewhere it is a kernel of its own: the convolution's input gradient is
/// then stored and read once more.
template <class T>
Costs snake_costs_inside(Shape x, Shape weight, const Conv1dGeometry& g, int parameters, Precision precision) {
  const auto n = static_cast<double>(x.elements()), bytes = sizeof(T) * n;
  const SnakeConv1dParts inside = snake_conv1d_parts<T>(precision, x, weight, g);
  // Snake's parameters have two sums. The kernels of ends leave so few parts that they do not count.
  const double parts = inside.in_input_gradient ? 2 * float_bytes * static_cast<double>(inside.parts * x.channels)
                                                : snake_part_bytes<T>(x);
  const Work alone{.bytes = 2 * bytes, .launches = 1};
  Costs c{.forward = {.floats = 20 * n},
          .input_gradient = {.floats = 60 * n, .bytes = bytes + parts},
          .sums = snake_sums(parts, x, parameters)};
  if (!inside.in_forward) c.forward += alone;
  if (!inside.in_input_gradient) c.input_gradient += alone;
  if (!inside.in_weight_gradient) c.weight_gradient += alone;
  return c;
}
/// An activation that is differentiated from its output.
template <class T>
Costs elementwise_costs(Shape x) {
  const auto n = static_cast<double>(x.elements()), bytes = sizeof(T) * n;
  return {.forward = {.floats = 20 * n, .bytes = 2 * bytes, .launches = 1},
          .input_gradient = {.floats = 20 * n, .bytes = 3 * bytes, .launches = 1}};
}
/// One product per weight and position of the shorter side, for strided and transposed layers alike. `wide` and
/// `narrow` are the sides of the convolution that a transposed one is the adjoint of.
template <class T>
Costs convolution_costs(Shape wide, Shape narrow, Shape weight, const Conv1dGeometry& g, bool transposed,
                        bool residual) {
  const auto bytes = [](Shape s) { return static_cast<double>(s.elements()) * sizeof(T); };
  const auto weights = static_cast<double>(weight.elements());
  const Shape& result = transposed ? wide : narrow;
  const double outputs = float_bytes * static_cast<double>(result.channels);
  const double products = 2 * static_cast<double>(wide.batch * std::min(wide.time, narrow.time)) * weights;
  const double tensors = bytes(wide) + bytes(narrow), all = tensors + bytes(weight);
  // With reflected padding the plain kernel computes the ends of dx: little beside the weight, which it reads, too, and
  // the rows of dy that these ends feed. If there is nothing between the ends, it computes all.
  const Conv1dParts parts = conv1d_parts<T>(wide, weight, g);
  const bool two = parts.ends_apart && !transposed;
  const int64_t fed = std::min(narrow.time, 2 * g.left / g.stride + 2 * g.right / g.stride + 2);
  const double ends = two ? bytes(weight) + bytes({narrow.batch, fed, 1, narrow.channels}) : 0;
  Costs c{.forward = {.products = products, .bytes = all + outputs + (residual ? bytes(result) : 0), .launches = 1},
          .input_gradient = {.products = products, .bytes = all + ends, .launches = two ? 2.0 : 1.0},
          .weight_gradient = {.products = products, .bytes = tensors, .launches = 1}};
  // A weight gradient is float. A single part of it is written in place, unless the plain kernel leaves it. Parts of
  // the bias gradient are always added, unless it is a single one of several groups.
  const auto of_weight = float_bytes * weights * static_cast<double>(parts.weight_parts),
             of_bias = outputs * static_cast<double>(transposed ? parts.bias_of_x_parts : parts.bias_parts);
  c.weight_gradient.bytes += of_weight + of_bias;
  if (parts.weight_gradient == Conv1dKernels::ends) {
    c.weight_gradient.launches = 2;
    return c;
  }
  if (transposed ? parts.bias_of_x_apart : parts.bias_apart)
    c.weight_gradient.bytes += bytes(result), c.weight_gradient.launches += 1;
  const bool in_place = parts.weight_gradient == Conv1dKernels::groups && parts.weight_parts == 1;
  if (in_place && !transposed)
    c.weight_gradient.bytes += outputs;
  else
    c.sums = {.bytes = of_bias + 2 * outputs, .launches = 1};
  if (parts.weight_parts > 1 || parts.bias_apart)
    c.sums.bytes += of_weight + float_bytes * weights, c.sums.launches += 1;
  return c;
}
/// Forward: two sums, then one product and one sum. Backward: two sums per channel, then two products; it reads x and
/// dy twice.
template <class T>
Costs norm_costs(Shape x, bool residual) {
  const auto n = static_cast<double>(x.elements()), bytes = sizeof(T) * n;
  return {.forward = {.floats = 8 * n, .bytes = (residual ? 4 : 3) * bytes, .launches = 3},
          .input_gradient = {.floats = 6 * n, .bytes = 3 * bytes, .launches = 2},
          .weight_gradient = {.floats = 5 * n, .bytes = 2 * bytes, .launches = 2}};
}

}  // namespace nacre
