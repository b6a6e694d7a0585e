// Mixtures of speech and noise for training that denoises. Like the sampler's crops, every draw follows from seed, step
// and index.
#include "nacre/data/noise.h"

#include <algorithm>
#include <cmath>
#include <string>

#include "data/some_crop.h"
#include "nacre/random.h"

namespace nacre::training {
namespace {

/// First random stream of the mixer, "noise" in ASCII. Each index of the batch uses three streams from here on.
constexpr uint64_t noise_streams = uint64_t{0x6E6F697365} << 24;
constexpr uint64_t crop_seed = noise_streams - 1;  // the stream that gives the seed of the noise's crops

/// Crops of noise have a seed of their own. With that of the speech, both would be drawn by the same numbers.
uint64_t seed_of_crops(uint64_t seed) {
  const auto r = Philox{seed, crop_seed}(0);
  return uint64_t{r[0]} << 32 | r[1];
}

void expect_share(const char* name, double value) {
  if (!(value >= 0 && value <= 1))
    throw Error(ErrorKind::usage, "noise: " + std::string(name) + " is " + std::to_string(value) + ", expected 0 to 1");
}

}  // namespace

void mix_noise(std::span<const float> noise, double gain, std::span<float> speech, std::span<float> mixture) {
  if (speech.size() != mixture.size() || (noise.empty() && !speech.empty()))
    throw Error(ErrorKind::usage, "noise: " + std::to_string(noise.size()) + " samples of noise and " +
                                      std::to_string(speech.size()) + " of speech for a mixture of " +
                                      std::to_string(mixture.size()));
  // Noise that is shorter is repeated below.
  noise = noise.first(std::min(noise.size(), speech.size()));
  const double loudest = static_cast<double>(peak_of(noise));
  // In double, because the quotient of two float peaks may exceed the range of float.
  const double factor = loudest > 0 ? std::pow(10.0, gain / 20) * static_cast<double>(peak_of(speech)) / loudest : 0;
  for (size_t i = 0; i < speech.size(); ++i)
    mixture[i] =
        static_cast<float>(static_cast<double>(speech[i]) + factor * static_cast<double>(noise[i % noise.size()]));
  const double peak = static_cast<double>(peak_of(mixture));
  // Speech and mixture are scaled alike, so that the speech in the mixture remains the target.
  if (peak <= 1) return;
  for (const std::span<float> x : {speech, mixture})
    for (float& v : x) v = static_cast<float>(static_cast<double>(v) / peak);
}

NoiseMixer::NoiseMixer(const Dataset& noise, int64_t segment, int64_t batch, uint64_t seed, const NoiseOptions& options)
    : noise_(noise), crops_(noise, segment, batch, seed_of_crops(seed)), seed_(seed), options_(options) {
  expect_share("share", options.share);
  expect_share("clean_target", options.clean_target);
  if (!std::isfinite(options.lowest_gain) || !std::isfinite(options.highest_gain) ||
      options.lowest_gain > options.highest_gain)
    throw Error(ErrorKind::usage, "noise: gains are " + std::to_string(options.lowest_gain) + " to " +
                                      std::to_string(options.highest_gain) + " dB, expected the lower one first");
}

NoiseMixer::Draw NoiseMixer::at(int64_t step, int64_t index) const {
  const auto uniform = [&](uint64_t which) {
    return Philox{seed_, noise_streams + 3 * static_cast<uint64_t>(index) + which}.uniform(static_cast<uint64_t>(step));
  };
  // uniform() is below 1, so a share of 1 holds for every segment and one of 0 for none.
  return {.noisy = uniform(0) < options_.share,
          .clean_target = uniform(1) < options_.clean_target,
          .gain = options_.lowest_gain + (options_.highest_gain - options_.lowest_gain) * uniform(2)};
}

bool NoiseMixer::mix(int64_t step, int64_t index, std::span<float> input, std::span<float> target,
                     std::vector<BadFile>& lost) const {
  const Draw draw = at(step, index);
  std::copy(input.begin(), input.end(), target.begin());
  if (!draw.noisy) return draw.clean_target;
  std::vector<float> noise(static_cast<size_t>(crops_.segment() * noise_.channels()));
  const Crop crop = read_some_crop(noise_, crops_, step, index, noise, lost);
  noise.resize(static_cast<size_t>(crop.length * noise_.channels()));
  mix_noise(noise, draw.gain, target, input);
  // Without a clean target, the target is the mixture itself.
  if (!draw.clean_target) std::copy(input.begin(), input.end(), target.begin());
  return draw.clean_target;
}

}  // namespace nacre::training
