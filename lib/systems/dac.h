#pragma once
// What other systems take from DAC.
#include "nacre/systems/system.h"

namespace nacre::systems {

/// conv k7 -> blocks of (residual units, activation, strided conv) -> activation -> conv k3
Net dac_encoder(Parameters&, const CodecConfig&);
/// The published training, without the length of a segment.
Preset::Settings dac_training();

}  // namespace nacre::systems
