#pragma once
// Checks of audio that AudioReader and LiveReader share. `name` is that of the file in messages.
#include <cstdint>
#include <span>
#include <string>

#include "nacre/data/audio.h"

namespace nacre::training {

/// Throws Error(input): "NAME: REASON".
[[noreturn]] void bad(const std::string& name, const std::string& reason);
/// Throws for rates and channels outside of the limits, and for a header that declares no frames.
void expect_plausible(const AudioInfo&, const std::string& name);
/// Throws at the first sample that is not finite or too large. `position` is the frame of x[0].
void expect_samples(std::span<const float> x, int channels, int64_t position, const std::string& name);
/// The message about a file with fewer frames than its header declares.
std::string fewer_frames(int64_t declared, int64_t there);

}  // namespace nacre::training
