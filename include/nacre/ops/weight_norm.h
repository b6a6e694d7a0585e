#pragma once
#include <span>

#include "nacre/context.h"
// Weight normalisation (Salimans and Kingma 2016, arXiv 1602.07868) of every layer of a model in one call.
// The norm runs over all axes but the first of the stored tensor; for transposed convolutions, stored [in, taps, out],
// that is one gain per *input* channel.
//
//   forward    w  = g v / |v|                 row by row
//   backward   dg += dw . v / |v|;   dv += g / |v| (dw - (dw . v / |v|) v / |v|)
namespace nacre {
/// One row: `length` weights from `offset` on, in v, w, dw and dv alike; `gain` is its place in g and dg.
struct WeightRow {
  int64_t offset = 0, length = 0, gain = 0;
};
template <class T>
struct WeightNormForward {
  View<const float> v, g;
  View<const WeightRow> rows;
  View<T> w;
};
struct WeightNormBackward {
  View<const float> v, g;
  View<const WeightRow> rows;
  View<const float> dw;
  View<float> dv, dg;  ///< +=
};
template <class T = float>
void weight_norm_forward(Context&, const WeightNormForward<T>&);
void weight_norm_backward(Context&, const WeightNormBackward&);
}  // namespace nacre
