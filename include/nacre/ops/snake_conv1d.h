#pragma once
#include "nacre/ops/conv1d.h"
#include "nacre/ops/snake.h"
// Snake followed by a convolution, channels last, and its gradients, for layers that keep x alone: what Snake makes of
// it is not a tensor that anybody stores between the passes.
//
//   u = snake(x; alpha, beta)     g = conv1d_input_gradient(dy, weight)     as in snake.h and conv1d.h
//   forward          y   = conv1d(u, weight) + bias + residual
//   input gradient   dx  = g snake'(x);   dalpha += sum of g du/dalpha;   dbeta += sum of g du/dbeta
//   weight gradient  dweight[o, k, i] += sum_{b, t} dy[b, t, o] u[b, at(t, k), i];   dbias[o] += sum_{b, t} dy[b, t, o]
//
// Padding is that of u: zero, or reflected.
//   keeps      x and weight; nothing else
//   writes     y is =; dx is = unless add_dx, and an empty one is skipped; dweight, dbias, dalpha and dbeta are +=
//   aliasing   y may be residual; otherwise outputs overlap nothing
//   order      as in snake.h and conv1d.h; fused kernels add in an order fixed by the shape (on CUDA and the device),
//              floats within a block, doubles over blocks
//   accuracy   of conv1d.h, with the u and g above off as snake.h says; in bf16 each of the two may be rounded once. On
//              CUDA with Precision::tf32 both factors of a product may be rounded to 10 bits
//   cost       the convolution's operations, and those of Snake once per element and direction. Fused, x, y and dy are
//              read once and nothing else is written; what is not fused also writes and reads u or g in scratch, which
//              always has room for that. On CUDA fused are layers whose channels fill 16-byte packs and of one group;
//              not the forward to more than 256 channels on tensor cores, nor the input gradient through reflected
//              padding, nor, on tensor cores, the weight gradient of wide strided layers. On the CPU, in float: forward
//              and input gradient of one tap, of seven taps of stride 1 and of kernels of two strides, without
//              reflected padding; never the weight gradient, for which it pays to keep u
//   batch 0    does nothing and needs no scratch; a length below 1 throws
namespace nacre {
template <class T>
struct SnakeConv1dForward {
  View<const T> x;
  View<const float> alpha;   ///< [1, 1, 1, in]
  View<const float> beta{};  ///< the same; empty: plain Snake
  View<const T> weight;
  View<const float> bias{};
  View<const T> residual{};
  View<T> y;
  View<float> scratch{};
  Conv1dGeometry geometry{};
  bool log_scale = false;
};
template <class T>
struct SnakeConv1dInputGradient {
  View<const T> x;
  View<const float> alpha;
  View<const float> beta{};
  View<const T> dy, weight;
  View<T> dx{};          ///< = unless add_dx; empty: skipped
  View<float> dalpha{};  ///< += ; empty: skipped
  View<float> dbeta{};   ///< += ; empty: skipped
  View<float> scratch{};
  Conv1dGeometry geometry{};
  bool log_scale = false, add_dx = false;
};
template <class T>
struct SnakeConv1dWeightGradient {
  View<const T> x;
  View<const float> alpha;
  View<const float> beta{};
  View<const T> dy;
  View<float> dweight;  ///< += with add_dweight, else =
  View<float> dbias{};  ///< +=
  View<float> scratch{};
  Conv1dGeometry geometry{};
  bool log_scale = false;
  bool add_dweight = true;
};
/// Whether forward and input gradient are fused: always true on CUDA, whose few exceptions keep their scratch.
template <class T = float>
bool snake_conv1d_fuses(Context&, Shape x, Shape weight, const Conv1dGeometry&);
/// What .scratch must hold, a function of the shapes and of the context's device and number of threads.
template <class T = float>
Shape snake_conv1d_forward_scratch(Context&, Shape x, Shape weight, const Conv1dGeometry&);
template <class T = float>
Shape snake_conv1d_input_gradient_scratch(Context&, Shape x, Shape weight, Shape dy, const Conv1dGeometry&);
template <class T = float>
Shape snake_conv1d_weight_gradient_scratch(Context&, Shape x, Shape weight, Shape dy, const Conv1dGeometry&);
template <class T = float>
void snake_conv1d_forward(Context&, const SnakeConv1dForward<T>&);
template <class T = float>
void snake_conv1d_input_gradient(Context&, const SnakeConv1dInputGradient<T>&);
template <class T = float>
void snake_conv1d_weight_gradient(Context&, const SnakeConv1dWeightGradient<T>&);
}  // namespace nacre
