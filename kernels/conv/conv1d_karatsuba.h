#pragma once
// Convolutions by fewer products than their formula has: sums and differences of rows and of taps (Karatsuba's scheme,
// all of whose coefficients are 1 and -1). Seven taps of stride 1 are nested three times: 26 products for 8 outputs
// instead of 56. A kernel of two strides is two taps on rows of a stride each: 3 products instead of 4. The products of
// a block of tiles are matrix products that stay in the second-level cache. Blocks and parts are cut by shape alone, so
// that bits do not depend on the number of threads.
#include "nacre/ops/conv1d.h"
#include "pointwise/snake_rows.h"

namespace nacre::karatsuba {

/// Forward.
bool takes(Shape x, Shape weight, Shape y, const Conv1dGeometry&);

/// With `snake`, x of the convolution is Snake of a.x, made for the rows of a block when the block needs them. Padding
/// must be zero then.
int64_t forward_scratch(const Context&, Shape x, Shape weight, Shape y, const Conv1dGeometry&, bool snake = false);
void forward(Context&, const Conv1dForward<float>& a, float* scratch, const SnakeRows* snake = nullptr);

bool takes_input_gradient(Shape dx, Shape weight, Shape dy, const Conv1dGeometry&);
int64_t input_gradient_scratch(const Context&, Shape dx, Shape weight, Shape dy, const Conv1dGeometry&,
                               bool slope = false);
/// How many partials `slope` receives.
int64_t slope_parts(Shape dx, Shape weight, Shape dy, const Conv1dGeometry&);
/// With `slope`, a.dx is what Snake's slope is multiplied with, block by block: only its shape is looked at.
void input_gradient(Context&, const Conv1dInputGradient<float>& a, float* scratch, const SnakeSlope* slope = nullptr);

bool takes_weight_gradient(Shape x, Shape weight, Shape y, const Conv1dGeometry&);
int64_t weight_gradient_scratch(const Context&, Shape x, Shape weight, Shape dy, const Conv1dGeometry&);
/// a.dweight += ...; biases are not looked at.
void weight_gradient(Context&, const Conv1dWeightGradient<float>& a, float* scratch);

}  // namespace nacre::karatsuba
