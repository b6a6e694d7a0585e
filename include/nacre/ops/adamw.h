#pragma once
#include "nacre/context.h"
// AdamW (Loshchilov and Hutter, arXiv 1711.05101) with a global-norm clip, over one flat block.
//
//   norm   = |grad|_2;   clip = max_norm > 0 ? min(1, max_norm / (norm + 1e-6)) : 1;   g = clip grad
//   step  += 1
//   m = beta1 m + (1 - beta1) g;   v = beta2 v + (1 - beta2) g^2
//   value -= lr (weight_decay value + (m / (1 - beta1^step)) / (sqrt(v / (1 - beta2^step)) + eps))
// If the norm is not finite, the call only stores `norm` and counts `skipped`; nothing else changes.
// ema (if given) is updated last: ema += (1 - ema_decay) (value - ema).
// Everything that changes from step to step is a device scalar, so that a captured step can be replayed.
//
//   writes     value, m, v, ema and scalars in place; grad is only read. An empty block is allowed; the step is
//              counted
//   aliasing   none
//   order      the norm is summed in double, over parts of grad fixed by its length
//   accuracy   norm within 2 u (u = 2^-24) of the true one; m and v within 4 u of the sizes of their two terms; the
//              change of value within 16 u of its size, plus one rounding of value
//   cost       32 bytes per element (4 of them for the norm), 40 with ema; bound by memory
namespace nacre {
struct AdamWScalars {
  float lr = 0;         ///< written by the host, in stream order
  float norm = 0;       ///< out: the gradient norm before the clip
  int32_t step = 0;     ///< updates done
  int32_t skipped = 0;  ///< updates left out because the norm was not finite
};
struct AdamW {
  View<float> value;
  View<const float> grad;
  View<float> m, v;  ///< zeros at the start
  View<float> ema{};
  View<AdamWScalars> scalars;  ///< [1]
  View<float> scratch{};       ///< adamw_scratch
  float beta1 = 0.5f, beta2 = 0.9f, eps = 1e-8f, weight_decay = 0.01f, max_norm = 0, ema_decay = 0.999f;
};
Shape adamw_scratch(Context&, Shape value);
void adamw(Context&, const AdamW&);
}  // namespace nacre
