#pragma once
// What a file of lib/systems/ adds to the list of systems.
#include <vector>

#include "nacre/systems/system.h"

namespace nacre {

/// The topologies and presets of one file. Either may be empty: presets may use the topology of another file.
struct SystemFile {
  std::vector<Network> networks;
  std::vector<Preset> presets;
};

}  // namespace nacre
