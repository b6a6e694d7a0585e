#pragma once
#include "nacre/context.h"
// Means of windows along time: what lies between the scales of a multi-scale discriminator (Kumar et al. 2019, arXiv
// 1910.06711).
//
//   window t covers the positions t stride - padding + 0 ... taps - 1 of x; those outside of x are zero
//   forward    y[b, t, w, c] = sum over window t of x[b, s, w, c] / count(t)
//   backward   dx[b, s, w, c] = sum over the windows t that cover s of dy[b, t, w, c] / count(t)
//   count(t)   the positions of window t that lie inside x; with count_padding always taps
//   saved      nothing
//   writes     y is =; dx is = unless add_dx
//   aliasing   none
//   order      forward: ascending positions, then the division; backward: dx (or 0), then the windows in ascending
//              order
//   accuracy   one rounding per addition and per division
//   cost       forward 4 (1 + 1 / stride) bytes per element of x, backward the same: bound by memory
namespace nacre {
struct AveragePoolGeometry {
  int64_t taps = 4, stride = 2;
  int64_t padding = 1;  ///< before and after; at most taps / 2, so that every window has positions inside
  bool count_padding = false;
  bool operator==(const AveragePoolGeometry&) const = default;
};
struct AveragePoolForward {
  View<const float> x;
  View<float> y;  ///< average_pool_output
  AveragePoolGeometry geometry{};
};
struct AveragePoolBackward {
  View<const float> dy;
  View<float> dx;
  AveragePoolGeometry geometry{};
  bool add_dx = false;
};
/// x with a time of (time + 2 padding - taps) / stride + 1, rounded down. Throws Error(usage) for taps or a stride
/// below 1, for a padding that is negative or above taps / 2, and for a padded signal that is shorter than taps.
Shape average_pool_output(Shape x, const AveragePoolGeometry&);
void average_pool_forward(Context&, const AveragePoolForward&);
void average_pool_backward(Context&, const AveragePoolBackward&);
}  // namespace nacre
