// Scores of decoded audio, compared with pystoi and NumPy on signals made by formulas, and with known results.
#include "nacre/training/evaluation.h"

#include <algorithm>
#include <limits>
#include <numbers>

#include "harness.h"
#include "nacre/data/audio.h"
#include "nacre/training/intelligibility.h"

using namespace nacre;
using namespace nacre::test;
using namespace nacre::training;

namespace {

struct GoldenScore {
  int rate;
  std::string distortion;
  float parameter;
  double stoi, estoi, segmental_snr;
};
#include "golden/stoi.inc"

/// The noise of golden/make_stoi.py, exact in float.
std::vector<float> noise(size_t count) {
  uint32_t state = 12345;
  std::vector<float> out(count);
  for (float& v : out) {
    state = state * 1664525u + 1013904223u;
    v = static_cast<float>(state >> 8) * 0x1p-23f - 1.0f;
  }
  return out;
}

struct Pair {
  std::vector<float> x, y;
};

/// Syllables of voice and of noise with near silence between them, and the same distorted. golden/make_stoi.py has the
/// formulas.
Pair signals(int rate, const std::string& distortion, float parameter, double seconds = 2.5) {
  constexpr double turn = 2 * std::numbers::pi;
  const auto count = static_cast<size_t>(std::lround(seconds * rate));
  const std::vector<float> random = noise(2 * count);
  Pair p;
  for (size_t i = 0; i < count; ++i) {
    const double t = static_cast<double>(i) / rate;
    const double phase = turn * 120 * t - 20 / 0.7 * std::cos(turn * 0.7 * t),
                 formant = 900 + 700 * std::sin(turn * 1.3 * t);
    double voice = 0;
    for (int h = 1; h < 29; ++h) {
      const double away = (120 * h - formant) / 400;
      voice += (std::exp(-away * away) + 0.2 / h) * std::sin(h * phase);
    }
    const auto swell = [&](double at) { return std::pow(std::max(0.0, std::sin(turn * 2.1 * t + at)), 2); };
    const double x = 0.2 * swell(0) * voice + (0.03 * swell(2.5) + 1e-4) * static_cast<double>(random[i]);
    p.x.push_back(static_cast<float>(x));
    const float v = p.x.back();
    p.y.push_back(distortion == "noise"  ? v + parameter * random[count + i]
                  : distortion == "clip" ? std::clamp(v, -parameter, parameter)
                                         : std::floor(v / parameter + 0.5f) * parameter);
  }
  return p;
}

std::vector<float> scaled(std::vector<float> x, float gain) {
  for (float& v : x) v *= gain;
  return x;
}

}  // namespace

TEST_CASE("STOI and ESTOI are pystoi's, segmental SNR is NumPy's", "[evaluation]") {
  for (const Device device : devices()) {
    Context ctx({.device = device, .threads = 2});
    for (const GoldenScore& g : golden_scores) {
      INFO(str(device) << ", " << g.rate << " Hz, " << g.distortion << " " << g.parameter);
      const Pair p = signals(g.rate, g.distortion, g.parameter);
      const Intelligibility found = intelligibility(ctx, p.y, p.x, g.rate);
      // At 10 kHz the definition determines the result. Bands are norms of a float DFT, whose bins are off by a few
      // 2^-24 of their frame's norm. A band 40 dB below the frame is off by 1e-5 of itself in one frame, and a mean of
      // correlations over more than a thousand segments and bands by less. At other rates the resamplers differ:
      // pystoi's filter has 60 dB of rejection, so its passband ripples by 1e-3 of the amplitude.
      const double allowance = g.rate == 10000 ? 1e-5 : 1e-3;
      CHECK(std::abs(found.stoi - g.stoi) <= allowance);
      CHECK(std::abs(found.estoi - g.estoi) <= allowance);
      // Samples are equal except for the last place of float (2^-24 of them, where exp and sin differ between
      // libraries). Noise 35 dB below the signal then changes by 2^-24 x 56, and 8.7 dB times that is 3e-5.
      CHECK(std::abs(segmental_snr(p.y, p.x, g.rate) - g.segmental_snr) <= 3e-5);
    }
  }
}

