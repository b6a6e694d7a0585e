#pragma once
#include "nacre/context.h"
// AdamW (Loshchilov and Hutter, arXiv 1711.05101) with a global-norm clip, over one flat block.
//
//   norm   = |grad|_2;   clip = max_norm > 0 ? min(1, max_norm / (norm + 1e-6)) : 1;   g = clip grad
//   step  += 1
//   m = beta1 m + (1 - beta1) g;   v = beta2 v + (1 - beta2) g^2
//   value -= lr (weight_decay value + (m / (1 - beta1^step)) / (sqrt(v / (1 - beta2^step)) + eps))
// A non-finite norm makes the whole call a no-op, except that `skipped` counts it.
// ema (if given) follows: ema += (1 - ema_decay) (value - ema).
// Everything that changes from step to step is a device scalar, so that a captured step can be replayed.
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
  View<float> m, v;
  View<float> ema{};
  View<AdamWScalars> scalars;  ///< [1]
  View<float> scratch{};
  float beta1 = 0.5f, beta2 = 0.9f, eps = 1e-8f, weight_decay = 0.01f, max_norm = 0, ema_decay = 0.999f;
};
Shape adamw_scratch(Context&, Shape value);
void adamw(Context&, const AdamW&);
}  // namespace nacre
