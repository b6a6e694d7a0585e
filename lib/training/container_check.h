#pragma once
// What libsndfile shortens in silence: RIFF, RF64, AIFF and AU data that ends before its declared length, and Ogg
// streams without their end.
#include <string>

namespace nacre::training {

/// Empty if nothing is wrong (or the container is none of these); else the reason. Leaves the descriptor at its start.
std::string container_fault(int fd);

}  // namespace nacre::training
