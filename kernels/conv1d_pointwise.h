#pragma once
// Convolutions of one tap, stride 1 and no padding, and their input gradients: one matrix product over all rows, read
// and written where they lie, with bias and residual added before a result leaves the registers. Cut by shape alone, so
// that bits do not depend on the number of threads.
#include "nacre/ops/conv1d.h"

namespace nacre::pointwise {

bool takes(Shape x, Shape weight, Shape y, const Conv1dGeometry&);

int64_t scratch(Shape weight);
void forward(Context&, const Conv1dForward<float>& a, float* scratch);
void input_gradient(Context&, const Conv1dInputGradient<float>& a, float* scratch);

}  // namespace nacre::pointwise
