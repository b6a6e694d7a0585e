#pragma once
// Convolutions with one tap, stride 1, one group and no padding, and their input gradients: one matrix product over all
// rows, read and written in place. Channels are multiples of 16. Bias and residual are added before the results are
// stored. Blocks are chosen by shape alone, so that bits do not depend on the number of threads.
#include "nacre/ops/conv1d.h"
#include "pointwise/snake_rows.h"

namespace nacre::pointwise {

/// With `snake`, the convolution's input is Snake of a.x, computed block by block.
int64_t forward_scratch(const Context&, Shape weight, bool snake = false);
void forward(Context&, const Conv1dForward<float>& a, float* scratch, const SnakeRows* snake = nullptr);

/// With `slope`, the input gradient is multiplied by Snake's slope block by block, and only the shape of a.dx is used.
int64_t input_gradient_scratch(const Context&, Shape weight, bool slope = false);
/// The number of partial sums that `slope` receives.
int64_t slope_parts(Shape dx);
void input_gradient(Context&, const Conv1dInputGradient<float>& a, float* scratch, const SnakeSlope* slope = nullptr);

}  // namespace nacre::pointwise
