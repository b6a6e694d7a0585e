#pragma once
// What a file of lib/systems/ adds to the list of systems.
#include <initializer_list>
#include <vector>

#include "nacre/systems/system.h"

namespace nacre {

/// The topologies and presets of one file. Either may be empty: presets may use the topology of another file.
struct SystemFile {
  std::vector<Network> networks;
  std::vector<Preset> presets;
};

/// For a topology's check: throws Error(usage) that names the key if one of these keys of the section codec does not
/// have its default.
void expect_defaults(const CodecConfig&, std::initializer_list<const char*> keys);

}  // namespace nacre

namespace nacre::systems {

/// EnCodec's optimizers, start, schedule and batch, without the default discriminators, followed by `own` settings.
/// Other systems take them where their publications are silent or say the same.
Preset::Settings with_encodec_training(const Preset::Settings& own);

}  // namespace nacre::systems
