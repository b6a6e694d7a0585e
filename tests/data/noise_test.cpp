// Noisy mixtures: their levels, their shares, and that they are a pure function of seed, step and index.
#include "nacre/data/noise.h"

#include <algorithm>
#include <cmath>
#include <set>

#include "data/files.h"
#include "harness.h"

using namespace nacre;
using namespace nacre::test;
using namespace nacre::training;

namespace {

/// mixture - speech
std::vector<float> rest_of(const std::vector<float>& mixture, const std::vector<float>& speech) {
  std::vector<float> rest;
  for (size_t i = 0; i < mixture.size(); ++i) rest.push_back(mixture[i] - speech[i]);
  return rest;
}
struct Mixed {
  std::vector<float> speech, mixture;
};
Mixed mixed(const std::vector<float>& noise, double gain, std::vector<float> speech) {
  Mixed m{.speech = std::move(speech), .mixture = {}};
  m.mixture.assign(m.speech.size(), 7.0f);
  mix_noise(noise, gain, m.speech, m.mixture);
  return m;
}

/// Speech of one file of sines, noise of two files, one of them shorter than a segment of 400 samples.
struct Folders {
  TemporaryFolder folder;
  Folders() {
    for (int i = 0; i < 4; ++i)
      write_sine(folder / ("speech/" + std::to_string(i) + ".wav"), i == 0 ? 250 : 1500 + 300 * i, 300 + 70 * i);
    write_sine(folder / "noise/long.wav", 3000, 1900);
    write_sine(folder / "noise/short.wav", 90, 2700);
  }
};

}  // namespace

TEST_CASE("noise: the peak of the noise is that of the speech times the gain, and short noise repeats") {
  // Powers of two and gains in steps of 20 dB, so that every number below can be followed by hand.
  const std::vector<float> speech{0.0f, 0.25f, -0.5f, 0.125f, 0.0f, 0.25f, 0.0f};
  const std::vector<float> noise{0.25f, -0.125f, 0.0f};
  const Mixed equal = mixed(noise, 0, speech);
  CHECK(equal.speech == speech);
  CHECK(equal.mixture == std::vector<float>{0.5f, 0.0f, -0.5f, 0.625f, -0.25f, 0.25f, 0.5f});
  // 20 dB below, a tenth: 0.05 for 0.25. One rounding of the sum.
  const Mixed tenth = mixed(noise, -20, speech);
  const std::vector<double> expected{0.05, 0.225, -0.5, 0.175, -0.025, 0.25, 0.05};
  for (size_t i = 0; i < speech.size(); ++i)
    CHECK(std::fabs(static_cast<double>(tenth.mixture[i]) - expected[i]) <= 0x1p-24);
  // The levels of file and crop do not matter: only the peaks of what is mixed. 1e30 times louder noise, and samples of
  // noise behind the end of the speech.
  std::vector<float> loud;
  for (const float v : noise) loud.push_back(1e30f * v);
  CHECK(mixed(loud, 0, speech).mixture == equal.mixture);
  CHECK(mixed({0.25f, -0.125f, 8.0f}, 0, {0.5f, 0.0f}).mixture == std::vector<float>{1.0f, -0.25f});
  // Two channels: samples repeat as pairs.
  CHECK(mixed({0.5f, -0.25f}, 0, {0.0f, 0.5f, 0.25f, 0.0f}).mixture == std::vector<float>{0.5f, 0.25f, 0.75f, -0.25f});
}

TEST_CASE("noise: a mixture above full scale is scaled down, and the speech with it") {
  const Mixed m = mixed({1.0f, -0.5f}, 0, {0.75f, 0.75f, -0.25f});
  // 0.75 + 0.75 = 1.5 is the peak: every sample is divided by 1.5.
  CHECK(peak_of(m.mixture) == 1.0f);
  const std::vector<float> speech{0.5f, 0.5f, -1.0f / 6}, mixture{1.0f, 0.25f, 1.0f / 3};
  for (size_t i = 0; i < 3; ++i) {
    CHECK(std::fabs(m.speech[i] - speech[i]) <= 0x1p-25f);
    CHECK(std::fabs(m.mixture[i] - mixture[i]) <= 0x1p-25f);
  }
  // A peak of exactly 1 is left alone.
  CHECK(mixed({0.5f}, 0, {0.5f, 0.25f}).speech == std::vector<float>{0.5f, 0.25f});
}

TEST_CASE("noise: silence in speech or noise gives no noise, and tiny peaks stay finite") {
  const std::vector<float> speech{0.5f, -0.25f}, silence(2, 0.0f);
  CHECK(mixed(silence, 0, speech).mixture == speech);
  CHECK(mixed({-0.0f}, 60, speech).mixture == speech);
  CHECK(mixed({0.5f, 0.25f}, 0, silence).mixture == silence);
  CHECK(mixed({}, 0, {}).mixture.empty());
  // The smallest float as the peak of the noise: the factor is beyond float, the mixture is not.
  CHECK(mixed({0.0f, 0x1p-149f}, 0, speech).mixture == std::vector<float>{0.5f, 0.25f});
  CHECK_THROWS_WITH(mixed({}, 0, speech), Catch::Contains("0 samples of noise"));
  std::vector<float> room(3);
  Mixed m{.speech = speech, .mixture = {}};
  CHECK_THROWS_AS(mix_noise(speech, 0, m.speech, room), Error);
}

