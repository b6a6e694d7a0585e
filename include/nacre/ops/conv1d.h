#pragma once
#include "nacre/context.h"
// One-dimensional convolution, channels last, and its two gradients. A transposed convolution is the same op with the
// directions exchanged: its forward is conv1d_input_gradient (with bias), its input gradient is conv1d_forward, and its
// weight gradient is conv1d_weight_gradient with x and dy exchanged.
//
//   x [batch, time, 1, in]    weight [out, taps, 1, in / groups]    y [batch, conv1d_length, 1, out]
//   at(t, k) = t stride + k dilation - left
//   forward          y[b, t, o]  = bias[o] + residual[b, t, o] + sum_{k, i} weight[o, k, i] x[b, at(t, k), i]
//   input gradient   dx[b, s, i] = bias[i] + sum_{k, o} weight[o, k, i] dy[b, t, o]   over all at(t, k) = s
//   weight gradient  dweight[o, k, i] += sum_{b, t} dy[b, t, o] x[b, at(t, k), i];   dbias[o] += sum_{b, t} dy[b, t, o]
//
// Samples outside x are zero, or reflected about the first and the last sample (Padding::reflect; left, right < time).
//   saved      x and weight
//   writes     y is =; dx is = unless add_dx; dweight is += if add_dweight, else =; dbias and dbias_of_x are +=
//   aliasing   y may be residual; no other output may overlap an input or another output
//   order      bits depend on shape and device only, not on the number of threads.
//              CPU: an element of y or dx is one chain of additions per slice of up to 512 terms (taps outermost); with
//              1 tap and no padding, one chain of all terms; with fewer than 4 outputs, one chain per vector lane.
//              Kernels of 7 taps, or of two strides, whose channels are multiples of 16: see accuracy. dweight is
//              summed in parts of rows (narrow groups of channels: each part in 16 sums of every 16th row).
//              CUDA: sums are split by shape, alignment and device only. Each element of y and dx, and of each part of
//              dweight, is one chain of additions; the parts are added in double.
//              On both, the gradient of padding that reflects a sample is a sum of its own, added to that of the sample
//   accuracy   within 4 sqrt(terms) 2^-24 of the sum of magnitudes; bf16 is rounded once from float.
//              CPU, 7 taps (stride 1) and kernels of two strides: sums of neighbouring rows are multiplied by sums of
//              taps. The sum of magnitudes of an output then includes every sample within 14 rows (times the dilation),
//              or within 3 strides, with every tap.
//              CUDA with Precision::tf32, on tensor cores: 2^-10 + 2^-22 more, because factors are rounded to 10 bits
//   finite     inputs must be finite. On CUDA padding, and the taps that complete a whole number of strides, are
//              multiplied as zeros; on the CPU a row also affects the outputs of its neighbours (see accuracy)
//   cost       2 batch length out taps in / groups flops in each direction; see docs/decisions/README.md. On CUDA
//              groups use fused multiply-adds at every precision; stride with dilation (without groups), channels that
//              do not fill 16 bytes, and groups that do not fit shared memory run on a plain kernel
//   batch 0    does nothing and needs no scratch; a length below 1 throws
namespace nacre {
enum class Padding : uint8_t { zero, reflect };

struct Conv1dGeometry {
  int64_t stride = 1, dilation = 1, groups = 1;
  int64_t left = 0, right = 0;  ///< padding; a causal convolution has all of it on the left
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
  View<const float> bias{};  ///< of a transposed convolution, whose forward pass this op is
  View<T> dx;                ///< = unless add_dx. Samples that dy does not reach (stride, output padding) are the bias
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
  View<float> parts{};  ///< conv1d_weight_gradient_parts; in place of scratch, see gradient_sums.h
  Conv1dGeometry geometry{};
  bool add_dweight = true;
};
/// Size of .scratch; depends on the shapes and on the context's device and number of threads.
template <class T = float>
Shape conv1d_forward_scratch(Context&, Shape x, Shape weight, const Conv1dGeometry&);
template <class T = float>
Shape conv1d_input_gradient_scratch(Context&, Shape dx, Shape weight, Shape dy, const Conv1dGeometry&);
template <class T = float>
Shape conv1d_weight_gradient_scratch(Context&, Shape x, Shape weight, Shape dy, const Conv1dGeometry&);
template <class T = float>
Shape conv1d_weight_gradient_parts(Context&, Shape x, Shape weight, Shape dy, const Conv1dGeometry&);
template <class T = float>
void conv1d_forward(Context&, const Conv1dForward<T>&);
template <class T = float>
void conv1d_input_gradient(Context&, const Conv1dInputGradient<T>&);
template <class T = float>
void conv1d_weight_gradient(Context&, const Conv1dWeightGradient<T>&);
}  // namespace nacre
