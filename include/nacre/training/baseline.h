#pragma once
// Opus (RFC 6716) as a baseline: what a widely used codec makes of the same audio at the same bitrate. libsndfile writes and
// reads Ogg Opus (RFC 7845) in memory, with the encoder's highest complexity, packets of 20 ms, and a variable bitrate.
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "nacre/cxx20.h"

namespace nacre::training {

/// Bits a second that libsndfile can ask Opus for, per channel.
inline constexpr double min_opus_bitrate = 6000, max_opus_bitrate = 256000;

struct OpusCoded {
  std::vector<float> samples;  ///< as many as went in, aligned with them
  /// Of the Opus packets alone. Ogg's pages and the two headers (more than 600 bytes, of which 512 are padding) are left out,
  /// as a codec's nominal bitrate leaves out its container: short clips would be mostly headers.
  int64_t bytes = 0;
};

/// Why code_opus() cannot work here (a libsndfile that was built without Opus, or one before 1.0.29), or none.
std::optional<std::string> opus_unavailable();

/// Encodes and decodes mono audio of full scale +-1. `bitrate` (bits a second) is what the encoder aims at, clamped to
/// min_opus_bitrate .. max_opus_bitrate; what it took is in `bytes`. Opus knows 8, 12, 16, 24 and 48 kHz: other rates are
/// resampled to the next higher of these (those above 48 kHz down to it) and back. The same input gives the same output.
/// Throws Error(usage) where opus_unavailable() has a reason, for a rate outside min_sample_rate .. max_sample_rate, and for
/// a bitrate that is not finite.
OpusCoded code_opus(std::span<const float> mono, int sample_rate, double bitrate);

}  // namespace nacre::training
