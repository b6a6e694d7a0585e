#include "nacre/ops/cuda_parts.h"

#include "conv/choose.h"
#include "conv/choose_cuda.h"
#include "pointwise/snake_tiling.h"

namespace nacre {
namespace {

using cuda::h200_limits;
using cuda::conv::Engine;

Conv1dKernels kernels_of(Engine e) {
  switch (e) {
    case Engine::nothing:
      return Conv1dKernels::none;
    case Engine::ends:
      return Conv1dKernels::ends;
    case Engine::tiles:
    case Engine::taps:
    case Engine::windows:
      return Conv1dKernels::tiles;
    case Engine::groups:
      return Conv1dKernels::groups;
    default:
      return Conv1dKernels::plain;
  }
}

}  // namespace

template <class T>
Conv1dParts conv1d_parts(Shape x, Shape weight, const Conv1dGeometry& g) {
  // The precision decides how tiles lie, but not whether they are used.
  const auto input = cuda::conv::choose_input_gradient<T>(h200_limits, Precision::fp32, x, weight, g);
  const auto weights = cuda::conv::choose_weight_gradient<T>(h200_limits, x, weight, g);
  Conv1dParts c{.input_gradient = kernels_of(input.engine), .weight_gradient = kernels_of(weights.engine)};
  c.ends_apart = c.input_gradient != Conv1dKernels::plain && input.head + input.tail > 0;
  if (c.weight_gradient == Conv1dKernels::none) return c;
  if (c.weight_gradient == Conv1dKernels::ends) {
    c.weight_parts = c.bias_parts = 1;
    return c;
  }
  c.weight_parts = weights.parts;
  c.bias_apart = c.weight_gradient == Conv1dKernels::plain;
  c.bias_parts = c.bias_apart ? cuda::conv::column_sum_parts(h200_limits, conv::output(x, weight, g))
                 : c.weight_gradient == Conv1dKernels::groups ? weights.parts
                                                              : weights.bias_parts;
  c.bias_of_x_apart = weights.bias_of_x_parts == 0;
  c.bias_of_x_parts = c.bias_of_x_apart ? cuda::conv::column_sum_parts(h200_limits, x) : weights.bias_of_x_parts;
  return c;
}

template <class T>
SnakeConv1dParts snake_conv1d_parts(Precision precision, Shape x, Shape weight, const Conv1dGeometry& g) {
  const auto forward = cuda::conv::choose_snake_forward<T>(h200_limits, precision, x, weight, g);
  const auto input = cuda::conv::choose_snake_input_gradient<T>(h200_limits, precision, x, weight, g);
  const auto weights = cuda::conv::choose_snake_weight_gradient<T>(h200_limits, precision, x, weight, g);
  return {forward.engine != Engine::separate, input.engine != Engine::separate, weights.engine != Engine::separate,
          input.engine == Engine::tiles ? input.parts : 0};
}

template <class T>
int64_t snake_parts(Shape x) {
  return cuda::snake_parts<T>(h200_limits, x);
}

#define NACRE_INSTANTIATE(T)                                                                       \
  template Conv1dParts conv1d_parts<T>(Shape, Shape, const Conv1dGeometry&);                       \
  template SnakeConv1dParts snake_conv1d_parts<T>(Precision, Shape, Shape, const Conv1dGeometry&); \
  template int64_t snake_parts<T>(Shape);
NACRE_INSTANTIATE(float)
NACRE_INSTANTIATE(bf16)
#undef NACRE_INSTANTIATE

}  // namespace nacre
