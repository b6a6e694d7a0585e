#pragma once
#include "nacre/context.h"
// The level of audio per item, and the scaling of items by it: EnCodec's normalisation of 48 kHz segments (Defossez et
// al. 2022, arXiv 2210.13438, published code).
//
//   rms_scale     m[b, t] = mean over channels of x[b, t, c];  scale[b] = eps + sqrt(mean over t < lengths[b] of m^2)
//   scale_items   y[b, t, c] = x[b, t, c] scale[b], or x[b, t, c] / scale[b] with `divide`
//   backward      of scale_items with respect to x: scale_items of dy. The scale is a property of the input audio and
//                 has no gradient
//   writes        scale is =; y is = unless add, then +=. An item of length 0 has the scale eps
//   aliasing      y may be x
//   order         rms_scale: m in double; sums of squares in double, over parts fixed by the shape
//   accuracy      u = 2^-24. scale within 2 u of itself; y within u |y| of the exact quotient or product of the stored
//                 scale. A NaN or an infinity within the length makes its item's scale NaN or infinite
//   cost          rms_scale reads x once; scale_items reads x and writes y (add: reads y): bound by memory
namespace nacre {
struct RmsScale {
  View<const float> x;            ///< [batch, time, 1, channels], time at least 1, channels 1 to 64
  View<const int32_t> lengths{};  ///< [1, 1, 1, batch]: samples of each item, 0 to time; empty: all
  View<float> scale;              ///< [1, 1, 1, batch] =
  View<float> scratch{};          ///< rms_scale_scratch
  float eps = 1e-8f;
};
struct ScaleItems {
  View<const float> x;      ///< [batch, time, width, channels]
  View<const float> scale;  ///< [1, 1, 1, batch]
  View<float> y;            ///< the shape of x
  bool divide = false, add = false;
};
Shape rms_scale_scratch(Context&, Shape x);
void rms_scale(Context&, const RmsScale&);
void scale_items(Context&, const ScaleItems&);
}  // namespace nacre
