#pragma once
// The header of the example op, as it would be in include/nacre/ops/scale.h.
// [op contract]
#include "nacre/context.h"
// One factor per channel (LayerScale: Touvron et al. 2021, arXiv 2103.17239, section 2).
//
//   forward    y  = factor x
//   backward   dx = factor dy
//              dfactor = sum over batch, time and width of dy x
//   saved      x
//   writes     dx is = unless add_dx; dfactor is +=; an empty output is skipped
//   aliasing   y may be x if no gradient is needed; dx may be dy
//   order      dfactor in double, over the rows in order; on CUDA 256 sums of every 256th row, then their sum
//   accuracy   one rounding; with add_dx one more
//   cost       forward 8 bytes per element, backward 20: bound by memory
namespace nacre {
template <class T>
struct ScaleForward {
  View<const T> x;
  View<const float> factor;  ///< [1, 1, 1, channels]
  View<T> y;
};
template <class T>
struct ScaleBackward {
  View<const T> x;
  View<const float> factor;
  View<const T> dy;
  View<T> dx{};           ///< = unless add_dx; empty: skipped
  View<float> dfactor{};  ///< += ; empty: skipped
  bool add_dx = false;
};
template <class T = float>
void scale_forward(Context&, const ScaleForward<T>&);
template <class T = float>
void scale_backward(Context&, const ScaleBackward<T>&);
}  // namespace nacre
// [/op contract]
