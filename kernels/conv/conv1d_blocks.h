#pragma once
// Weight gradients of float where a block of the weight meets few rows at a time: pointwise layers, which use each row
// of x for one tap, and short items, whose rows are taken together.
#include "nacre/ops/conv1d.h"

namespace nacre::blocks {

bool takes(Shape x, Shape weight, Shape y, const Conv1dGeometry&);
int64_t weight_gradient_scratch(const Context&, Shape x, Shape weight, Shape y);
/// a.dweight += ...; biases are not looked at. Rows are summed in an order that the shape fixes.
void weight_gradient(Context&, const Conv1dWeightGradient<float>& a, float* scratch);

}  // namespace nacre::blocks
