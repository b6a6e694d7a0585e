#pragma once
#include <span>

#include "nacre/context.h"
// Weight normalisation (Salimans and Kingma 2016, arXiv 1602.07868) of every layer of a model in one call.
// The norm runs over all axes but the first of the stored tensor; for transposed convolutions, stored [in, taps, out],
// that is one gain per *input* channel. Weights that are not normalised are rows without a gain.
//
//   forward    w  = g v / |v|                 row by row
//   backward   dg += dw . v / |v|;   dv += g / |v| (dw - (dw . v / |v|) v / |v|)
//   no gain    w  = v;   dv += dw (NaN where v is infinite)
//   saved      v and g; the norm is recomputed
//   writes     w is =, rounded once from float when T is bf16; dv and dg are +=. Elements outside of all rows do
//              not change. Rows must not overlap or share a gain
//   zero rows  a row with a gain and |v|^2 below 2^-126 has no direction: its w is 0, and dv and dg do not change,
//              which avoids infinities and NaN. Such a row stays zero, so initial weights must not be zero
//   order      each row is summed separately, in interleaved partial sums: 64 on the CPU, where bits do not depend on
//              the number of threads; one per thread of a warp (short rows) or of a block (long rows) on CUDA
//   accuracy   w within 8 ulp of a double reference (relative, rows to 2^16 long); without a gain, float w has the
//              bits of v
//   cost       forward reads v twice (the second time from cache; once without a gain) and writes w; backward also
//              reads dw
namespace nacre {
/// One row: `length` weights from `offset` on, in v, w, dw and dv alike; `gain` is its index in g and dg, or no_gain.
struct WeightRow {
  static constexpr int64_t no_gain = -1;
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
