#pragma once
#include "nacre/context.h"
//   L1   loss = mean |estimate - target|        gradient sign(estimate - target) / count
//   L2   loss = mean (estimate - target)^2      gradient 2 (estimate - target) / count
// The mean runs over the valid samples: item b counts its first lengths[b] samples (all of them when lengths is empty).
namespace nacre {
enum class WaveformNorm : uint8_t { l1, l2 };
struct WaveformLoss {
  View<const float> estimate, target;  ///< [batch, time, 1, 1]
  View<const int32_t> lengths{};       ///< [batch]: valid samples per item
  View<float> loss;                    ///< [1] =
  View<float> gradient{};              ///< = ; empty: skipped; zero beyond lengths
  View<float> scratch{};
  WaveformNorm norm = WaveformNorm::l1;
};
Shape waveform_loss_scratch(Context&, Shape estimate);
void waveform_loss(Context&, const WaveformLoss&);
}  // namespace nacre
