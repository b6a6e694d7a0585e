#pragma once
// Convolutions of one tap, stride 1 and no padding, and their input gradients: one matrix product over all rows, read
// and written where they lie, with bias and residual added before a result leaves the registers. Cut by shape alone, so
// that bits do not depend on the number of threads.
#include "nacre/ops/conv1d.h"
#include "pointwise/snake_rows.h"

namespace nacre::pointwise {

bool takes(Shape x, Shape weight, Shape y, const Conv1dGeometry&);

/// With `snake`, x of the convolution is Snake of a.x, made block by block.
int64_t forward_scratch(const Context&, Shape weight, bool snake = false);
void forward(Context&, const Conv1dForward<float>& a, float* scratch, const SnakeRows* snake = nullptr);

/// With `slope`, a.dx is what Snake's slope is multiplied with, block by block: only its shape is looked at.
int64_t input_gradient_scratch(const Context&, Shape weight, bool slope = false);
/// How many partials `slope` receives.
int64_t slope_parts(Shape dx);
void input_gradient(Context&, const Conv1dInputGradient<float>& a, float* scratch, const SnakeSlope* slope = nullptr);

}  // namespace nacre::pointwise
