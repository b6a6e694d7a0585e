// Audio for a model of two channels: from stereo, mono and surround files to materials, datasets, crops and excerpts.
// References are computed channel by channel.
#include <cmath>

#include "data/encoded.h"
#include "harness.h"
#include "nacre/data/dataset.h"
#include "nacre/data/excerpts.h"
#include "nacre/data/material.h"
#include "nacre/data/sampler.h"

using namespace nacre;
using namespace nacre::test;
using namespace nacre::training;

namespace {

constexpr int rate = 16000;
constexpr int float_format = SF_FORMAT_WAV | SF_FORMAT_FLOAT;
const MaterialOptions of_two{.sample_rate = rate, .channels = 2};

std::vector<float> interleaved(const std::vector<std::vector<float>>& channels) {
  std::vector<float> out;
  for (size_t t = 0; t < channels[0].size(); ++t)
    for (const std::vector<float>& c : channels) out.push_back(c[t]);
  return out;
}

double worst_difference(std::span<const float> a, std::span<const float> b) {
  REQUIRE(a.size() == b.size());
  double worst = 0;
  for (size_t i = 0; i < a.size(); ++i) worst = std::max(worst, std::fabs(double(a[i]) - double(b[i])));
  return worst;
}

/// A folder of files for a model of two channels, by path: surround (0), mono (1), two of stereo (2, 3).
void write_files(const TemporaryFolder& folder) {
  write_encoded(folder / "data/a.wav", float_format,
                interleaved({noise(3000, 1, 0.2f), noise(3000, 2, 0.3f), noise(3000, 3, 0.1f)}), rate, 3);
  write_encoded(folder / "data/b.wav", float_format, noise(700, 4), rate);
  write_encoded(folder / "data/c.wav", float_format, interleaved({noise(5000, 5), noise(5000, 6, 0.4f)}), rate, 2);
  write_encoded(folder / "data/d.wav", float_format, interleaved({noise(100, 7), noise(100, 8)}), rate, 2);
}

}  // namespace

TEST_CASE("stereo: a model of two channels gets both, scaled by one gain", "[training][audio][stereo]") {
  const TemporaryFolder folder;
  const std::string path = folder / "a.wav";
  for (const int file_rate : {16000, 44100, 8000}) {
    INFO(file_rate << " Hz");
    const std::vector<std::vector<float>> sides{noise(static_cast<size_t>(2 * file_rate), 1, 0.2f),
                                                noise(static_cast<size_t>(2 * file_rate), 2, 0.4f)};
    write_encoded(path, float_format, interleaved(sides), file_rate, 2);
    std::vector<float> whole;
    const Material m = survey(path, of_two, &whole);
    REQUIRE(m.samples == 2 * rate);
    CHECK(m.channel == -1);
    CHECK(m.exact_header);
    CHECK(m.warnings.empty());
    // Each channel by itself, then the gain of the larger peak.
    std::vector<std::vector<float>> expected;
    for (const std::vector<float>& side : sides) expected.push_back(resample(side, 1, file_rate, rate));
    const float gain = peak_gain(std::max(peak_of(expected[0]), peak_of(expected[1])));
    CHECK(m.gain == gain);
    for (std::vector<float>& side : expected)
      for (float& v : side) v *= gain;
    CHECK((whole == interleaved(expected)));

    for (const int64_t offset : {0, 1, 399, 5000, 31999}) {
      INFO("offset " << offset);
      std::vector<float> part(2 * static_cast<size_t>(std::min<int64_t>(1600, m.samples - offset)));
      read_material(path, m, of_two, offset, part);
      CHECK(worst_difference(part, std::span(whole).subspan(2 * static_cast<size_t>(offset), part.size())) <=
            (file_rate == rate ? 0 : 1e-6));
    }
    std::vector<float> beyond(4), torn(3);
    CHECK_THROWS_AS(read_material(path, m, of_two, m.samples - 1, beyond), Error);
    CHECK_THROWS_WITH(read_material(path, m, of_two, 0, torn), Catch::Contains("3 samples of 2 channels"));
    // The limit counts samples of one channel.
    survey(path, of_two, &whole, m.samples);
    CHECK(whole.size() == 2 * static_cast<size_t>(m.samples));
    survey(path, of_two, &whole, m.samples - 1);
    CHECK(whole.empty());
  }
  CHECK_THROWS_WITH(survey(path, {.sample_rate = rate, .channels = 3}), Catch::Contains("3 channels, expected 1 or 2"));
}

