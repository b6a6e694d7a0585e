#pragma once
// What reading and writing of audiolm-pytorch's SoundStream have in common.
#include <string_view>

namespace nacre {

/// In audiolm-pytorch, every block has so many residual units, whatever the number of its dilations.
inline constexpr size_t audiolm_units = 3;
/// The first of several groups of quantizers. Codes of this library have one group.
inline constexpr std::string_view audiolm_stages = "rq.rvqs.0.layers.";

}  // namespace nacre
