#pragma once
// A file as the model sees it: one or two channels at the model's rate, scaled to a peak of 0.95. Training, evaluation
// and scoring all read audio through these functions, so that they use the same samples.
//
// One channel is the mean of all channels, unless they cancel each other. They cancel if the mean has less than a
// hundredth of the channels' mean power (two channels of opposite phase with a correlation below -0.98). The loudest
// channel is then used, with a warning.
//
// Two channels are those of a stereo file. The channel of a mono file is taken twice. Of a file with more channels,
// both are the one channel described above, with a warning. Both channels have one gain.
//
// A file is silent if each of its channels stays within silence_deviation of its mean (nacre/data/audio.h). A silent
// file is not scaled.
#include <cstdint>
#include <functional>
#include <limits>
#include <span>
#include <string>
#include <vector>

#include "nacre/data/audio.h"

namespace nacre::training {

struct Material {
  int64_t frames = 0;   ///< in the file
  int sample_rate = 0;  ///< in the file
  int channels = 0;     ///< in the file
  int channel = -1;     ///< the channel used; -1: the mean of all channels, or both channels of a stereo file
  int64_t samples = 0;  ///< per channel, at the model's rate
  float gain = 1;       ///< factor from the file's samples to the model's
  bool silent = false;
  bool exact_header = false;  ///< the file is whole and as long as its header says: seeking is reliable
  std::vector<std::string> warnings = {};
};

struct MaterialOptions {
  int sample_rate = 16000;  ///< of the model, Hz
  int channels = 1;         ///< of the model, 1 or 2
  AudioOptions audio = {};
  /// Called after each piece that was read; may throw.
  std::function<void()> check = {};
};

/// Receives samples, the model's channels interleaved. Numbers of samples and offsets below are per channel.
using SampleSink = std::function<void(std::span<const float>)>;

/// Reads a file to its end. `samples`, if given, receives all samples that the model sees, or nothing if there are more
/// than `most`. Without `samples`, memory use does not depend on the file's length. Throws what AudioReader throws.
Material survey(const std::string& path, const MaterialOptions&, std::vector<float>* samples = nullptr,
                int64_t most = std::numeric_limits<int64_t>::max());
/// The same from the first frame of a reader, for input that can be opened only once (standard input).
Material survey(AudioReader&, const MaterialOptions&, std::vector<float>* samples = nullptr,
                int64_t most = std::numeric_limits<int64_t>::max());

/// Delivers samples [offset, offset + n) of a surveyed file piece by piece, in memory that does not depend on n. Where
/// the format can seek, the cost is about that of decoding n samples. The samples equal those of survey(), with two
/// exceptions: a lossy decoder that starts in the middle may give different samples, and a resampler whose filter has
/// no exact table (a ratio of large integers) may differ by 1e-4 of full scale. Throws Error(input) if the file has
/// become shorter or has other channels or another rate.
void read_material(AudioReader&, const Material&, const MaterialOptions&, int64_t offset, int64_t n, const SampleSink&);
void read_material(const std::string& path, const Material&, const MaterialOptions&, int64_t offset, int64_t n,
                   const SampleSink&);
void read_material(const std::string& path, const Material&, const MaterialOptions&, int64_t offset,
                   std::span<float> to);

}  // namespace nacre::training
