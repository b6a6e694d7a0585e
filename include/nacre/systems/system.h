#pragma once
// Systems: encoder, quantizer and decoder, chosen by a configuration. A system is one file in lib/systems/ with its
// topology and its presets, and one word in lib/systems/list.cpp.
#include <string>
#include <utility>
#include <vector>

#include "nacre/nn/layers.h"
#include "nacre/systems/codec_config.h"
#include "nacre/systems/quantizer.h"

namespace nacre {

/// A topology, which the key codec.network chooses by name. Each function registers the parameters of its half and
/// returns it. The names of the parameters begin with "encoder." and "decoder.".
struct Network {
  std::string name;
  /// [B, T, 1, audio_channels] -> [B, P, 1, latent]. P is the number of positions: the frames, T / hop rounded up, times
  /// CodecConfig::positions_per_frame().
  Net (*encoder)(Parameters&, const CodecConfig&);
  Net (*decoder)(Parameters&, const CodecConfig&);  ///< [B, P, 1, latent] -> [B, T, 1, audio_channels]
  /// Throws Error(usage) that names the key if the topology cannot be built from the configuration. Null: it always
  /// can.
  void (*check)(const CodecConfig&) = nullptr;
};

/// A configuration with a name.
struct Preset {
  std::string name;
  CodecConfig codec;
  /// Keys as "section.key" and values as JSON, for the sections of a RunConfig besides codec. All other keys keep their
  /// defaults.
  using Settings = std::vector<std::pair<std::string, std::string>>;
  Settings settings;
};

/// All topologies and all presets, in the order of lib/systems/list.cpp.
const std::vector<Network>& networks();
const std::vector<Preset>& presets();
/// Throws Error(usage) that lists the names.
const Preset& preset(const std::string& name);

/// One half of the topology `network` of a configuration. Throws Error(usage) that lists the topologies if there is no
/// such one.
Net encoder_of(Parameters&, const CodecConfig&);
Net decoder_of(Parameters&, const CodecConfig&);
/// The halves with what a quantizer with two rates adds in front of the codes and behind them: the encoder down to the
/// rate of its long-term codes (Quantized::late), and the decoder from the sum of both parts of the latent. With one
/// rate, encoder_of() and decoder_of().
Net coder_of(Parameters&, const CodecConfig&);
Net synthesis_of(Parameters&, const CodecConfig&);

/// Encoder, quantizer and decoder of a configuration. Their parameters are registered in this order, which decides the
/// layout of the parameters' memory.
struct System {
  System(Parameters&, const CodecConfig&);

  Net encoder;
  Quantizer quantizer;
  Net decoder;
};

}  // namespace nacre
