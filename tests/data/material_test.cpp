// The audio of a file as the model receives it: one channel, the model's rate, a peak of 0.95. Parts of a file equal
// those of the whole.
#include "nacre/data/material.h"

#include <fstream>
#include <random>

#include "data/encoded.h"
#include "harness.h"
#include "nacre/data/dataset.h"

using namespace nacre;
using namespace nacre::test;
using namespace nacre::training;

namespace {

void write_pcm(const std::string& path, const std::vector<float>& x, int rate, int channels = 1) {
  write_wav(path, {.samples = x, .sample_rate = rate, .channels = channels});
}

double worst_difference(std::span<const float> a, std::span<const float> b) {
  double worst = 0;
  for (size_t i = 0; i < a.size(); ++i) worst = std::max(worst, std::fabs(double(a[i]) - double(b[i])));
  return worst;
}

/// The number of bytes that this process has read, or -1 if the kernel does not count them.
int64_t bytes_read() {
  std::ifstream io("/proc/self/io");
  std::string name;
  int64_t value = -1;
  return io >> name >> value && name == "rchar:" ? value : -1;
}

}  // namespace

TEST_CASE("a part of a file is what the whole has there", "[training][audio]") {
  const TemporaryFolder folder;
  // Lossless formats at rates that are resampled by small or by large ratios, or not at all.
  for (const int rate : {16000, 48000, 44100, 8000, 22050, 11025})
    for (const int format : {SF_FORMAT_WAV | SF_FORMAT_PCM_16, flac_format}) {
      const std::string path = folder / "a";
      write_encoded(path, format, noise(static_cast<size_t>(3 * rate), 1), rate);
      std::vector<float> whole;
      const MaterialOptions options{.sample_rate = 16000};
      const Material m = survey(path, options, &whole);
      REQUIRE(m.samples == 48000);
      REQUIRE(static_cast<int64_t>(whole.size()) == m.samples);
      CHECK(peak_of(whole) == Approx(0.95));
      CHECK(m.exact_header);
      for (const int64_t offset : {0, 1, 399, 5000, 23457, 47000, 47999}) {
        const auto n = static_cast<size_t>(std::min<int64_t>(1600, m.samples - offset));
        std::vector<float> part(n);
        read_material(path, m, options, offset, part);
        INFO(rate << " Hz, format " << format << ", offset " << offset);
        CHECK(worst_difference(part, std::span(whole).subspan(static_cast<size_t>(offset))) <=
              (rate == 16000 ? 0 : 1e-6));
      }
      std::vector<float> beyond(2);
      CHECK_THROWS_AS(read_material(path, m, options, 47999, beyond), Error);
    }
  // A ratio without a table of the filter.
  write_encoded(folder / "odd.wav", SF_FORMAT_WAV | SF_FORMAT_PCM_16, noise(44101, 2), 44101);
  std::vector<float> whole, part(1600);
  const MaterialOptions options{.sample_rate = 16000};
  const Material m = survey(folder / "odd.wav", options, &whole);
  read_material(folder / "odd.wav", m, options, 9000, part);
  CHECK(worst_difference(part, std::span(whole).subspan(9000)) < 1e-4);
}

TEST_CASE("a part of a file with a memory, or with a wrong header, is near to what the whole has there",
          "[training][audio]") {
  const TemporaryFolder folder;
  const std::vector<float> x = sine(3 * 48000, 440, 48000);
  const MaterialOptions options{.sample_rate = 16000};
  const auto expect = [&](const std::string& path, double tolerance) {
    std::vector<float> whole, part(1600);
    const Material m = survey(path, options, &whole);
    for (const int64_t offset : {int64_t{0}, int64_t{3000}, int64_t{20000}, int64_t{40000}, m.samples - 1600}) {
      read_material(path, m, options, offset, part);
      INFO(path << " at " << offset);
      CHECK(worst_difference(part, std::span(whole).subspan(static_cast<size_t>(offset))) <= tolerance);
    }
    return m;
  };
  // Vorbis and MP3 decode whole frames that lie before the part. Opus starts 80 ms earlier and is then within its own
  // noise.
  write_encoded(folder / "a.ogg", vorbis_format, x, 48000);
  expect(folder / "a.ogg", 1e-5);
  write_encoded(folder / "a.opus", opus_format, x, 48000);
  expect(folder / "a.opus", 1e-3);
  write_encoded(folder / "a.mp3", mp3_format, x, 48000);
  expect(folder / "a.mp3", 1e-5);
  // If the header has no length or a wrong one, everything before the part is decoded. The samples are the same.
  const std::string mp3 = read_bytes(folder / "a.mp3");
  write_bytes(folder / "joined.mp3", mp3 + mp3);
  CHECK_FALSE(expect(folder / "joined.mp3", 1e-6).exact_header);
  write_encoded(folder / "a.flac", flac_format, x, 48000);
  write_bytes(folder / "piped.flac", without_length(read_bytes(folder / "a.flac")));
  CHECK_FALSE(expect(folder / "piped.flac", 1e-6).exact_header);
}

