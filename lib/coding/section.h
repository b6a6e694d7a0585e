#pragma once
// Which frames and samples the decoding of a part of a stream needs.
#include <cstdint>
#include <limits>
#include <string>

#include "nacre/coding/codec_files.h"
#include "nacre/systems/codec_config.h"

namespace nacre::training {

/// Ranges include their first number and not their end. The end is `open` if it is that of the stream.
struct Section {
  static constexpr int64_t open = std::numeric_limits<int64_t>::max();

  int64_t first = 0, end = open;              // samples of the output
  int64_t model_first = 0, model_end = open;  // samples at the model's rate that are resampled
  int64_t resampled_first = 0;                // the output sample at the time of model_first
  int64_t frame_first = 0, frame_end = open;  // frames that are decoded
  int64_t frames_read = open;                 // frames behind which the stream need not be read
};

/// DecodeOptions::from and to. The samples are those of the whole stream: decoding begins early by the decoder's
/// context and, if the rates differ, by the reach of the resampler, at a sample where the grids of both rates meet. Of
/// a segmented codec, whole segments are decoded. Another recurrent codec is decoded from the first frame, another one
/// that needs the whole signal from the first to the last. Throws Error(usage) if the section is empty.
Section section_of(const CodecConfig&, const StreamHeader&, int rate, const DecodeOptions&);

/// Throws Error(usage) if a stream of `samples` output samples does not hold the section.
void expect_within(const Section&, const DecodeOptions&, int64_t samples, int rate, const std::string& name);

}  // namespace nacre::training
