#pragma once
// The tiled kernels of conv1d, and sums over partial results. A tiled function returns whether it launched its kernel:
// it does not for geometries, shapes and addresses that the tiles do not support.
#include "nacre/ops/conv1d.h"

namespace nacre::cuda::tile {

template <class T>
bool forward(Context&, const Conv1dForward<T>&);
/// How the forward is divided into blocks, for tests. `rows`, `columns`: of a block. `gap`: rows of the halo between
/// two items that are not computed. `input_bytes`: shared memory for the input policy's parameters.
struct Tiling {
  bool supported;
  int rows, columns, gap;
  int64_t blocks;
};
template <class T>
Tiling forward_tiling(const Context&, Shape x, Shape weight, const Conv1dGeometry&, int input_bytes = 0);
/// With reflected padding only samples [left + 1, time - 1 - right) are computed: the others also receive the gradient
/// of their reflections.
template <class T>
bool input_gradient(Context&, const Conv1dInputGradient<T>&);
/// Computes dweight alone. Returns 0 if the tiles do not support the layer, else the number of parts. One part was
/// written to dweight; of several the sums are in scratch.
template <class T>
int64_t weight_gradient(Context&, const Conv1dWeightGradient<T>&);
/// Floats of scratch that weight_gradient needs; 0 for shapes that it does not support.
template <class T>
int64_t weight_gradient_scratch(const Context&, Shape x, Shape weight, Shape y, const Conv1dGeometry&);

}  // namespace nacre::cuda::tile

namespace nacre::cuda {

/// Second stage of a sum: to[i] = (or += with `add`) the sum of `parts` parts of n floats each, in double, in their
/// order.
void add_parts(Context&, const float* partial, int64_t parts, int64_t n, float* to, bool add);
/// to[c] += the sums of x's columns. `partial` holds column_sums_scratch floats.
template <class T>
void add_column_sums(Context&, View<const T> x, float* to, float* partial);
int64_t column_sums_scratch(const Context&, Shape x);

}  // namespace nacre::cuda
