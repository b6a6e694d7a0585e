#pragma once
#include <array>

#include "nacre/context.h"
// Two-dimensional convolution over frames and columns, channels last, and its two gradients. Discriminators of spectra
// use it: time counts frames, width counts frequency bins.
//
//   x [batch, time, width, in]   weight [out, taps of width, taps of time, in]   y of conv2d_output()
//   at(t, k) = t stride + k dilation - left, for either axis
//   forward          y[b, t, w, o]  = bias[o] + sum_{k, j, i} weight[o, j, k, i] x[b, at(t, k), at(w, j), i]
//   input gradient   dx[b, s, v, i] = sum_{k, j, o} weight[o, j, k, i] dy[b, t, w, o]
//                                     over all at(t, k) = s and at(w, j) = v
//   weight gradient  dweight[o, j, k, i] += sum_{b, t, w} dy[b, t, w, o] x[b, at(t, k), at(w, j), i]
//                    dbias[o] += sum_{b, t, w} dy[b, t, w, o]
//
// x may be given in parts that lie side by side along the width, and the convolution may be restricted to a range of
// columns: everything outside of the range counts as padding, which is zero. So bands of a spectrum are convolved
// without being cut out, and their results are joined without being copied.
//
//   weight     taps of time are innermost, so that the products of one column read consecutive memory. In terms of
//              Shape: {.batch = out, .time = taps of width, .width = taps of time, .channels = in}
//   method     the frames that a row of outputs needs are stacked as channels, [batch, time of y, width, taps of time,
//              in], in scratch; conv1d does the rest along the width. With one tap, stride 1 and no padding in time,
//              one part and all columns, nothing is stacked. On CUDA, stacked channels that do not fill 16 bytes are
//              padded with zeros if the outputs fill them, so that the fast kernels of conv1d run
//   saved      x and weight
//   writes     y is =; dx is =, with zeros outside of the columns, or += with add_dx, which leaves those as they are;
//              dweight is += if add_dweight, else =; dbias is +=. The gradient of a part without an address is skipped
//   aliasing   no output overlaps an input or another output
//   order      that of conv1d.h with taps of time * in channels; dx then adds taps of time in ascending order of frames
//              of y. Bits depend on shape and device only
//   finite     inputs must be finite, as for conv1d
//   accuracy   that of conv1d.h; dx in bf16 is rounded once more before taps of time are added
//   cost       2 batch (time width of y) out taps in flops in each direction; stacking writes and reads taps of time /
//              stride of time times x
//   limits     CUDA: frames, the elements of a frame, and the blocks of a launch are fewer than 2^31; else it throws
//   batch 0    writes nothing but dweight, which is 0 unless add_dweight, and needs no scratch; a length below 1 throws
namespace nacre {

struct Conv2dAxis {
  int64_t stride = 1, dilation = 1;
  int64_t left = 0, right = 0;  ///< padding before and after
  bool operator==(const Conv2dAxis&) const = default;
};
struct Conv2dGeometry {
  Conv2dAxis time{}, width{};
  int64_t first_column = 0, columns = 0;  ///< columns of x that take part; columns = 0: all from first_column on
  bool operator==(const Conv2dGeometry&) const = default;
};
inline constexpr int conv2d_max_parts = 8;
/// Parts of one activation, side by side along the width. They have equal batch, time and channels. Parts beyond
/// `count` are not used.
template <class T>
struct Conv2dParts {
  std::array<View<T>, conv2d_max_parts> part{};
  int count = 1;
  /// The shape of all parts together.
  Shape shape() const {
    Shape s = part[0].shape;
    for (int i = 1; i < count; ++i) s.width += part[static_cast<size_t>(i)].shape.width;
    return s;
  }
};
/// Shape of y for x of the given shape (of all parts together).
Shape conv2d_output(Shape x, Shape weight, const Conv2dGeometry&);

template <class T>
struct Conv2dForward {
  Conv2dParts<const T> x;
  View<const T> weight;
  View<const float> bias{};
  View<T> y;
  View<float> scratch{};
  Conv2dGeometry geometry{};
};
template <class T>
struct Conv2dInputGradient {
  View<const T> dy, weight;
  Conv2dParts<T> dx;  ///< a part without an address is skipped, but its shape counts
  std::array<bool, conv2d_max_parts> add_dx{};
  View<float> scratch{};
  Conv2dGeometry geometry{};
};
template <class T>
struct Conv2dWeightGradient {
  Conv2dParts<const T> x;
  View<const T> dy;
  View<float> dweight;  ///< += with add_dweight, else =
  View<float> dbias{};  ///< +=
  View<float> scratch{};
  View<float> parts{};  ///< conv2d_weight_gradient_parts; beside scratch, see gradient_sums.h
  Conv2dGeometry geometry{};
  bool add_dweight = true;
};
/// Size of .scratch; depends on the shapes and on the context's device and number of threads. `parts` is the number of
/// parts of x.
template <class T = float>
Shape conv2d_forward_scratch(Context&, Shape x, int parts, Shape weight, const Conv2dGeometry&);
template <class T = float>
Shape conv2d_input_gradient_scratch(Context&, Shape x, int parts, Shape weight, const Conv2dGeometry&);
template <class T = float>
Shape conv2d_weight_gradient_scratch(Context&, Shape x, int parts, Shape weight, const Conv2dGeometry&);
/// `parts` of conv2d_weight_gradient: empty where the weight is padded, because its gradient is then copied at once.
template <class T = float>
Shape conv2d_weight_gradient_parts(Context&, Shape x, int parts, Shape weight, const Conv2dGeometry&);
template <class T = float>
void conv2d_forward(Context&, const Conv2dForward<T>&);
template <class T = float>
void conv2d_input_gradient(Context&, const Conv2dInputGradient<T>&);
template <class T = float>
void conv2d_weight_gradient(Context&, const Conv2dWeightGradient<T>&);
}  // namespace nacre
