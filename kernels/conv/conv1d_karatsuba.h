#pragma once
// Convolutions with fewer products, by sums and differences of rows and of taps (Karatsuba's scheme, whose coefficients
// are all 1 or -1). For seven taps at stride 1 the scheme is nested three times: 26 products for 8 outputs instead of
// 56. A kernel of two strides is two taps on rows of one stride each: 3 products instead of 4. The products of a block
// of tiles are matrix products whose data stays in the second-level cache. Blocks and parts are chosen by shape alone,
// so that bits do not depend on the number of threads.
#include "nacre/ops/conv1d.h"
#include "pointwise/snake_rows.h"

namespace nacre::karatsuba {

/// Whether these loops support the forward of the layer and are the fastest for it.
bool supports(Shape x, Shape weight, Shape y, const Conv1dGeometry&);

/// With `snake`, the convolution's input is Snake of a.x, computed for the rows of a block when the block reads them.
/// Padding must then be zero.
int64_t forward_scratch(const Context&, Shape x, Shape weight, Shape y, const Conv1dGeometry&, bool snake = false);
void forward(Context&, const Conv1dForward<float>& a, float* scratch, const SnakeRows* snake = nullptr);

bool supports_input_gradient(Shape dx, Shape weight, Shape dy, const Conv1dGeometry&);
int64_t input_gradient_scratch(const Context&, Shape dx, Shape weight, Shape dy, const Conv1dGeometry&,
                               bool slope = false);
/// The number of partial sums that `slope` receives.
int64_t slope_parts(Shape dx, Shape weight, Shape dy, const Conv1dGeometry&);
/// With `slope`, the input gradient is multiplied by Snake's slope block by block, and only the shape of a.dx is used.
void input_gradient(Context&, const Conv1dInputGradient<float>& a, float* scratch, const SnakeSlope* slope = nullptr);

bool supports_weight_gradient(Shape x, Shape weight, Shape y, const Conv1dGeometry&);
int64_t weight_gradient_scratch(const Context&, Shape x, Shape weight, Shape dy, const Conv1dGeometry&);
/// a.dweight += ...; bias gradients are not computed.
void weight_gradient(Context&, const Conv1dWeightGradient<float>& a, float* scratch);

}  // namespace nacre::karatsuba
