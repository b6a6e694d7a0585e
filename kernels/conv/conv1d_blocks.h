#pragma once
// Weight gradients in float for pointwise layers, which use each row of x for one tap, and for short items, whose rows
// are processed together. One group; channels are multiples of 16.
#include "nacre/ops/conv1d.h"

namespace nacre::blocks {

int64_t weight_gradient_scratch(const Context&, Shape x, Shape weight, Shape y);
/// a.dweight += ...; bias gradients are not computed. The shape fixes the order of summation.
void weight_gradient(Context&, const Conv1dWeightGradient<float>& a, float* scratch);

}  // namespace nacre::blocks
