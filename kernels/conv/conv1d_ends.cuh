#pragma once
// Convolutions with one channel on one side, seven taps and stride 1: the first and the last layer of a codec. Each
// function returns whether it launched its kernels: it does nothing and returns false for other layers.
#include "nacre/ops/snake_conv1d.h"

namespace nacre::cuda {

template <class T>
bool conv1d_ends_forward(Context&, const Conv1dForward<T>&);
template <class T>
bool conv1d_ends_input_gradient(Context&, const Conv1dInputGradient<T>&);
/// Floats of scratch that conv1d_ends_weight_gradient needs; 0 for layers that it does not support.
template <class T>
int64_t conv1d_ends_weight_gradient_scratch(Shape x, Shape weight, Shape dy, const Conv1dGeometry&);
template <class T>
bool conv1d_ends_weight_gradient(Context&, const Conv1dWeightGradient<T>&);

/// The same with Snake in front of the convolution, for the last layer (one output channel).
template <class T>
bool snake_conv1d_ends_forward(Context&, const SnakeConv1dForward<T>&);
template <class T>
int64_t snake_conv1d_ends_input_gradient_scratch(Shape x, Shape weight, Shape dy, const Conv1dGeometry&);
template <class T>
bool snake_conv1d_ends_input_gradient(Context&, const SnakeConv1dInputGradient<T>&);
template <class T>
bool snake_conv1d_ends_weight_gradient(Context&, const SnakeConv1dWeightGradient<T>&);

}  // namespace nacre::cuda
