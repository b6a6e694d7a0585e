#pragma once
// Steps between audio and the layers of a discriminator: conditioning, views by period and by spectrum, and real audio
// beside generated audio. All work on activations in float32, and pass gradients on to the audio. Step names are free;
// none has parameters.
#include <string>

#include "nacre/nn/plan.h"
#include "nacre/ops/average_pool.h"
#include "nacre/ops/stft.h"

namespace nacre {

/// Audio [B, T, 1, 1] of the same shape without its mean and with a peak of 0.8 (ops/level.h): the conditioning of
/// DAC's discriminators.
Flow level(Plan&, const std::string& name, Flow audio);
/// Audio [B, T, 1, 1] as the interleaved signals of a period, [B * period, T / period + 1, 1, 1] (ops/fold.h). Signal j
/// of item b is item b * period + j. Throws Error(usage) if T is not above the period.
Flow fold(Plan&, const std::string& name, Flow audio, int64_t period);
/// Audio [B, T, 1, C] with every channel as an item of its own, [B * C, T, 1, 1]. Channel c of item b is item
/// b * C + c. Audio of one channel is returned as it is, without a step.
Flow channels_apart(Plan&, const std::string& name, Flow audio);
/// Means of windows along time (ops/average_pool.h): audio at a lower rate, for discriminators at several scales. The
/// shape is that of average_pool_output(). Throws Error(usage) for a geometry that average_pool does not have.
Flow pooled(Plan&, const std::string& name, Flow audio, const AveragePoolGeometry& = {});
/// The short-time Fourier transform of audio [B, T, 1, 1], [B, frames, window / 2 + 1, 2] with real and imaginary part
/// innermost (ops/stft.h). Throws Error(usage) for a geometry that stft does not have.
Flow spectrum(Plan&, const std::string& name, Flow audio, StftGeometry);
/// Real and generated audio as one batch [2 B, T, 1, 1], the real items first, so that a discriminator runs once for
/// both. `real` has the shape of `fake`, and its memory outlives the plan. The gradient of the second half passes to
/// `fake` if it has one.
Flow pair(Plan&, const std::string& name, View<const float> real, Flow fake);

}  // namespace nacre
