#pragma once
// Noisy segments for training, as for SoundStream (arXiv 2107.03312, section III.F): speech with noise of a random gain
// as the input, and as the target either the clean speech or the mixture.
//
// A gain is the peak of the noise relative to the peak of the speech, both taken over the samples that are mixed. The
// published mixtures are built from peak-normalised crops, which gives the same ratios.
#include <cstdint>
#include <span>
#include <vector>

#include "nacre/data/dataset.h"
#include "nacre/data/sampler.h"

namespace nacre::training {

struct NoiseOptions {
  double share = 0.5;                          ///< of the segments that get noise
  double clean_target = 1;                     ///< of the segments with the clean speech as their target
  double lowest_gain = -30, highest_gain = 0;  ///< dB
};

/// Adds noise to speech, both with all channels interleaved. `gain` is in dB. Noise that is shorter is repeated. Speech
/// or noise of zeros gives a mixture without noise. A mixture whose peak is above 1 is scaled to a peak of 1, and the
/// speech with it. Throws Error(usage) if the lengths of speech and mixture differ, or if there is speech and no noise.
void mix_noise(std::span<const float> noise, double gain, std::span<float> speech, std::span<float> mixture);

/// Draws the noise of every segment and mixes it in. All draws are pure functions of (seed, step, index). They are
/// independent of the speech's crops with the same seed. May be used from any number of threads.
class NoiseMixer {
 public:
  struct Draw {
    bool noisy = false;         ///< the input has noise
    bool clean_target = false;  ///< the target is the clean speech
    double gain = 0;            ///< dB; has a value whether there is noise or not
    bool operator==(const Draw&) const = default;
  };

  /// Noise comes from the training part of the dataset, in crops of up to `segment` samples. The dataset must outlive
  /// the mixer. Throws Error(usage) for shares outside of 0 to 1, and for gains that are not finite or in the wrong
  /// order.
  NoiseMixer(const Dataset& noise, int64_t segment, int64_t batch, uint64_t seed, const NoiseOptions&);

  Draw at(int64_t step, int64_t index) const;
  /// The noise of a segment, if it gets any.
  Crop crop(int64_t step, int64_t index, int64_t attempt = 0) const { return crops_.at(step, index, attempt); }
  /// `input` holds the speech of one item and receives the codec's input; `target` receives its target. Files that can
  /// no longer be read are added to `lost`, and the noise is drawn again. Returns whether the target is the clean
  /// speech. Throws what fill_batch() throws.
  bool mix(int64_t step, int64_t index, std::span<float> input, std::span<float> target,
           std::vector<BadFile>& lost) const;

 private:
  const Dataset& noise_;
  CropSampler crops_;
  uint64_t seed_;
  NoiseOptions options_;
};

}  // namespace nacre::training
