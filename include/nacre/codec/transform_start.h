#pragma once
// Initial values that make a codec a transform codec before its first step. Topology, tensors and names of the codec
// stay the same.
//
//   pairs       A carried signal u occupies two channels, (+u, -u). Snake adds an even function of u to both, and the
//               next layer takes half of their difference, which is u as long as both have the same alpha. They do at
//               the start. Leaky ReLU scales the result by (1 + slope) / 2; the next layer divides by that factor.
//   encoder     Strided convolutions distribute samples to channels (polyphase). The last one applies the modulated
//               lapped transform (Malvar 1990, "Lapped transforms for efficient transform/subband coding"):
//                 B[k, m] = sqrt(2 / n) sin(pi (m + 1/2) / 2n) cos(pi/n (m + 1/2 + n/2) (k + 1/2)),  n = hop bands,
//               over 2n samples. A strided layer with 2 rate taps on n / rate phases covers exactly these samples.
//   decoder     The adjoint, layer by layer. The transform is orthonormal, so the adjoint is its inverse.
//   tanh        For suitable c and a, u + c (2u - sin 2au / a) approximates atanh u. The first three residual units of
//               the decoder's last block add one such term each, computed from one pair of Snakes. The final tanh then
//               returns u.
//   units       All other residual units are identities: the gain of their second convolution is 0.
//   the rest    Channels beyond the pairs keep their random weights. They read the pairs; the pairs do not read them.
//   scale       Between the first and the last layer of each half, the signal is 8 times as large as outside (1/64 with
//               ELU and tanh, which are linear only for small signals). Directions (weight_v) of the layers that carry
//               the signal have length 16. With Snake and leaky ReLU, neither changes the computed function. Adam moves
//               a bias by the learning rate regardless of the signal's size, and it moves a direction by a fraction of
//               learning rate / length. Both factors therefore set how much one step disturbs the signal.
#include <string>

#include "nacre/nn/parameters.h"
#include "nacre/systems/codec_config.h"

namespace nacre {

struct TransformStart {
  int64_t bands = 0;    ///< number of carried bands, of hop(); fewer: the highest frequencies are missing. 0: none
  std::string refused;  ///< the reason why the codec cannot carry the transform; empty if it can
};

/// The result that transform_start() would give for this configuration.
TransformStart transform_start_of(const CodecConfig&);

/// Replaces initial values (call after Parameters::initialise). Codebooks are unchanged; they are started afterwards
/// from the new encoder's latents (TrainingStep::start_codebooks). The values are computed on the host, so every device
/// gets the same bits. Throws Error(usage) if transform_start_of() refuses the configuration.
TransformStart transform_start(Context&, Parameters&, const CodecConfig&);

}  // namespace nacre
