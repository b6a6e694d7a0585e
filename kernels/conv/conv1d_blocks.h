#pragma once
// Weight gradients in float for pointwise layers, which use each row of x for one tap, and for short items, whose rows
// are processed together.
#include "nacre/ops/conv1d.h"

namespace nacre::blocks {

/// Whether these loops support the layer and are the fastest for it.
bool supports(Shape x, Shape weight, Shape y, const Conv1dGeometry&);
int64_t weight_gradient_scratch(const Context&, Shape x, Shape weight, Shape y);
/// a.dweight += ...; bias gradients are not computed. The shape fixes the order of summation.
void weight_gradient(Context&, const Conv1dWeightGradient<float>& a, float* scratch);

}  // namespace nacre::blocks
