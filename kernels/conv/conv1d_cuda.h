#pragma once
// The tiled rungs of conv1d. Each function says whether it took the work; it declines geometries and addresses that the
// tiles do not fit.
#include "nacre/ops/conv1d.h"

namespace nacre::cuda::tile {

template <class T>
bool forward(Context&, const Conv1dForward<T>&);
/// How the forward is cut, for tests: rows and columns of a block, how many blocks, and the rows of halo between two
/// items that are not among the result's. With `input_bytes` of shared memory for what is done to x on the way.
struct Cut {
  bool fits;
  int rows, columns, gap;
  int64_t blocks;
};
template <class T>
Cut forward_cut(const Context&, Shape x, Shape weight, const Conv1dGeometry&, int input_bytes = 0);
/// With reflected padding only samples [left + 1, time - 1 - right): the others also receive what was reflected.
template <class T>
bool input_gradient(Context&, const Conv1dInputGradient<T>&);
/// dweight only: 0 when declined, else how many parts, whose sums are in scratch; one part has gone to dweight.
template <class T>
int64_t weight_gradient(Context&, const Conv1dWeightGradient<T>&);
/// Floats that weight_gradient needs, were it to take the shape.
template <class T>
int64_t weight_gradient_scratch(const Context&, Shape x, Shape weight, Shape y, const Conv1dGeometry&);

}  // namespace nacre::cuda::tile

namespace nacre::cuda {

/// Second stages: to[i] = (or += with `add`) the sum of `parts` parts of n floats each, added in double in their order.
void add_parts(Context&, const float* partial, int64_t parts, int64_t n, float* to, bool add);
/// to[c] += the sums of x's columns, by way of `partial`.
template <class T>
void add_column_sums(Context&, View<const T> x, float* to, float* partial);
/// Floats of `partial`.
int64_t column_sums_scratch(const Context&, Shape x);

}  // namespace nacre::cuda
