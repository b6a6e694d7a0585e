#pragma once
// Opus (RFC 6716) as a baseline: a widely used codec on the same audio at the same bitrate. libsndfile writes and reads
// Ogg Opus (RFC 7845) in memory, with the encoder's highest complexity, 20 ms packets and a variable bitrate.
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "nacre/cxx20.h"

namespace nacre::training {

/// Range of bitrates that libsndfile can request from Opus, in bit/s per channel.
inline constexpr double min_opus_bitrate = 6000, max_opus_bitrate = 256000;

struct OpusCoded {
  std::vector<float> samples;  ///< as many samples as the input has, aligned with it, channels interleaved
  /// Size of the Opus packets. Ogg pages and the two headers (more than 600 bytes, 512 of them padding) are not
  /// counted, because a codec's nominal bitrate does not count its container either. They would dominate short clips.
  int64_t bytes = 0;
};

/// The reason why code_opus() cannot run (libsndfile without Opus or older than 1.0.29), or nullopt.
std::optional<std::string> opus_unavailable();

/// Encodes and decodes audio of full scale +-1 with one channel, or with two that are coded together as stereo.
/// `bitrate` is the encoder's target in bit/s for all channels, clamped to min_opus_bitrate .. max_opus_bitrate per
/// channel; `bytes` gives the actual size. Opus supports 8, 12, 16, 24 and 48 kHz. Other rates are resampled to the
/// next higher one of these (rates above 48 kHz to 48 kHz) and back. The same input gives the same output. Throws
/// Error(usage) if opus_unavailable() returns a reason, for a rate outside min_sample_rate .. max_sample_rate, for
/// other numbers of channels, for a part of a sample, and for a bitrate that is not finite.
OpusCoded code_opus(std::span<const float> interleaved, int sample_rate, double bitrate, int channels = 1);

}  // namespace nacre::training