TEST_CASE("stereo: a mono file gives its channel twice, a surround file the mix", "[training][audio][stereo]") {
  const TemporaryFolder folder;
  const std::string path = folder / "a.wav";
  const auto twice = [&](int channels, const std::vector<float>& x) {
    write_encoded(path, float_format, x, 22050, channels);
    std::vector<float> one, two, part(2000);
    const Material mono = survey(path, {.sample_rate = rate}, &one), m = survey(path, of_two, &two);
    CHECK(m.samples == mono.samples);
    CHECK(m.gain == mono.gain);
    CHECK(m.channel == mono.channel);
    CHECK((two == interleaved({one, one})));
    read_material(path, m, of_two, 3000, part);
    CHECK(worst_difference(part, std::span(two).subspan(6000, 2000)) <= 1e-6);
    return m;
  };
  CHECK(twice(1, noise(9000, 1)).warnings.empty());
  const Material mixed = twice(3, interleaved({noise(9000, 2), noise(9000, 3), noise(9000, 4)}));
  REQUIRE(mixed.warnings.size() == 1);
  CHECK_THAT(mixed.warnings[0], Catch::Contains("3 channels") && Catch::Contains("mean of all"));
  CHECK(mixed.exact_header);  // the warning says nothing about the header

  // Channels that cancel each other matter where they are mixed, and there only.
  const std::vector<float> x = noise(9000, 5, 0.4f);
  std::vector<float> opposite = x, louder = x;
  for (float& v : opposite) v = -v;
  for (float& v : louder) v *= -1.01f;
  const Material cancelled = twice(4, interleaved({x, opposite, x, louder}));
  CHECK(cancelled.channel == 3);
  REQUIRE(cancelled.warnings.size() == 1);
  CHECK_THAT(cancelled.warnings[0], Catch::Contains("opposite phase") && Catch::Contains("channel 4"));
  write_encoded(path, float_format, interleaved({x, opposite}), rate, 2);
  std::vector<float> both;
  const Material kept = survey(path, of_two, &both);
  CHECK(kept.channel == -1);
  CHECK(kept.warnings.empty());
  for (size_t t = 0; t < both.size(); t += 2) REQUIRE(both[t] == -both[t + 1]);
}

TEST_CASE("stereo: a file is silent if both channels are", "[training][audio][stereo]") {
  const TemporaryFolder folder;
  const std::string path = folder / "a.wav";
  const auto of = [&](const std::vector<float>& left, const std::vector<float>& right) {
    write_encoded(path, float_format, interleaved({left, right}), rate, 2);
    return survey(path, of_two);
  };
  const std::vector<float> high(4000, 0.5f), low(4000, -0.25f), sound = sine(4000, 300, rate, 0.1);
  // Each channel stays at its own mean, though their samples together do not.
  const Material silent = of(high, low);
  CHECK(silent.silent);
  CHECK(silent.gain == 1);
  CHECK_FALSE(of(sound, std::vector<float>(4000)).silent);
  // The peak is that of the constant channel.
  const Material one = of(high, sound);
  CHECK_FALSE(one.silent);
  CHECK(one.gain == peak_gain(0.5f));
}

TEST_CASE("stereo: a file that has become mono is refused", "[training][audio][stereo]") {
  const TemporaryFolder folder;
  const std::string path = folder / "a.wav";
  write_encoded(path, float_format, interleaved({noise(4000, 1), noise(4000, 2)}), rate, 2);
  const Material m = survey(path, of_two);
  write_encoded(path, float_format, noise(8000, 1), rate);
  std::vector<float> part(200);
  CHECK_THROWS_WITH(read_material(path, m, of_two, 10, part),
                    Catch::Contains("a.wav") && Catch::Contains("1 channels at 16000 Hz, and had 2"));
}

TEST_CASE("stereo: datasets count lengths per channel and bytes of both", "[training][dataset][stereo]") {
  const TemporaryFolder folder;
  write_files(folder);
  const DatasetOptions options{.sample_rate = rate, .channels = 2, .valid_fraction = 0};
  const Dataset data(folder / "data", options);
  CHECK(data.channels() == 2);
  REQUIRE(data.clips().size() == 4);
  CHECK(data.training_seconds() == (3000 + 700 + 5000 + 100) / 16000.0);
  REQUIRE(data.warned().size() == 1);
  CHECK(data.warned()[0].path == "a.wav");
  const int channels[] = {3, 1, 2, 2};
  for (size_t i = 0; i < 4; ++i) {
    std::vector<float> expected;
    survey(folder / "data" + "/" + data.clips()[i].path, of_two, &expected);
    CHECK(data.clips()[i].channels == channels[i]);
    CHECK(expected.size() == 2 * static_cast<size_t>(data.clips()[i].samples));
    CHECK((*data.load(static_cast<int64_t>(i)) == expected));
  }

  // Both channels of all files, as float.
  DatasetOptions exact = options, tight = options;
  exact.cache_bytes = 8800 * 2 * sizeof(float);
  tight.cache_bytes = exact.cache_bytes - 1;
  const Dataset all(folder / "data", exact), streamed(folder / "data", tight);
  CHECK(all.in_memory());
  REQUIRE_FALSE(streamed.in_memory());
  for (const int64_t offset : {0, 7, 4321}) {
    const Dataset::Samples whole = data.load(2);
    const size_t n = std::min<size_t>(1500, static_cast<size_t>(5000 - offset));
    const std::vector<float> expected(whole->begin() + 2 * offset,
                                      whole->begin() + 2 * offset + static_cast<std::ptrdiff_t>(2 * n));
    std::vector<float> a(2 * n), b(2 * n), c;
    all.read(2, offset, a);
    streamed.read(2, offset, b);
    streamed.read(2, offset, static_cast<int64_t>(n),
                  [&](std::span<const float> x) { c.insert(c.end(), x.begin(), x.end()); });
    CHECK((a == expected));
    CHECK((b == expected));
    CHECK((c == expected));
  }
  std::vector<float> torn(3), beyond(4);
  CHECK_THROWS_WITH(all.read(2, 0, torn), Catch::Contains("3 samples of 2 channels"));
  CHECK_THROWS_AS(all.read(2, 4999, beyond), Error);
  CHECK_THROWS_AS(streamed.read(2, 4999, beyond), Error);
  CHECK_THROWS_WITH(Dataset(folder / "data", {.channels = 3}), Catch::Contains("channels is 3"));

  // A file whose channels change between scan and use, with its old length.
  write_encoded(folder / "data/c.wav", float_format, noise(5000, 5), rate);
  CHECK_THROWS_WITH(streamed.read(2, 0, beyond), Catch::Contains("changed since training began"));
}

