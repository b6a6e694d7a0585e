#pragma once
// Convolutions of several narrow groups in float. Vectors run along time: a chunk of rows is transposed into columns,
// one per channel, so every group has full vectors however few channels it has, and one pass over the rows serves all
// groups.
#include "conv/conv1d_windows.h"
#include "nacre/ops/conv1d.h"

namespace nacre::groups {

/// Whether a group is narrow. Wide groups are products of matrices (conv1d_windows.h).
bool supports(const windows::Problem&);
int64_t scratch(const Context&, const windows::Problem&);
/// As windows::run(). An element of y is one chain of additions per slice of whole taps of up to 512 terms (taps
/// outermost), then the bias, then what y had.
void run(Context&, const windows::Problem&, const windows::Arguments&);

bool supports_weight_gradient(Shape x, Shape weight, const Conv1dGeometry&);
int64_t weight_gradient_scratch(const Context&, Shape x, Shape weight, Shape y, const Conv1dGeometry&);
/// dweight += the sums over all rows of dy x: in parts of whole chunks of rows, and within a part in 16 sums of every
/// 16th row. The parts, and then the 16 sums, are added in order.
void weight_gradient(Context&, const float* x, Shape, const float* dy, Shape, const Conv1dGeometry&,
                     View<float> dweight, float* scratch);

}  // namespace nacre::groups
