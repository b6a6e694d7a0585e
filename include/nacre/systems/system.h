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
  Net (*encoder)(Parameters&,
                 const CodecConfig&);  ///< [B, T, 1, audio_channels] -> [B, T / hop, 1, latent], rounded up
  Net (*decoder)(Parameters&, const CodecConfig&);  ///< [B, T / hop, 1, latent] -> [B, T, 1, audio_channels]
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

/// Encoder, quantizer and decoder of a configuration. Their parameters are registered in this order, which decides the
/// layout of the parameters' memory.
struct System {
  System(Parameters&, const CodecConfig&);

  Net encoder;
  Quantizer quantizer;
  Net decoder;
};

}  // namespace nacre