TEST_CASE("stereo: the fingerprint of one channel is that of older runs", "[training][dataset][stereo]") {
  const TemporaryFolder folder;
  // 16-bit WAV files of 2044 and 1244 bytes.
  write_sine(folder / "data/a.wav", 1000);
  write_sine(folder / "data/valid/b.wav", 600);
  const Dataset one(folder / "data", {.sample_rate = rate}), two(folder / "data", {.sample_rate = rate, .channels = 2});
  // Computed outside of nacre by the definition: FNV-1a over rate, paths, bytes, frames, rates and parts, then mixed.
  CHECK(one.fingerprint() == 0x8b3e045272853374u);
  CHECK(two.fingerprint() != one.fingerprint());
}

TEST_CASE("stereo: batches have the crops of mono, and both channels in them", "[training][sampler][stereo]") {
  const TemporaryFolder folder;
  write_files(folder);
  const Dataset one(folder / "data", {.sample_rate = rate, .valid_fraction = 0}),
      two(folder / "data", {.sample_rate = rate, .channels = 2, .valid_fraction = 0}),
      uncached(folder / "data", {.sample_rate = rate, .channels = 2, .valid_fraction = 0, .cache_bytes = 5000});
  constexpr int64_t segment = 640, size = 3;
  const CropSampler of_one(one, segment, size, seed()), sampler(two, segment, size, seed());
  CHECK(sampler.steps_per_epoch() == of_one.steps_per_epoch());
  bool padded = false;
  Prefetcher fetch(uncached, sampler, {.threads = 2, .depth = 2});
  for (int64_t step = 0; step < 60; ++step) {
    Batch batch;
    fill_batch(two, sampler, step, batch);
    REQUIRE(batch.samples.size() == 2 * segment * size);
    for (size_t i = 0; i < size; ++i) {
      const Crop crop = of_one.at(step, static_cast<int64_t>(i));
      REQUIRE(batch.crops[i] == crop);
      const Dataset::Samples clip = two.load(crop.clip);
      for (size_t t = 0; t < segment; ++t)
        for (size_t c = 0; c < 2; ++c) {
          const bool inside = t < static_cast<size_t>(crop.length);
          padded = padded || !inside;
          REQUIRE(batch.samples[(i * segment + t) * 2 + c] ==
                  (inside ? (*clip)[(static_cast<size_t>(crop.offset) + t) * 2 + c] : 0.0f));
        }
    }
    REQUIRE(fetch.next().samples == batch.samples);
  }
  CHECK((padded || seed() != 1));
}

TEST_CASE("stereo: excerpts hold both channels", "[training][excerpts][stereo]") {
  const TemporaryFolder folder;
  write_files(folder);
  const Dataset data(folder / "data", {.sample_rate = rate, .channels = 2, .valid_fraction = 0}),
      streamed(folder / "data", {.sample_rate = rate, .channels = 2, .valid_fraction = 0, .cache_bytes = 5000});
  const std::vector<Excerpt> parts{{2, 0, 5000}, {2, 4000, 999}, {1, 3, 1}, {0, 0, 3000}};
  CHECK(total_seconds(data, parts) == 9000 / 16000.0);
  ExcerptReader reader(streamed, parts);
  for (int round = 0; round < 2; ++round)
    for (size_t i = 0; i < parts.size(); ++i) {
      const Dataset::Samples whole = data.load(parts[i].clip);
      const auto from = whole->begin() + 2 * parts[i].offset;
      CHECK((reader.samples(i) == std::vector<float>(from, from + 2 * parts[i].samples)));
    }
}
