#pragma once
#include "nacre/ops/conv1d.h"
#include "nacre/ops/snake.h"
// Snake followed by a convolution, channels last, and its gradients. Only x is saved for the backward pass; the output
// of Snake is computed again.
//
//   u = snake(x; alpha, beta)     g = conv1d_input_gradient(dy, weight)     as in snake.h and conv1d.h
//   forward          y   = conv1d(u, weight) + bias + residual
//   input gradient   dx  = g snake'(x);   dalpha += sum of g du/dalpha;   dbeta += sum of g du/dbeta
//   weight gradient  dweight[o, k, i] += sum_{b, t} dy[b, t, o] u[b, at(t, k), i];   dbias[o] += sum_{b, t} dy[b, t, o]
//
// u is padded, with zeros or by reflection.
//   saved      x and weight
//   writes     y is =; dx is = unless add_dx, and skipped if empty; dweight is += if add_dweight, else =; dbias, dalpha
//              and dbeta are +=
//   aliasing   y may be residual; no other output may overlap an input or another output
//   order      as in snake.h and conv1d.h. Fused kernels add in an order fixed by the shape (on CUDA also by the
//              device), in float within a block and in double over blocks
//   accuracy   that of conv1d.h, with errors of u and g as in snake.h; in bf16, u and g may each be rounded once. On
//              CUDA with Precision::tf32 both factors of a product may be rounded to 10 bits
//   cost       the convolution's operations, plus those of Snake once per element and direction. Fused: x, y and dy are
//              read once, and only the results are written. Not fused: u or g is also written to scratch and read
//              again; scratch always has room for it.
//              CUDA fuses layers of one group whose channels fill 16-byte packs. Exceptions: the input gradient through
//              reflected padding; on tensor cores, the forward where Snake's parameters in shared memory would cost a
//              smaller tile or another round of blocks, or where few taps serve more than 256 output channels; on
//              tensor cores, the weight gradient where x would be activated more than twice.
//              The CPU fuses, in float and without reflected padding, forward and input gradient of one tap, of seven
//              taps with stride 1 and of kernels of two strides. It does not fuse the weight gradient: there a stored u
//              is faster
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
  View<float> parts{};  ///< snake_conv1d_input_gradient_parts; beside scratch, see gradient_sums.h
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
  View<float> parts{};  ///< snake_conv1d_weight_gradient_parts; beside scratch, see gradient_sums.h
  Conv1dGeometry geometry{};
  bool log_scale = false;
  bool add_dweight = true;
};
/// Whether forward and input gradient are fused. Always true on CUDA: the few shapes not fused there have room in
/// scratch.
template <class T = float>
bool snake_conv1d_fuses(Context&, Shape x, Shape weight, const Conv1dGeometry&);
/// Size of .scratch; depends on the shapes and on the context's device and number of threads.
template <class T = float>
Shape snake_conv1d_forward_scratch(Context&, Shape x, Shape weight, const Conv1dGeometry&);
template <class T = float>
Shape snake_conv1d_input_gradient_scratch(Context&, Shape x, Shape weight, Shape dy, const Conv1dGeometry&);
template <class T = float>
Shape snake_conv1d_weight_gradient_scratch(Context&, Shape x, Shape weight, Shape dy, const Conv1dGeometry&);
template <class T = float>
Shape snake_conv1d_input_gradient_parts(Context&, Shape x, Shape weight, Shape dy, const Conv1dGeometry&);
template <class T = float>
Shape snake_conv1d_weight_gradient_parts(Context&, Shape x, Shape weight, Shape dy, const Conv1dGeometry&);
template <class T = float>
void snake_conv1d_forward(Context&, const SnakeConv1dForward<T>&);
template <class T = float>
void snake_conv1d_input_gradient(Context&, const SnakeConv1dInputGradient<T>&);
template <class T = float>
void snake_conv1d_weight_gradient(Context&, const SnakeConv1dWeightGradient<T>&);
}  // namespace nacre
