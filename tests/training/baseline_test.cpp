// Opus as a baseline: the output has the length of the input and is aligned with it, and more bits give better quality.
#include "nacre/training/baseline.h"

#include <limits>
#include <random>

#include "data/files.h"
#include "harness.h"

using namespace nacre;
using namespace nacre::test;
using namespace nacre::training;

namespace {

/// A signal like a voice: partials of a varying pitch that are weaker the higher they are, the rise and fall of a
/// syllable, and breath noise.
std::vector<float> voice(int rate, double seconds) {
  std::mt19937_64 rng(seed());
  std::normal_distribution<double> breath(0, 0.003);
  std::vector<float> x(static_cast<size_t>(seconds * rate));
  double phase = 0;
  for (size_t i = 0; i < x.size(); ++i) {
    const double t = static_cast<double>(i) / rate;
    phase += 2 * M_PI * (300 + 35 * std::sin(2.1 * t) + 12 * std::sin(9 * t)) / rate;
    double sum = 0;
    for (int k = 1; k <= 20; ++k) sum += std::sin(k * phase + k * k) / k;
    x[i] = static_cast<float>(0.2 * (0.55 + 0.45 * std::sin(2 * M_PI * 3 * t)) * sum + breath(rng));
  }
  return x;
}

double snr(const std::vector<float>& x, const std::vector<float>& y) {
  double signal = 0, noise = 0;
  for (size_t i = 0; i < x.size(); ++i) {
    const double a = x[i], b = y[i];
    signal += a * a, noise += (a - b) * (a - b);
  }
  return 10 * std::log10(signal / noise);
}

/// The number of samples by which y is later than x: the lag of the largest correlation.
int64_t lag(const std::vector<float>& x, const std::vector<float>& y, int64_t most) {
  const auto n = static_cast<int64_t>(x.size());
  double best = -std::numeric_limits<double>::infinity();
  int64_t at = 0;
  for (int64_t shift = -most; shift <= most; ++shift) {
    double sum = 0;
    for (int64_t i = std::max<int64_t>(0, -shift); i < std::min(n, n - shift); ++i)
      sum += double(x[static_cast<size_t>(i)]) * double(y[static_cast<size_t>(i + shift)]);
    if (sum > best) best = sum, at = shift;
  }
  return at;
}

bool available() {
  const std::optional<std::string> reason = opus_unavailable();
  if (!reason) return true;
  CHECK(!reason->empty());
  CHECK_THROWS_AS(code_opus(std::vector<float>(100), 16000, 16000), Error);
  WARN("not tested: " + *reason);
  return false;
}

}  // namespace

TEST_CASE("Opus gives audio back in its place", "[training][baseline]") {
  if (!available()) return;
  // All rates that Opus supports, and some that need resampling.
  for (const int rate : {8000, 12000, 16000, 24000, 48000, 11025, 22050, 44100}) {
    INFO(rate << " Hz");
    const std::vector<float> x = voice(rate, 1.5);
    // The bitrate makes Opus use its transform coder at every rate. Below it, Opus uses the linear predictor, which
    // resamples to 16 kHz and shifts the sound by a fraction of a sample.
    const OpusCoded coded = code_opus(x, rate, 64000);
    REQUIRE(coded.samples.size() == x.size());
    // 20 ms are more than the encoder's delay of 6.5 ms and more than a period of the voice.
    CHECK(lag(x, coded.samples, rate / 50) == 0);
    CHECK(snr(x, coded.samples) > 0);  // silence would have 0 dB
  }
}

TEST_CASE("Opus gives back any number of samples", "[training][baseline]") {
  if (!available()) return;
  // Lengths around a packet of 20 ms, and around a packet minus the delay of 6.5 ms.
  for (const size_t n : {1u, 2u, 8u, 215u, 216u, 217u, 319u, 320u, 321u, 536u, 537u, 16000u, 16001u}) {
    INFO(n << " samples");
    std::vector<float> x = voice(16000, 2);
    x.resize(n);
    const OpusCoded coded = code_opus(x, 16000, 24000);
    CHECK(coded.samples.size() == n);
    CHECK(coded.bytes > 0);
    for (const float v : coded.samples) CHECK(std::isfinite(v));
    CHECK(code_opus(x, 22050, 24000).samples.size() == n);
  }
  CHECK(code_opus({}, 16000, 24000).samples.empty());
  CHECK(code_opus({}, 16000, 24000).bytes == 0);
}

