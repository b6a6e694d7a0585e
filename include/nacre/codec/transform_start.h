#pragma once
// A start for training: initial values with which a codec of the same topology, the same tensors and names is a
// transform codec before its first step.
//
//   pairs       a carried signal u lies in two channels, (+u, -u). Snake adds an even function of u to both, and the
//               next layer takes half of their difference: what arrives is u, as long as both have the same alpha, which
//               they have at the start. Leaky ReLU leaves (1 + slope) / 2 of it, which the next layer divides by.
//   encoder     strided convolutions deal out samples to channels (polyphase), and the last one applies the modulated
//               lapped transform (Malvar 1990, "Lapped transforms for efficient transform/subband coding"):
//                 B[k, m] = sqrt(2 / n) sin(pi (m + 1/2) / 2n) cos(pi/n (m + 1/2 + n/2) (k + 1/2)),  n = hop bands,
//                 2n samples. A strided layer with 2 rate taps on n / rate phases sees exactly these.
//   decoder     the adjoint, layer by layer. The transform is orthonormal, so this is its inverse.
//   tanh        u + c (2u - sin 2au / a) comes near atanh u where c and a are chosen for it. The first three
//               residual units of the decoder's last block add one such term each, from one pair of Snakes, so that the
//               final tanh gives u back.
//   units       all others are identities: the gain of their second convolution is 0.
//   the rest    channels beyond the pairs keep their random weights. They read the pairs; the pairs do not read them.
//   size        the signal is 8 times as large between the first and the last layer of each half as outside (1/64 with
//               ELU and tanh, which are linear only for small signals), and directions (weight_v) of the layers on its
//               way are 16 long. With Snake and leaky ReLU neither changes what is computed. Adam moves a bias by the learning rate however small the signal is, and a direction by
//               learning rate / length of itself: both set how far one step throws the signal.
#include <string>

#include "nacre/codec/codec_config.h"
#include "nacre/nn/parameters.h"

namespace nacre {

struct TransformStart {
  int64_t bands = 0;    ///< of hop() that are carried; fewer mean that the highest frequencies are missing. 0: none
  std::string refused;  ///< why the codec cannot carry the transform at all, or empty
};

/// What transform_start() would do with such a codec.
TransformStart transform_start_of(const CodecConfig&);

/// Replaces initial values (Parameters::initialise). Codebooks stay as they are: they start from the latents that the
/// encoder then gives (TrainingStep::start_codebooks). The values are computed on the host: every device gets the same
/// bits. Throws Error(usage) where transform_start_of() refuses.
TransformStart transform_start(Context&, Parameters&, const CodecConfig&);

}  // namespace nacre