TEST_CASE("Intelligibility where the answer is known", "[evaluation]") {
  Context ctx({.threads = 1});
  for (const int rate : {10000, 16000, 44100}) {
    INFO(rate << " Hz");
    const Pair p = signals(rate, "noise", 0.1f);
    // The same signal has correlations of 1, within the rounding of sums of 450 doubles. Clipping at -15 dB has no
    // effect.
    Intelligibility i = intelligibility(ctx, p.x, p.x, rate);
    CHECK(std::abs(i.stoi - 1) < 1e-12);
    CHECK(std::abs(i.estoi - 1) < 1e-12);
    // The level has no effect. Scaling by a power of two rounds nothing.
    const Intelligibility once = intelligibility(ctx, p.y, p.x, rate);
    i = intelligibility(ctx, scaled(p.y, 0.25f), p.x, rate);
    CHECK(std::abs(i.stoi - once.stoi) < 1e-12);
    CHECK(std::abs(i.estoi - once.estoi) < 1e-12);
    i = intelligibility(ctx, p.y, scaled(p.x, 0.5f), rate);
    CHECK(std::abs(i.stoi - once.stoi) < 1e-12);
    CHECK(std::abs(i.estoi - once.estoi) < 1e-12);
    // Silent output has no correlation.
    i = intelligibility(ctx, std::vector<float>(p.x.size(), 0.0f), p.x, rate);
    CHECK(i.stoi == 0);
    CHECK(i.estoi == 0);
    // More noise lowers the score.
    Intelligibility last{.stoi = 1, .estoi = 1};
    for (const float level : {0.001f, 0.01f, 0.03f, 0.1f, 0.3f, 1.0f}) {
      const Pair q = signals(rate, "noise", level);
      i = intelligibility(ctx, q.y, q.x, rate);
      CHECK(i.stoi < last.stoi);
      CHECK(i.estoi < last.estoi);
      last = i;
    }
  }
  // Independent noises. The correlation of 30 values has a standard deviation of 1 / sqrt(29), and that of a segment
  // with normalised rows and columns one of 1 / sqrt(29 x 14). 9 s have 23 segments that do not overlap. The means
  // deviate by 1 / sqrt(29 x 15 x 23) and 1 / sqrt(29 x 14 x 23), both 0.010. Six of these are allowed.
  const size_t n = 90000;
  const std::vector<float> both = noise(2 * n);
  const Intelligibility i = intelligibility(ctx, std::span(both).first(n), std::span(both).last(n), 10000);
  CHECK(std::abs(i.stoi) < 0.06);
  CHECK(std::abs(i.estoi) < 0.06);
}

TEST_CASE("Silence is cut out of both signals, as the original says", "[evaluation]") {
  Context ctx({.threads = 1});
  // Frames of 256 begin every 128 samples. A pause of whole frames, 60 dB down, is left out, whatever the decoder's
  // output there.
  std::vector<float> x = noise(20 * 1280);
  for (size_t i = 6 * 1280; i < 12 * 1280; ++i) x[i] *= 1e-3f;
  std::vector<float> quiet = x, loud = x;
  for (size_t i = 6 * 1280 + 256; i < 12 * 1280 - 256; ++i) quiet[i] = 0, loud[i] = -x[i] * 300;
  const Intelligibility a = intelligibility(ctx, quiet, x, 10000), b = intelligibility(ctx, loud, x, 10000);
  CHECK(std::abs(a.stoi - 1) < 1e-12);
  CHECK(std::abs(a.estoi - 1) < 1e-12);
  CHECK(std::abs(b.stoi - 1) < 1e-12);
  // At 20 dB down it is speech, and it was damaged.
  for (size_t i = 6 * 1280; i < 12 * 1280; ++i) x[i] *= 100;
  quiet = x;
  for (size_t i = 6 * 1280 + 256; i < 12 * 1280 - 256; ++i) quiet[i] = 0;
  CHECK(intelligibility(ctx, quiet, x, 10000).stoi < 0.9);
}

TEST_CASE("Without 31 frames of speech there is no STOI", "[evaluation]") {
  Context ctx({.threads = 1});
  // Frame f has samples 128 f .. 128 f + 255 and is left out if it ends with the last sample, so 31 frames need 4097
  // samples.
  const std::vector<float> x = noise(4097);
  const auto none = [](const Intelligibility& i) { return std::isnan(i.stoi) && std::isnan(i.estoi); };
  CHECK(intelligibility(ctx, x, x, 10000).stoi == Approx(1));
  CHECK(none(intelligibility(ctx, std::span(x).first(4096), std::span(x).first(4096), 10000)));
  for (const size_t n : {0, 1, 255, 256, 257})
    CHECK(none(intelligibility(ctx, std::span(x).first(n), std::span(x).first(n), 10000)));
  // Long and silent; long and silent except for a moment.
  std::vector<float> silent(20000, 1e-6f);
  CHECK(none(intelligibility(ctx, x, std::span(silent).first(x.size()), 10000)));
  std::copy_n(x.begin(), 3000, silent.begin() + 5000);
  CHECK(none(intelligibility(ctx, silent, silent, 10000)));
  // There are no bands above 4 kHz.
  const std::vector<float> longer = noise(20000);
  CHECK(intelligibility(ctx, longer, longer, 8000).stoi == Approx(1));
  CHECK(none(intelligibility(ctx, longer, longer, 7999)));
  CHECK_THROWS_AS(intelligibility(ctx, x, longer, 10000), Error);
}