TEST_CASE("Opus keeps near the bitrate it is asked for, and more bits buy quality", "[training][baseline]") {
  if (!available()) return;
  const double seconds = 4;
  const std::vector<float> x = voice(16000, seconds);
  double last_rate = 0, last_snr = -std::numeric_limits<double>::infinity();
  for (const double bitrate : {12000.0, 24000.0, 48000.0, 96000.0}) {
    INFO(bitrate << " bit/s");
    const OpusCoded coded = code_opus(x, 16000, bitrate);
    const double rate = 8 * static_cast<double>(coded.bytes) / seconds;
    // The rate varies and is an average over all kinds of sound, so a factor of two is allowed either way. If the
    // setting had no effect, all four would be equal; if it were reversed, they would fall.
    CHECK(rate > bitrate / 2);
    CHECK(rate < bitrate * 2);
    CHECK(rate > last_rate);
    const double now = snr(x, coded.samples);
    CHECK(now > last_snr);
    last_rate = rate, last_snr = now;
    const OpusCoded again = code_opus(x, 16000, bitrate);
    CHECK(again.samples == coded.samples);
    CHECK(again.bytes == coded.bytes);
  }
  // Bitrates out of range are clamped.
  CHECK(code_opus(x, 16000, 100).bytes == code_opus(x, 16000, min_opus_bitrate).bytes);
  CHECK(code_opus(x, 16000, 1e9).bytes == code_opus(x, 16000, max_opus_bitrate).bytes);
}

TEST_CASE("Opus codes two channels together", "[training][baseline][stereo]") {
  if (!available()) return;
  for (const int rate : {16000, 48000, 44100}) {
    INFO(rate << " Hz");
    // The right channel is the left one backwards, so that neither contains the other.
    const std::vector<float> left = voice(rate, 1.5), right(left.rbegin(), left.rend());
    std::vector<float> both;
    for (size_t t = 0; t < left.size(); ++t) both.insert(both.end(), {left[t], right[t]});
    const OpusCoded coded = code_opus(both, rate, 128000, 2);
    REQUIRE(coded.samples.size() == both.size());
    std::vector<float> sides[2];
    for (size_t i = 0; i < both.size(); ++i) sides[i % 2].push_back(coded.samples[i]);
    CHECK(lag(left, sides[0], rate / 50) == 0);
    CHECK(lag(right, sides[1], rate / 50) == 0);
    CHECK(snr(left, sides[0]) > 0);
    CHECK(snr(right, sides[1]) > 0);
    // The bitrate is that of both channels: near to what one channel has at as many bits, far from twice that.
    const double bits = static_cast<double>(coded.bytes),
                 one = static_cast<double>(code_opus(left, rate, 128000).bytes);
    CHECK(bits < 1.5 * one);
    CHECK(bits > one / 1.5);
  }
  // The limits are those of a channel.
  const std::vector<float> x = voice(16000, 1);
  CHECK(code_opus(x, 16000, 1, 2).bytes == code_opus(x, 16000, 2 * min_opus_bitrate, 2).bytes);
  CHECK(code_opus(x, 16000, 1e9, 2).bytes == code_opus(x, 16000, 2 * max_opus_bitrate, 2).bytes);
  CHECK_THROWS_WITH(code_opus(std::vector<float>(3), 16000, 16000, 2), Catch::Contains("3 samples of 2 channels"));
  CHECK_THROWS_AS(code_opus(std::vector<float>(3), 16000, 16000, 3), Error);
  CHECK_THROWS_AS(code_opus(std::vector<float>(3), 16000, 16000, 0), Error);
}

TEST_CASE("Opus refuses what it cannot mean", "[training][baseline]") {
  if (!available()) return;
  const std::vector<float> x(100);
  CHECK_THROWS_AS(code_opus(x, 0, 16000), Error);
  CHECK_THROWS_AS(code_opus(x, max_sample_rate + 1, 16000), Error);
  CHECK_THROWS_AS(code_opus(x, 16000, std::nan("")), Error);
}
