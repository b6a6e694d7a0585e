#pragma once
#include "nacre/context.h"
// Splits signals into the interleaved signals of a period: the view of a multi-period discriminator (Kong et al. 2020,
// arXiv 2010.05646).
//
//   n = period - time mod period samples are appended by reflection (a whole period when time is a multiple of it, as
//   in the published code of DAC); x' is the longer signal. Without `extend`, time is a multiple of the period and x'
//   is x: interleaved channels are taken apart
//   forward    y[b period + j, l] = x'[b, l period + j]
//   backward   dx[b, t] = the sum of dy at all positions that read x[b, t]: at t, and in the reflection
//   The result is batch * period signals, so a convolution with a kernel of (taps, 1) over [time / period, period] is
//   one conv1d over time / period with more items.
//   saved      nothing
//   writes     y is =; dx is = unless add_dx
//   aliasing   none
//   order      the position itself, then its reflection
//   accuracy   forward exact; backward one rounding per addition
//   cost       8 bytes per sample and direction: bound by memory
namespace nacre {
struct FoldForward {
  View<const float> x;  ///< [batch, time, 1, 1]; time > period if extended
  View<float> y;        ///< fold_output
  int64_t period = 1;
  bool extend = true;
};
struct FoldBackward {
  View<const float> dy;
  View<float> dx;
  int64_t period = 1;
  bool add_dx = false;
  bool extend = true;
};
/// [batch * period, time / period + 1, 1, 1], rounded down; without `extend` [batch * period, time / period, 1, 1].
/// Throws Error(usage) if time is not above the period, or without `extend` not a multiple of it.
Shape fold_output(Shape x, int64_t period, bool extend = true);
void fold_forward(Context&, const FoldForward&);
void fold_backward(Context&, const FoldBackward&);
}  // namespace nacre