TEST_CASE("noise: shares and gains are those of the options, each drawn by itself", "[training][sampler]") {
  const Folders files;
  const Dataset noise(files.folder / "noise", {.valid_fraction = 0});
  const NoiseMixer mixer(noise, 400, 4, seed(),
                         {.share = 0.25, .clean_target = 0.5, .lowest_gain = -30, .highest_gain = 6});
  constexpr int64_t steps = 5000;
  double noisy = 0, clean = 0, both = 0, sum = 0, square = 0;
  double lowest = 100, highest = -100;
  for (int64_t step = 0; step < steps; ++step)
    for (int64_t i = 0; i < 4; ++i) {
      const NoiseMixer::Draw d = mixer.at(step, i);
      noisy += d.noisy, clean += d.clean_target, both += d.noisy && d.clean_target;
      sum += d.gain, square += d.gain * d.gain;
      lowest = std::min(lowest, d.gain), highest = std::max(highest, d.gain);
    }
  constexpr double n = 4 * steps;
  const auto is_share = [](double count, double p) {
    CHECK(std::fabs(count - n * p) < 6 * std::sqrt(n * p * (1 - p)));  // six standard deviations
  };
  is_share(noisy, 0.25), is_share(clean, 0.5), is_share(both, 0.125);
  // Uniform from -30 to 6: a mean of -12, a variance of 36^2 / 12 = 108.
  CHECK(std::fabs(sum / n + 12) < 6 * std::sqrt(108 / n));
  CHECK(std::fabs(square / n - 144 - 108) < 0.1 * 252);
  CHECK((lowest >= -30 && lowest < -29.9));
  CHECK((highest <= 6 && highest > 5.9));

  const auto drawn = [&](const NoiseOptions& o, uint64_t s = seed()) { return NoiseMixer(noise, 400, 4, s, o); };
  const NoiseMixer all = drawn({.share = 1, .clean_target = 1, .lowest_gain = -5, .highest_gain = -5}),
                   none = drawn({.share = 0, .clean_target = 0}), again = drawn({}), other = drawn({}, seed() + 1);
  int same = 0, next_step = 0, next_index = 0;
  for (int64_t i = 0; i < 100; ++i) {
    CHECK(all.at(i, 0) == NoiseMixer::Draw{.noisy = true, .clean_target = true, .gain = -5});
    CHECK_FALSE((none.at(i, 0).noisy || none.at(i, 0).clean_target));
    CHECK(drawn({}).at(i, 1) == again.at(i, 1));
    same += other.at(i, 1).gain == again.at(i, 1).gain;
    next_step += again.at(i, 1).gain == again.at(i + 1, 1).gain;
    next_index += again.at(i, 1).gain == again.at(i, 2).gain;
  }
  CHECK((same == 0 && next_step == 0 && next_index == 0));

  for (const NoiseOptions& bad :
       {NoiseOptions{.share = 1.5}, NoiseOptions{.share = std::nan("")}, NoiseOptions{.clean_target = -0.1},
        NoiseOptions{.lowest_gain = 1, .highest_gain = 0}, NoiseOptions{.lowest_gain = -INFINITY}})
    CHECK_THROWS_AS(drawn(bad), Error);
}

TEST_CASE("noise: crops of noise do not follow those of the speech", "[training][sampler]") {
  const TemporaryFolder folder;
  for (int i = 0; i < 16; ++i) write_sine(folder / (std::to_string(i) + ".wav"), 400, 300 + 70 * i);
  const Dataset data(folder.path(), {.valid_fraction = 0});
  // The same files as speech and as noise, with the same seed: the draws of 16 files agree by chance alone.
  const CropSampler crops(data, 400, 2, seed());
  const NoiseMixer mixer(data, 400, 2, seed(), {});
  constexpr double n = 4000, p = 1.0 / 16;
  double same = 0;
  std::set<int64_t> drawn;
  for (int64_t step = 0; step < 4000; ++step) {
    same += crops.at(step, 1).clip == mixer.crop(step, 1).clip;
    drawn.insert(mixer.crop(step, 1).clip);
  }
  CHECK(std::fabs(same - n * p) < 6 * std::sqrt(n * p * (1 - p)));
  CHECK(drawn.size() == 16);
}

