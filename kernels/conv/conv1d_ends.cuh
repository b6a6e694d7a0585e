#pragma once
// The ends of a codec: convolutions with one channel on one side, seven taps, stride 1. Each function looks at the
// problem and returns false if it is not such a one; then nothing was done.
#include "nacre/ops/snake_conv1d.h"

namespace nacre::cuda {

template <class T>
bool conv1d_ends_forward(Context&, const Conv1dForward<T>&);
template <class T>
bool conv1d_ends_input_gradient(Context&, const Conv1dInputGradient<T>&);
/// .scratch must hold conv1d_ends_weight_gradient_scratch floats; 0 for problems that it does not take.
template <class T>
int64_t conv1d_ends_weight_gradient_scratch(Shape x, Shape weight, Shape dy, const Conv1dGeometry&);
template <class T>
bool conv1d_ends_weight_gradient(Context&, const Conv1dWeightGradient<T>&);

/// The same behind Snake, of the last layer (one output channel).
template <class T>
bool snake_conv1d_ends_forward(Context&, const SnakeConv1dForward<T>&);
template <class T>
int64_t snake_conv1d_ends_input_gradient_scratch(Shape x, Shape weight, Shape dy, const Conv1dGeometry&);
template <class T>
bool snake_conv1d_ends_input_gradient(Context&, const SnakeConv1dInputGradient<T>&);
template <class T>
bool snake_conv1d_ends_weight_gradient(Context&, const SnakeConv1dWeightGradient<T>&);

}  // namespace nacre::cuda
