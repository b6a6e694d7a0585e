#pragma once
#include "nacre/context.h"
//   L1   loss = mean |estimate - target|        gradient sign(estimate - target) / count
//   L2   loss = mean (estimate - target)^2      gradient 2 (estimate - target) / count
// The mean runs over the valid samples: item b counts its first lengths[b] samples (all of them when lengths is empty;
// lengths are clamped to [0, time]). Without valid samples, loss and gradient are zero.
//
//   sign       of 0 is 0, of NaN is NaN
//   writes     loss and gradient are =; samples beyond lengths are not read, and get a gradient of zero
//   aliasing   none
//   order      summed in double, over parts of each item fixed by the shape
//   accuracy   loss and gradient within 4 u (u = 2^-24), the rounding of estimate - target included
//   cost       12 bytes per sample, 8 without gradient: bound by memory
namespace nacre {
enum class WaveformNorm : uint8_t { l1, l2 };
struct WaveformLoss {
  View<const float> estimate, target;  ///< [batch, time, 1, channels]; mono has one
  View<const int32_t> lengths{};       ///< [1, 1, 1, batch]: valid samples per item
  View<float> loss;                    ///< [1] =
  View<float> gradient{};              ///< = ; empty: skipped; zero beyond lengths
  View<float> scratch{};               ///< waveform_loss_scratch
  WaveformNorm norm = WaveformNorm::l1;
};
Shape waveform_loss_scratch(Context&, Shape estimate);
void waveform_loss(Context&, const WaveformLoss&);
}  // namespace nacre