TEST_CASE("noise: a batch has the speech that it has without noise, its noise, and the target of its label",
          "[training][sampler]") {
  const Folders files;
  const Dataset speech(files.folder / "speech", {.valid_fraction = 0}),
      noise(files.folder / "noise", {.valid_fraction = 0});
  const CropSampler crops(speech, 400, 3, seed());
  const NoiseMixer mixer(noise, 400, 3, seed(), {.share = 0.6, .clean_target = 0.5});
  int noisy = 0, clean = 0, repeated = 0, padded = 0, scaled = 0;
  Batch with, without;
  for (int64_t step = -2; step < 40; ++step) {
    fill_batch(speech, crops, step, without);
    fill_batch(speech, crops, step, with, &mixer);
    CHECK(without.targets.empty());
    CHECK(without.clean_target.empty());
    REQUIRE(with.crops == without.crops);
    REQUIRE(with.targets.size() == with.samples.size());
    REQUIRE(with.clean_target.size() == 3);
    for (int64_t i = 0; i < 3; ++i) {
      const auto row = [&](const std::vector<float>& v) {
        return std::vector<float>(v.begin() + 400 * i, v.begin() + 400 * (i + 1));
      };
      const std::vector<float> input = row(with.samples), target = row(with.targets), was = row(without.samples);
      const NoiseMixer::Draw draw = mixer.at(step, i);
      CHECK(with.clean_target[static_cast<size_t>(i)] == draw.clean_target);
      const int64_t length = with.crops[static_cast<size_t>(i)].length;
      padded += length < 400;
      CHECK(std::all_of(input.begin() + length, input.end(), [](float v) { return v == 0; }));
      CHECK(std::all_of(target.begin() + length, target.end(), [](float v) { return v == 0; }));
      if (!draw.noisy) {
        CHECK(input == was);
        CHECK(target == was);
        continue;
      }
      ++noisy;
      // By hand, from the noise's crop.
      const Crop crop = mixer.crop(step, i);
      std::vector<float> piece(static_cast<size_t>(crop.length));
      noise.read(crop.clip, crop.offset, piece);
      repeated += crop.length < length;
      const Mixed m = mixed(piece, draw.gain, {was.begin(), was.begin() + length});
      scaled += !std::equal(m.speech.begin(), m.speech.end(), was.begin());
      CHECK(std::equal(m.mixture.begin(), m.mixture.end(), input.begin()));
      const std::vector<float>& wanted = draw.clean_target ? m.speech : m.mixture;
      CHECK(std::equal(wanted.begin(), wanted.end(), target.begin()));
      if (draw.clean_target) {
        ++clean;
        // Peaks of what the input has and the target has not. Sums below 2 and quotients below 1 are rounded, by less
        // than 3 2^-24 together, beside speech with a peak above 0.95 / 4 (sines of 300 Hz, scaled down to a half).
        const float level = peak_of(rest_of(input, target)) / peak_of(target);
        CHECK(std::fabs(static_cast<double>(level) - std::pow(10, draw.gain / 20)) < 12 / 0.95 * 0x1p-24);
      } else {
        CHECK(input == target);
      }
    }
  }
  CHECK((noisy > 20 && clean > 5 && clean < noisy && repeated > 0 && padded > 0 && scaled > 0));
}

TEST_CASE("noise: batches are the same for any number of loader threads, and lost noise is drawn again",
          "[training][sampler]") {
  const Folders files;
  for (int i = 0; i < 5; ++i) write_sine(files.folder / ("noise/" + std::to_string(i) + ".wav"), 700, 900 + 90 * i);
  const Dataset speech(files.folder / "speech", {.cache_bytes = 3000}),
      noise(files.folder / "noise", {.valid_fraction = 0, .cache_bytes = 0});
  const CropSampler crops(speech, 400, 3, seed());
  const NoiseMixer mixer(noise, 400, 3, seed(), {.clean_target = 0.5});
  const auto check = [&](bool loses) {
    std::vector<Batch> expected(30);
    size_t lost = 0;
    for (int64_t s = 0; s < 30; ++s) {
      fill_batch(speech, crops, s, expected[static_cast<size_t>(s)], &mixer);
      for (const BadFile& f : expected[static_cast<size_t>(s)].lost) lost += f.path == "3.wav";
    }
    CHECK((lost > 0) == loses);
    for (const int threads : {1, 2, 5}) {
      Prefetcher fetch(speech, crops, {.first_step = 7, .threads = threads, .depth = 3}, &mixer);
      for (size_t s = 7; s < 30; ++s) {
        const Batch& b = fetch.next();
        REQUIRE(b.samples == expected[s].samples);
        REQUIRE(b.targets == expected[s].targets);
        REQUIRE(b.clean_target == expected[s].clean_target);
        REQUIRE(b.lost.size() == expected[s].lost.size());
      }
    }
  };
  check(false);
  std::filesystem::remove(files.folder / "noise/3.wav");
  check(true);
  std::filesystem::remove_all(files.folder / "noise");
  Batch batch;
  CHECK_THROWS_WITH(
      [&] {
        for (int64_t s = 0; s < 20; ++s) fill_batch(speech, crops, s, batch, &mixer);
      }(),
      Catch::Contains("files in a row"));
}