TEST_CASE("a crop beyond the cache costs about its own length", "[training][dataset]") {
  if (bytes_read() < 0) {
    WARN("the kernel does not count what a process reads");
    return;
  }
  const TemporaryFolder folder;
  // Ten minutes at 8 kHz are 9.6 MB.
  write_pcm(folder / "long.wav", sine(600 * 8000, 300, 8000), 8000);
  write_pcm(folder / "other.wav", sine(8000, 300, 8000), 8000);
  const Dataset data(folder.path(), {.sample_rate = 16000, .valid_fraction = 0, .cache_bytes = 1 << 20});
  REQUIRE_FALSE(data.in_memory());
  REQUIRE(data.clips()[0].path == "long.wav");
  std::vector<float> crop(16000), whole;
  const int64_t before = bytes_read();
  data.read(0, 8000000, crop);
  const int64_t cost = bytes_read() - before;
  // 1 s of 16-bit samples, twice the reach of the filter, headers, and the reads of /proc itself.
  CHECK(cost < 100000);
  survey(folder / "long.wav", {.sample_rate = 16000}, &whole);
  CHECK(worst_difference(crop, std::span(whole).subspan(8000000)) <= 1e-6);
}

TEST_CASE("an offset and a converter's noise are silence", "[training][audio]") {
  const TemporaryFolder folder;
  const auto silent = [&](const std::vector<float>& x, int rate = 16000) {
    write_pcm(folder / "a.wav", x, rate);
    std::vector<float> seen;
    const Material m = survey(folder / "a.wav", {.sample_rate = 16000}, &seen);
    if (m.silent) {
      CHECK(m.gain == 1);
      CHECK(peak_of(seen) < 1.1f * std::max(peak_of(x), 1e-9f));  // not scaled; resampling rings by less than a tenth
      if (rate == 16000) CHECK(is_silence(seen));
    } else {
      CHECK(peak_of(seen) == Approx(0.95));
    }
    return m.silent;
  };
  constexpr float step = 1.0f / 32768;
  CHECK(silent(std::vector<float>(8000, -step)));
  CHECK(silent(std::vector<float>(8000, -step), 44100));
  CHECK(silent(std::vector<float>(8000, 0.5f)));
  CHECK(silent(std::vector<float>(8000, 0)));
  std::vector<float> dither(8000);
  std::mt19937_64 rng(seed());
  for (float& v : dither) v = step * static_cast<float>(static_cast<int>(rng() % 3) - 1);
  CHECK(silent(dither));
  CHECK_FALSE(silent(sine(8000, 300, 16000, 8 * step)));
  // Half of the file is silent. The level of the other half counts.
  std::vector<float> half = sine(8000, 300, 16000, 0.01);
  half.resize(16000, 0);
  CHECK_FALSE(silent(half));
  CHECK(is_silence({}));
}

TEST_CASE("channels that cancel each other are named, and the loudest is taken", "[training][audio]") {
  const TemporaryFolder folder;
  const std::vector<float> x = noise(16000, 3);
  const auto stereo = [&](float left, float right, float noise_of_right) {
    const std::vector<float> other = noise(x.size(), 4);
    std::vector<float> both;
    for (size_t i = 0; i < x.size(); ++i)
      both.insert(both.end(), {left * x[i], right * x[i] + noise_of_right * other[i]});
    write_pcm(folder / "a.wav", both, 16000, 2);
    std::vector<float> seen;
    const Material m = survey(folder / "a.wav", {.sample_rate = 16000}, &seen);
    CHECK(peak_of(seen) == Approx(0.95));
    std::vector<float> part(1000);
    read_material(folder / "a.wav", m, {.sample_rate = 16000}, 7000, part);
    CHECK(worst_difference(part, std::span(seen).subspan(7000)) == 0);
    return m;
  };
  const Material opposite = stereo(0.9f, -1.0f, 0);
  CHECK(opposite.channel == 1);
  REQUIRE(opposite.warnings.size() == 1);
  CHECK_THAT(opposite.warnings[0], Catch::Contains("opposite phase") && Catch::Contains("channel 2"));
  CHECK(stereo(1, -1, 0.05f).channel ==
        1);  // the mean has 0.06 % of the power; the second channel has slightly more than the first
  CHECK(stereo(1, -0.5f, 0).channel == -1);  // the mean has a quarter of the louder channel
  CHECK(stereo(1, 0, 1).channel == -1);      // independent channels
  CHECK(stereo(1, 0, 0).channel == -1);      // one channel is silent
  CHECK(stereo(1, 1, 0).warnings.empty());
}
