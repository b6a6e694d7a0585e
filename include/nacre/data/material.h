#pragma once
// A file as a model sees it: one channel, at the model's rate, scaled so that its peak is 0.95. Training, evaluation and
// judging all read audio through here, so that they mean the same samples.
//
// The channel is the mean over all, unless they cancel each other: where the mean has less than a hundredth of the
// channels' mean power (two channels in opposite phase, correlated by less than -0.98), the loudest channel is taken, and a
// warning says so.
//
// A file is silent when it stays within silence_deviation of its mean (nacre/data/audio.h); it is not scaled.
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
  int channel = -1;     ///< that is taken; -1: the mean of all
  int64_t samples = 0;  ///< at the model's rate
  float gain = 1;       ///< from the file to what the model sees
  bool silent = false;
  bool exact_header = false;  ///< the file is whole, and as long as its header says: a seek may be trusted
  std::vector<std::string> warnings = {};
};

struct MaterialOptions {
  int sample_rate = 16000;  ///< of the model
  AudioOptions audio = {};
  /// Called after each piece that was read; may throw.
  std::function<void()> check = {};
};

using SampleSink = std::function<void(std::span<const float>)>;

/// Reads a file to its end. `samples`, if given, gets all that the model sees, or nothing where that is more than `most`:
/// without them memory does not depend on the file's length. Throws what AudioReader throws.
Material survey(const std::string& path, const MaterialOptions&, std::vector<float>* samples = nullptr,
                int64_t most = std::numeric_limits<int64_t>::max());
/// The same from the first frame of a reader, for what can be opened only once: standard input.
Material survey(AudioReader&, const MaterialOptions&, std::vector<float>* samples = nullptr,
                int64_t most = std::numeric_limits<int64_t>::max());

/// Samples [offset, offset + n) of a surveyed file, piece by piece, in memory that does not depend on n, at about the cost of
/// decoding as much where the format can seek.
/// The samples that survey gives, but for what a lossy decoder makes of starting in the middle, and for 1e-4 of full scale
/// where the resampler's filter has no exact table (a ratio of large integers). Throws Error(input) when the file is
/// shorter than it was.
void read_material(AudioReader&, const Material&, const MaterialOptions&, int64_t offset, int64_t n, const SampleSink&);
void read_material(const std::string& path, const Material&, const MaterialOptions&, int64_t offset, int64_t n,
                   const SampleSink&);
void read_material(const std::string& path, const Material&, const MaterialOptions&, int64_t offset,
                   std::span<float> to);

}  // namespace nacre::training
