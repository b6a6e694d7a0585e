#pragma once
// Sums of the columns of a matrix, for the gradients of biases. The shape fixes the order of summation.
#include "nacre/context.h"

namespace nacre::conv {

int64_t column_sums_scratch(Shape x);
/// sums += the sum of x over its rows.
template <class T>
void add_column_sums(Context&, View<const T> x, View<float> sums, float* scratch);

}  // namespace nacre::conv
