#pragma once
// Discriminators: networks that tell real audio from generated audio. A discriminator is a function that records its
// steps in a plan. One discriminator may be planned several times in one plan: on real and on generated audio for its
// own training (Plan::inner, Plan::detach), and once more, frozen, for the generator's (Plan::freeze).
#include <functional>
#include <string>
#include <vector>

#include "nacre/nn/layers.h"

namespace nacre {

/// What a discriminator computes from audio [B, T, 1, 1].
struct Verdict {
  Flow logits;                   ///< higher for real audio; one value per position
  std::vector<Flow> features{};  ///< activations of all layers but the last, for feature matching
};
using Discriminator = std::function<Verdict(Plan&, Flow audio)>;

/// Layers of a discriminator that looks at the waveform itself. The defaults are those of DAC's multi-scale
/// discriminator (Kumar et al. 2023, arXiv 2306.06546), which has the shape of MelGAN's (Kumar et al. 2019, arXiv
/// 1910.06711).
struct ScaleDiscriminatorConfig {
  struct Layer {
    int64_t channels, taps, stride = 1, groups = 1;
  };
  /// Convolutions, each followed by a leaky ReLU of slope 0.1. Taps are odd, and the padding is (taps - 1) / 2.
  std::vector<Layer> layers{{16, 15},          {64, 41, 4, 4},     {256, 41, 4, 16},
                            {1024, 41, 4, 64}, {1024, 41, 4, 256}, {1024, 5}};
  int64_t last_taps = 3;  ///< of the convolution to one channel, the logits
};
/// Registers <name>.convs.<i> and <name>.conv_post in `parameters`, which must outlive the result. The audio is judged
/// at its own rate; for other scales, resample it first. Throws Error(usage) for a layer that no convolution can have.
Discriminator scale_discriminator(Parameters&, const std::string& name, const ScaleDiscriminatorConfig& = {});

}  // namespace nacre
