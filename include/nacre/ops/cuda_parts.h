#pragma once
#include "nacre/ops/conv1d.h"
// How CUDA's kernels divide convolutions and Snake on an H200, for the costs of a step (Step::costs). It is what the
// ops themselves decide by (kernels/conv/choose_cuda.h, kernels/pointwise/snake_tiling.h), with the limits of an H200
// in place of a device's. No device is asked, so that a build without CUDA counts the same.
//
// Tensors begin at multiples of 16 bytes. T is their storage; x is the side that the weight's taps move over.
namespace nacre {
enum class Conv1dKernels : uint8_t {
  none,    ///< there is nothing to compute
  plain,   ///< every geometry
  ends,    ///< one channel on one side, seven taps
  tiles,   ///< products of matrices
  groups,  ///< several groups of channels
};

/// The gradients of a convolution. `weight_parts`, `bias_parts`, `bias_of_x_parts`: parts of the sums over rows for
/// dweight, dbias and dbias_of_x. The kernels of ends add their few parts themselves: one is left, and none of x.
struct Conv1dParts {
  Conv1dKernels input_gradient = Conv1dKernels::none, weight_gradient = Conv1dKernels::none;
  bool ends_apart = false;  ///< input gradient: the plain kernel computes the first and the last samples of an item
  int64_t weight_parts = 0, bias_parts = 0, bias_of_x_parts = 0;
  bool bias_apart = false, bias_of_x_apart = false;  ///< a kernel of its own sums dy or x
};
template <class T>
Conv1dParts conv1d_parts(Shape x, Shape weight, const Conv1dGeometry&);

/// Snake in front of a convolution: in which directions it is inside of the convolution's kernel, and the number of
/// parts of the gradients of its parameters where it is inside of tiles.
struct SnakeConv1dParts {
  bool in_forward = false, in_input_gradient = false, in_weight_gradient = false;
  int64_t parts = 0;
};
template <class T>
SnakeConv1dParts snake_conv1d_parts(Precision, Shape x, Shape weight, const Conv1dGeometry&);

/// Parts of the gradients of Snake's parameters by its own kernel.
template <class T>
int64_t snake_parts(Shape x);
}  // namespace nacre
