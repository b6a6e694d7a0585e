#pragma once
// Random initial values that carry the signal through a network whose layers start as PyTorch's do.
//
// PyTorch draws a convolution's weight and bias uniformly in +-1/sqrt(fan in). Such a weight has the variance
// 1 / (3 fan in), so every layer divides the variance of its input by three, and adds a bias that does not depend on
// the input. Behind the layers of an encoder, biases and the zeros in front of the first sample decide the latent. This
// start changes the convolutions of both halves:
//
//   weights     multiplied by sqrt(3): variance 1 / fan in (LeCun et al. 1998, "Efficient BackProp", section 4.6), with
//               the fan in as PyTorch counts it. With weight normalisation only the gain is multiplied: the length of a
//               direction sets how far a step of Adam turns it.
//   biases      0
//   the rest    LSTM, activations, normalisation and codebooks keep their values.
#include "nacre/nn/parameters.h"

namespace nacre {

/// Replaces initial values of the parameters of a codec (call after Parameters::initialise). Codebooks are unchanged;
/// they are started afterwards from the new encoder's latents (TrainingStep::start_codebooks). The values are computed
/// on the host, so every device gets the same bits.
void scaled_start(Context&, Parameters&);

}  // namespace nacre
