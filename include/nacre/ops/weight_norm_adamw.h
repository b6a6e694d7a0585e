#pragma once
#include "nacre/ops/adamw.h"
#include "nacre/ops/weight_norm.h"
// The end of a training step in one pass over the rows of all weights: the gradient of direction and gain from that of
// the weight, AdamW with the global-norm clip for every parameter, and the new weight. A row without a gain is its own
// direction (weight_norm.h).
//
//   equals     weight_norm_backward, adamw and weight_norm_forward in sequence, where the gradients of directions and
//              gains start as zero
//   block      value, m, v, ema and grad are flat: `directions` elements, then `gains` elements, then the rest. Rows
//              lie within the directions; elements there that no row covers are padding and must be zero
//   reads      dw for the rows; grad only for the rest
//   writes     value, m, v, ema and scalars as adamw does; w (rounded once from float when T is bf16). grad of
//              directions and gains is undefined afterwards
//   skipped    if the norm is not finite, as in adamw; w does not change
//   zero rows  as in weight_norm.h
//   order      fixed by the shape; the norm is summed in double
//   accuracy   that of the three ops; norm within 2 u
//   cost       CUDA: 8 bytes per weight for the rows' norms (also for rows without a gain), then 32 (28 when w is bf16,
//              8 more with ema), against 60 for the three ops. The CPU runs the three ops
namespace nacre {
template <class T>
struct WeightNormAdamW {
  AdamW adamw;  ///< of the whole block; its scratch is weight_norm_adamw_scratch
  int64_t directions = 0, gains = 0;
  View<const WeightRow> rows;
  View<const float> dw;  ///< [directions]
  View<T> w;             ///< [directions] =
};
Shape weight_norm_adamw_scratch(Context&, Shape value, int64_t directions, int64_t gains, int64_t rows);
template <class T = float>
void weight_norm_adamw(Context&, const WeightNormAdamW<T>&);
}  // namespace nacre
