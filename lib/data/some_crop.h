#pragma once
// Reading of a random crop although files may vanish.
#include <span>
#include <vector>

#include "nacre/data/sampler.h"

namespace nacre::training {

/// Reads the crop of the first draw whose file can be read, to the beginning of `to`. Files that cannot be read are
/// added to `lost`. Throws Error(io) if a hundred draws in a row meet such files.
Crop read_some_crop(const Dataset&, const CropSampler&, int64_t step, int64_t index, std::span<float> to,
                    std::vector<BadFile>& lost);

}  // namespace nacre::training