TEST_CASE("Segmental SNR is a mean of clamped decibels", "[evaluation]") {
  const std::vector<float> x = noise(16000);
  // An error that is the signal times a power of two is exact in every frame.
  const double half = 20 * std::log10(2.0);
  CHECK(segmental_snr(scaled(x, 0.5f), x, 16000) == Approx(half));
  CHECK(segmental_snr(scaled(x, 0.96875f), x, 16000) == Approx(5 * half));
  CHECK(segmental_snr(std::vector<float>(x.size()), x, 16000) == Approx(0).margin(1e-12));
  CHECK(segmental_snr(scaled(x, 3), x, 16000) == Approx(-half));
  CHECK(segmental_snr(x, x, 16000) == 35);
  CHECK(segmental_snr(scaled(x, 1.0009765625f), x, 16000) == 35);  // 60 dB
  CHECK(segmental_snr(scaled(x, 17), x, 16000) == -10);
  // Frames have 480 samples with a hop of 120, so 1200 samples have 7 frames. Frames 0 to 2 lie in the first 720
  // samples, which are exact. The rest of the original is zero. Frame 6 has only such samples and counts -10. The
  // frames between have both.
  std::vector<float> a(x.begin(), x.begin() + 1200), b = a;
  std::fill(a.begin() + 720, a.end(), 0.0f);
  double between = 0;
  for (size_t first = 360; first < 720; first += 120) {
    double signal = 0, error = 0;
    for (size_t n = 0; n < 480; ++n) {
      const double w = 0.5 - 0.5 * std::cos(2 * std::numbers::pi * static_cast<double>(n + 1) / 481);
      signal += std::pow(w * static_cast<double>(a[first + n]), 2);
      error += std::pow(w * static_cast<double>(b[first + n] - a[first + n]), 2);
    }
    between += std::clamp(10 * std::log10(signal / error), -10.0, 35.0);
  }
  CHECK(segmental_snr(b, a, 16000) == Approx((3 * 35 + between - 10) / 7));
  // Silence for silence is right. A clip shorter than a frame has no value.
  CHECK(segmental_snr(std::vector<float>(1200), std::vector<float>(1200), 16000) == 35);
  CHECK(segmental_snr(std::span(x).first(480), std::span(x).first(480), 16000) == 35);
  CHECK(std::isnan(segmental_snr(std::span(x).first(479), std::span(x).first(479), 16000)));
  CHECK_THROWS_AS(segmental_snr(a, x, 16000), Error);
  CHECK_THROWS_AS(segmental_snr(a, b, 100), Error);
}

TEST_CASE("Means are over the clips that have a value", "[evaluation]") {
  Context ctx({.threads = 1});
  const Pair p = signals(16000, "noise", 0.1f, 1);
  Scores scores;
  CHECK(std::isnan(scores.stoi()));
  const ClipScore speech = scores.add(score_clip(ctx, p.x, p.y, 16000));
  CHECK(speech.stoi == intelligibility(ctx, p.y, p.x, 16000).stoi);
  CHECK(speech.segmental_snr == segmental_snr(p.y, p.x, 16000));
  // Clips too short for STOI, then too short for segmental SNR, and silent ones.
  const ClipScore syllable = scores.add(score_clip(ctx, std::span(p.x).first(4000), std::span(p.y).first(4000), 16000));
  const ClipScore click =
      scores.add(score_clip(ctx, std::span(p.x).subspan(2000, 300), std::span(p.y).subspan(2000, 300), 16000));
  const ClipScore silence = scores.add(score_clip(ctx, std::vector<float>(16000), std::span(p.y).first(16000), 16000));
  CHECK(std::isnan(syllable.stoi));
  CHECK(std::isnan(syllable.estoi));
  CHECK(std::isfinite(syllable.segmental_snr));
  CHECK(std::isnan(click.segmental_snr));
  CHECK(std::isfinite(click.snr));
  CHECK(silence.silent);
  CHECK(std::isnan(silence.stoi));
  CHECK(std::isnan(silence.segmental_snr));
  CHECK(scores.stoi() == speech.stoi);
  CHECK(scores.estoi() == speech.estoi);
  CHECK(scores.segmental_snr() == (speech.segmental_snr + syllable.segmental_snr) / 2);
  CHECK(scores.snr() == Approx((speech.snr + syllable.snr + click.snr) / 3));
  CHECK(scores.mel() == Approx((speech.mel + syllable.mel + click.mel + silence.mel) / 4));
  // A decoder that fails must be reported.
  std::vector<float> broken = p.y;
  broken[100] = std::numeric_limits<float>::quiet_NaN();
  scores.add(score_clip(ctx, p.x, broken, 16000));
  CHECK(std::isnan(scores.snr()));
  CHECK_THROWS_AS(score_clip(ctx, p.x, std::span(p.y).first(100), 16000), Error);
}
