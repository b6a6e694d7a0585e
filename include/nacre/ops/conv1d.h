#pragma once
#include "nacre/context.h"
// One-dimensional convolution, channels last, and its two gradients. A transposed convolution is the same op with the
// directions exchanged: its forward is conv1d_input_gradient (with bias), its input gradient is conv1d_forward, its
// weight gradient is conv1d_weight_gradient with the roles of x and dy exchanged.
//
//   x [batch, time, 1, in]    weight [out, taps, 1, in / groups]    y [batch, conv1d_length, 1, out]
//   at(t, k) = t stride + k dilation - left
//   forward          y[b, t, o]  = bias[o] + residual[b, t, o] + sum_{k, i} weight[o, k, i] x[b, at(t, k), i]
//   input gradient   dx[b, s, i] = bias[i] + sum_{k, o} weight[o, k, i] dy[b, t, o]   over all at(t, k) = s
//   weight gradient  dweight[o, k, i] += sum_{b, t} dy[b, t, o] x[b, at(t, k), i];   dbias[o] += sum_{b, t} dy[b, t, o]
//
// Samples outside x are zero, or reflected about the first and the last sample (Padding::reflect; left, right < time).
//   keeps      x and weight; nothing else
//   writes     y is =; dx is = unless add_dx; dweight is += unless add_dweight is off; dbias and
//              dbias_of_x are +=
//   aliasing   y may be residual; otherwise outputs overlap nothing
//   order      bits depend on shape and device alone, not on the number of threads. On the CPU an element of y and dx is
//              one chain of additions per slice of up to 512 terms (taps outermost), and one for all terms of 1 tap
//              without padding; fewer than 4 outputs take a chain per lane; 7 taps and two strides as accuracy says,
//              where channels are multiples of 16; dweight is summed in parts of rows. On CUDA all sums are cut by shape,
//              alignment and device alone: one chain of additions per element of y and dx, and per part of dweight, whose
//              parts are added in double
//   accuracy   within 4 sqrt(terms) 2^-24 of the sum of magnitudes; bf16 is rounded once from float. On the CPU, kernels of
//              7 taps (stride 1) and of two strides multiply sums of neighbouring rows by sums of taps: there a sample
//              counts for every output within 14 rows (times the dilation), or within 3 strides, and a tap for every
//              other. On CUDA under Precision::tf32, where tensor cores take the problem, 2^-10 + 2^-22 more: factors
//              are rounded to 10 bits
//   finite     data only: padding and the taps that a kernel lacks to a whole number of strides are multiplied as zeros
//              on CUDA; on the CPU rows meet their neighbours, as above
//   cost       2 batch length out taps in / groups flops in each direction; see docs/decisions/README.md. On CUDA
//              groups, stride together with dilation, and channels that do not fill 16 bytes take a plain kernel
//   batch 0    does nothing and needs no scratch; a length below 1 throws
namespace nacre {
enum class Padding : uint8_t { zero, reflect };

struct Conv1dGeometry {
  int64_t stride = 1, dilation = 1, groups = 1;
  int64_t left = 0, right = 0;  ///< padding; causal: all of it left
  Padding padding = Padding::zero;
  bool operator==(const Conv1dGeometry&) const = default;
};
/// floor((time + left + right - dilation (taps - 1) - 1) / stride) + 1.
int64_t conv1d_length(int64_t time, int64_t taps, const Conv1dGeometry&);

template <class T>
struct Conv1dForward {
  View<const T> x, weight;
  View<const float> bias{};
  View<const T> residual{};
  View<T> y;
  View<float> scratch{};
  Conv1dGeometry geometry{};
};
template <class T>
struct Conv1dInputGradient {
  View<const T> dy, weight;
  View<const float> bias{};  ///< of a transposed convolution, whose forward this is
  View<T> dx;  ///< = unless add_dx. Its time may exceed what dy reaches (stride, output padding): the rest gets bias
  View<float> scratch{};
  Conv1dGeometry geometry{};
  bool add_dx = false;
};
template <class T>
struct Conv1dWeightGradient {
  View<const T> x, dy;
  View<float> dweight;       ///< += with add_dweight, else =
  View<float> dbias{};       ///< += sum of dy over batch and time
  View<float> dbias_of_x{};  ///< += sum of x over batch and time: the bias of a transposed convolution, whose output
                             ///< gradient x is
  View<float> scratch{};
  Conv1dGeometry geometry{};
  bool add_dweight = true;
};
/// What .scratch must hold, a function of the shapes and of the context's device and number of threads.
template <class T = float>
Shape conv1d_forward_scratch(Context&, Shape x, Shape weight, const Conv1dGeometry&);
template <class T = float>
Shape conv1d_input_gradient_scratch(Context&, Shape dx, Shape weight, Shape dy, const Conv1dGeometry&);
template <class T = float>
Shape conv1d_weight_gradient_scratch(Context&, Shape x, Shape weight, Shape dy, const Conv1dGeometry&);
template <class T = float>
void conv1d_forward(Context&, const Conv1dForward<T>&);
template <class T = float>
void conv1d_input_gradient(Context&, const Conv1dInputGradient<T>&);
template <class T = float>
void conv1d_weight_gradient(Context&, const Conv1dWeightGradient<T>&);
}  // namespace nacre
