#pragma once
// Encoder and decoder in the topology of DAC (Kumar et al. 2023, arXiv 2306.06546, section 3).
#include "nacre/nn/layers.h"
#include "nacre/systems/codec_config.h"

namespace nacre {

/// [B, T, 1, 1] -> [B, T / hop, 1, latent]
/// conv k7 -> blocks of (residual units, activation, strided conv) -> activation -> conv k3
class Encoder {
 public:
  Encoder(Parameters&, const CodecConfig&);
  Flow plan(Plan& p, Flow audio) const { return layers_.plan(p, audio); }

 private:
  Chain layers_;
};

/// [B, T / hop, 1, latent] -> [B, T, 1, 1], the mirror image of the encoder:
/// conv k7 -> blocks of (activation, transposed conv, residual units) -> activation -> conv k7 -> tanh
class Decoder {
 public:
  Decoder(Parameters&, const CodecConfig&);
  Flow plan(Plan& p, Flow latent) const { return layers_.plan(p, latent); }

 private:
  Chain layers_;
};

}  // namespace nacre
