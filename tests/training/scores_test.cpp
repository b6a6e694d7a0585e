// Figures that users read, computed by hand: scores of signals whose result is known, and the sets that means are taken
// over. Nothing here is compared with the library itself.
#include <array>
#include <cmath>
#include <utility>

#include "harness.h"
#include "nacre/codec/windowed.h"
#include "nacre/random.h"
#include "nacre/training/evaluation.h"
#include "reference/spectral.h"

using namespace nacre;
using namespace nacre::test;
using namespace nacre::training;

namespace {

constexpr int rate = 16000;
/// all: no error, at least 120 dB, the maximum that means use. none: its negative, no part of the signal is left.
constexpr double all = 120, none = -120;

/// a(t) = + - + - ... and b(t) = + + - - ... have means of 0 and powers of 1, and sum a b = 0 over every four samples.
/// With factors that are sums of powers of two, every sum below is exact in double.
std::vector<float> mixed(float of_a, float of_b, float offset, size_t samples = 4096) {
  std::vector<float> x(samples);
  for (size_t t = 0; t < samples; ++t)
    x[t] = of_a * (t % 2 == 0 ? 1.0f : -1.0f) + of_b * (t % 4 < 2 ? 1.0f : -1.0f) + offset;
  return x;
}

/// Noise under an envelope that rises and falls several times, so that frames differ.
std::vector<float> swelling_noise(size_t samples, uint64_t stream) {
  std::vector<float> x(samples);
  const Philox draw{17, stream};
  for (size_t t = 0; t < samples; ++t)
    x[t] = static_cast<float>((2 * draw.uniform(t) - 1) * (0.5 + 0.45 * std::sin(0.011 * static_cast<double>(t))));
  return x;
}

std::vector<double> doubles(const std::vector<float>& x) { return {x.begin(), x.end()}; }

/// Within the last place of log10 and of a factor. All sums are exact.
Approx exact(double value) { return Approx(value).epsilon(1e-14).margin(1e-14); }

CodecConfig small(QuantizerKind kind) {
  CodecConfig c;
  c.encoder_dim = 4, c.decoder_dim = 16, c.dilations = {1};
  c.encoder_rates = {2, 4}, c.decoder_rates = {4, 2};
  c.latent_dim = 6;
  c.quantizer = kind, c.metric = kind == QuantizerKind::ema ? VqMetric::euclidean : VqMetric::cosine;
  c.n_codebooks = 3, c.codebook_size = 16, c.codebook_dim = 4;
  return c;
}

}  // namespace

TEST_CASE("scores: SNR and SI-SDR of signals whose powers are known", "[evaluation]") {
  Context ctx({.threads = 1});
  struct Known {
    const char* what;
    std::array<float, 3> x, y;  // factors of a and b, and the offset
    double snr, si_sdr;
  };
  const double third = 10 * std::log10(2.0);
  for (
      const Known& k : {
          // Power 1/4 over an error of 1/256, which is orthogonal to the signal. The ratio is 64 for both scores, six
          // times 3.01 dB.
          Known{"an error beside the signal", {0.5f, 0, 0}, {0.5f, 0.0625f, 0}, 6 * third, 6 * third},
          // SNR fits no gain: half the level is an error of half the signal. SI-SDR fits the gain, and no error is
          // left.
          Known{"half as loud", {0.5f, 0, 0}, {0.25f, 0, 0}, 2 * third, all},
          Known{"twice as loud", {0.5f, 0, 0}, {1, 0, 0}, 0, all},
          Known{"the other sign", {0.5f, 0, 0}, {-0.5f, 0, 0}, -2 * third, all},
          // The error a/4 - b/16 gives 1/4 over 1/16 + 1/256 = 64/17. With gain 1/2, the target gives 1/16 over 1/256.
          Known{"half as loud, and an error", {0.5f, 0, 0}, {0.25f, 0.0625f, 0}, 10 * std::log10(64.0 / 17), 4 * third},
          // SNR includes the means: 1/4 + 1/16 over (3/8)^2 + 1/256 = 80/37. SI-SDR removes both.
          Known{"other means", {0.5f, 0, 0.25f}, {0.5f, 0.0625f, -0.125f}, 10 * std::log10(80.0 / 37), 6 * third},
          // Only one of the means: 1/4 over 1/64 + 1/256 is 64/5.
          Known{"an offset of the output", {0.5f, 0, 0}, {0.5f, 0.0625f, 0.125f}, 10 * std::log10(64.0 / 5), 6 * third},
          // 5/16 over 1/16 + 1/256 is 80/17.
          Known{"an offset of the input", {0.5f, 0, 0.25f}, {0.5f, 0.0625f, 0}, 10 * std::log10(80.0 / 17), 6 * third},
          Known{"nothing came out", {0.5f, 0, 0}, {0, 0, 0}, 0, none},
          Known{"something that has nothing of the signal", {0.5f, 0, 0}, {0, 0.5f, 0}, -third, none},
          Known{"the same", {0.5f, 0.25f, 0.125f}, {0.5f, 0.25f, 0.125f}, all, all},
      }) {
    INFO(k.what);
    const ClipScore s = score_clip(ctx, mixed(k.x[0], k.x[1], k.x[2]), mixed(k.y[0], k.y[1], k.y[2]), rate);
    CHECK_FALSE(s.silent);
    for (const auto& [found, expected] : {std::pair{s.snr, k.snr}, std::pair{s.si_sdr, k.si_sdr}}) {
      if (expected == all)
        CHECK(found >= all);
      else if (expected == none)
        CHECK(found <= none);
      else
        CHECK(found == exact(expected));
    }
  }
}

TEST_CASE("scores: level, length and silence of a clip", "[evaluation]") {
  Context ctx({.threads = 1});
  // Powers about the means: 1/4, and 1/4 + 1/256 = 65/256.
  const ClipScore s = score_clip(ctx, mixed(0.5f, 0, 0.25f), mixed(0.5f, 0.0625f, -0.125f), rate);
  CHECK(s.input_mean == 0.25);
  CHECK(s.input_std == 0.5);
  CHECK(s.output_mean == -0.125);
  CHECK(s.output_std == exact(std::sqrt(65.0) / 16));
  CHECK(s.seconds == 0.256);
  CHECK(score_clip(ctx, mixed(0.5f, 0, 0, 4000), mixed(0.5f, 0, 0, 4000), 8000).seconds == 0.5);
  // A signal that stays within 1e-4 of its mean is silence, whatever the output is.
  const std::vector<float> offset(4096, 0.3f);
  CHECK(score_clip(ctx, offset, std::vector<float>(4096, 0), rate).silent);
  CHECK(score_clip(ctx, mixed(0.99e-5f, 0, 0), mixed(0.5f, 0, 0), rate).silent);
  CHECK_FALSE(score_clip(ctx, mixed(1e-3f, 0, 0), mixed(0, 0, 0), rate).silent);
}

TEST_CASE("scores: means are over the clips that count", "[evaluation]") {
  const auto clip = [](double seconds, bool silent, double at) {
    ClipScore s;
    s.seconds = seconds, s.silent = silent;
    s.snr = at + 1, s.si_sdr = at + 2, s.segmental_snr = at + 3, s.mel = at + 4, s.stft = at + 5;
    s.stoi = at + 6, s.estoi = at + 7;
    s.encode_seconds = 0.5, s.decode_seconds = 0.25;
    return s;
  };
  Scores scores;
  scores.add(clip(1, false, 10));
  scores.add(clip(5, false, 20));
  // Silence has no SNR of any kind and no STOI. Its decoded sound is audible, so its spectral distances count.
  ClipScore silence = clip(2, true, 900);
  silence.si_sdr = silence.segmental_snr = silence.stoi = silence.estoi = std::nan("");
  scores.add(silence);
  // All files have the same weight, however long they are.
  CHECK(scores.snr() == 16);
  CHECK(scores.si_sdr() == 17);
  CHECK(scores.segmental_snr() == 18);
  CHECK(scores.stoi() == 21);
  CHECK(scores.estoi() == 22);
  CHECK(scores.mel() == exact((14 + 24 + 904) / 3.0));
  CHECK(scores.stft() == exact((15 + 25 + 905) / 3.0));
  // Speeds are those of all audio together.
  CHECK(scores.seconds() == 8);
  CHECK(scores.encode_speed() == exact(8 / 1.5));
  CHECK(scores.decode_speed() == exact(8 / 0.75));
  Scores silent;
  silent.add(silence);
  CHECK(std::isnan(silent.snr()));
  CHECK(std::isnan(silent.si_sdr()));
}

TEST_CASE("scores: spectral distances are DAC's, against double precision", "[evaluation]") {
  // Written from DAC's evaluation. Hops are a quarter of the window. Mel bands use logarithms of magnitudes. The STFT
  // uses magnitudes and the logarithms of their squares. Values below 1e-5 count as 1e-5.
  const auto expected = [](const std::vector<float>& y, const std::vector<float>& x, int64_t sample_rate) {
    // Signals too short to reflect half of the longest window are padded with zeros.
    const StftPadding padding = x.size() > 1024 ? StftPadding::reflect : StftPadding::zero;
    SpectralConfig mel{.sample_rate = sample_rate, .scales = {}, .floor = 1e-5f, .log_power = 1, .padding = padding};
    mel.scales = {
        {.window = 32, .hop = 8, .mels = 5, .mel_log = 1},      {.window = 64, .hop = 16, .mels = 10, .mel_log = 1},
        {.window = 128, .hop = 32, .mels = 20, .mel_log = 1},   {.window = 256, .hop = 64, .mels = 40, .mel_log = 1},
        {.window = 512, .hop = 128, .mels = 80, .mel_log = 1},  {.window = 1024, .hop = 256, .mels = 160, .mel_log = 1},
        {.window = 2048, .hop = 512, .mels = 320, .mel_log = 1}};
    SpectralConfig stft{.sample_rate = sample_rate, .scales = {}, .floor = 1e-5f, .log_power = 2, .padding = padding};
    stft.scales = {{.window = 2048, .hop = 512, .magnitude = 1, .log_magnitude = 1},
                   {.window = 512, .hop = 128, .magnitude = 1, .log_magnitude = 1}};
    const auto n = static_cast<int64_t>(x.size());
    const reference::Spectral a = reference::spectral_loss(mel, 1, n, doubles(y), doubles(x), {}, false),
                              b = reference::spectral_loss(stft, 1, n, doubles(y), doubles(x), {}, false);
    struct {
      double mel, mel_error, stft, stft_error;
    } all{a.losses[1], a.loss_errors[1], b.losses[0], b.loss_errors[0]};
    return all;
  };
  for (const Device device : devices()) {
    Context ctx({.device = device, .threads = 2});
    for (const int64_t sample_rate : {16000, 44100})
      for (const size_t samples : {2, 31, 600, 1024, 1025, 2500}) {
        if (device.kind != Device::cpu && samples != 600 && samples != 1025)
          continue;  // an emulated device takes long; this covers both paddings
        INFO(str(device) << ", " << samples << " samples at " << sample_rate << " Hz");
        // In the output, the second half is quieter, and all of it has independent noise.
        const std::vector<float> x = swelling_noise(samples, 1), other = swelling_noise(samples, 2);
        std::vector<float> y(samples);
        for (size_t t = 0; t < samples; ++t) y[t] = (t < samples / 2 ? 0.9f : 0.3f) * x[t] + 0.1f * other[t];
        const SpectralDistance found = spectral_distance(ctx, y, x, sample_rate);
        const auto e = expected(y, x, sample_rate);
        // reference/spectral.h computes the possible error of a float transform beside each bin.
        CHECK(std::fabs(found.mel - e.mel) <= e.mel_error);
        CHECK(std::fabs(found.stft - e.stft) <= e.stft_error);
        const ClipScore s = score_clip(ctx, x, y, sample_rate);
        CHECK(s.mel == found.mel);
        CHECK(s.stft == found.stft);
      }
    if (device.kind != Device::cpu) continue;
    // A tenth of the signal is one decade less in every band of every frame: 1 for each of seven scales. The STFT's
    // logarithms of squares give 2 for each of two scales, and its magnitudes 0.9 of their mean. This holds if a tenth
    // is above the floor of 1e-5. The narrowest band has a mean of 0.005, a bin of the STFT 8 or 16, and none of these
    // 7000 values is below a thousandth of its mean.
    std::vector<float> x(4096), tenth(x.size());
    const Philox draw{5, 0};
    double magnitudes = 0;
    for (size_t t = 0; t < x.size(); ++t)
      x[t] = static_cast<float>(2 * draw.uniform(t) - 1),
      tenth[t] = static_cast<float>(0.1 * static_cast<double>(x[t]));
    const SpectralDistance d = spectral_distance(ctx, tenth, x, rate);
    for (const int64_t window : {2048, 512}) {
      const StftGeometry g{window, window / 4, StftPadding::reflect};
      const int64_t n = static_cast<int64_t>(x.size()), frames = 1 + n / g.hop, bins = window / 2 + 1;
      const std::vector<double> wide = doubles(x);
      for (int64_t f = 0; f < frames; ++f) {
        const auto spectrum = reference::dft(reference::frame(wide.data(), n, g, f));
        for (int64_t k = 0; k < bins; ++k)
          magnitudes += std::abs(spectrum[static_cast<size_t>(k)]) / static_cast<double>(frames * bins);
      }
    }
    // The error of the transforms, and the rounding of a tenth of each sample: 2^-24 of each magnitude.
    const auto e = expected(tenth, x, rate);
    CHECK(std::fabs(d.mel - 7) <= e.mel_error + 7 * 0x1p-24);
    CHECK(std::fabs(d.stft - (4 + 0.9 * magnitudes)) <= e.stft_error + (4 + magnitudes) * 0x1p-24);
    CHECK(spectral_distance(ctx, x, x, rate).mel == 0);
    CHECK(spectral_distance(ctx, x, x, rate).stft == 0);
  }
}

TEST_CASE("scores: an evaluation counts codes and samples over all clips", "[evaluation]") {
  for (const QuantizerKind kind : {QuantizerKind::ema, QuantizerKind::factorised}) {
    Context ctx({.threads = 1});
    const CodecConfig config = small(kind);
    Codec codec(ctx, config);
    codec.parameters().initialise(ctx, 3);
    // The last stage has one code 16 times, and the lowest index wins every tie.
    const std::string one =
        kind == QuantizerKind::ema ? "quantizer.quantizers.2.codebook.embed" : "quantizer.quantizers.2.codebook.weight";
    const int64_t d = config.code_dim();
    REQUIRE(codec.parameters().set_tensor(ctx, one, {16, d}, std::vector<float>(static_cast<size_t>(16 * d), 0.25f)));
    codec.parameters().refresh(ctx);

    Evaluation e(codec);
    std::vector<double> counts(3 * 16);
    double n = 0, sum_x = 0, sum_y = 0, sum_xx = 0, sum_yy = 0;
    for (const size_t samples : {1200, 345}) {
      const std::vector<float> x = swelling_noise(samples, samples);
      std::vector<int32_t> codes;
      WindowedEncoder encoder(codec,
                              [&](View<const int32_t> c, float) { codes.insert(codes.end(), c.begin(), c.end()); });
      encoder.push(x);
      encoder.finish();
      REQUIRE(codes.size() == (samples + 7) / 8 * 3);
      for (size_t i = 0; i < codes.size(); ++i) ++counts[i % 3 * 16 + static_cast<size_t>(codes[i])];
      std::vector<float> y, told;
      WindowedDecoder decoder(codec,
                              [&](std::span<const float> piece) { y.insert(y.end(), piece.begin(), piece.end()); });
      decoder.push(codes);
      decoder.finish();
      y.resize(samples);
      const ClipScore score = e.add("clip" + std::to_string(samples), x, &told);
      CHECK(score.name == "clip" + std::to_string(samples));
      CHECK(told == y);
      double signal = 0, noise = 0;
      for (size_t t = 0; t < samples; ++t) {
        const double a = x[t], b = y[t];
        signal += a * a, noise += (a - b) * (a - b);
        ++n, sum_x += a, sum_y += b, sum_xx += a * a, sum_yy += b * b;
      }
      // Sums of at most 1545 doubles are exact to 2^-42 of themselves in any order. 4.3 dB times that is below 1e-11.
      CHECK(score.snr == Approx(10 * std::log10(signal / noise)).margin(1e-11));
    }
    CHECK(e.clips().size() == 2);
    CHECK(e.input_mean() == Approx(sum_x / n).margin(1e-11));
    CHECK(e.output_mean() == Approx(sum_y / n).margin(1e-11));
    CHECK(e.input_std() == Approx(std::sqrt(sum_xx / n - sum_x / n * (sum_x / n))).margin(1e-11));
    CHECK(e.output_std() == Approx(std::sqrt(sum_yy / n - sum_y / n * (sum_y / n))).margin(1e-11));

    // exp of the entropy is the product of p^-p, which computes the same number in another way.
    const std::vector<double> usage = e.usage(), perplexity = e.perplexity();
    REQUIRE(usage.size() == 3);
    REQUIRE(perplexity.size() == 3);
    const double frames = 150 + 44;
    for (size_t book = 0; book < 3; ++book) {
      double product = 1, used = 0;
      for (size_t k = 0; k < 16; ++k) {
        const double p = counts[book * 16 + k] / frames;
        if (p > 0) product *= std::pow(p, -p), used += 1;
      }
      INFO("codebook " << book << " of kind " << static_cast<int>(kind));
      CHECK(usage[book] == used / 16);
      CHECK(perplexity[book] == exact(product));
    }
    CHECK(perplexity[0] > 2);
    CHECK(usage[2] == 1.0 / 16);
    CHECK(perplexity[2] == 1);
  }
}

TEST_CASE("scores: an evaluation of segments decodes each with its scale, and counts them", "[evaluation][stereo]") {
  Context ctx({.threads = 1});
  // Two channels, a hop of 10, and segments of 200 samples from 170 to 170.
  CodecConfig config = CodecConfig::named("encodec-48k");
  config.encoder_dim = 4, config.decoder_dim = 16, config.latent_dim = 6;
  config.encoder_rates = {2, 5}, config.decoder_rates = {5, 2};
  config.n_codebooks = 3, config.codebook_size = 16, config.codebooks_drawn = {};
  config.segment = 200, config.segment_stride = 170;
  Codec codec(ctx, config);
  codec.parameters().initialise(ctx, 3);
  codec.parameters().refresh(ctx);

  Evaluation e(codec);
  std::vector<double> counts(3 * 16);
  double n = 0, sum_x = 0, sum_y = 0;
  for (const size_t samples : {1200, 345}) {
    std::vector<float> x;
    const std::vector<float> left = swelling_noise(samples, samples), right = swelling_noise(samples, 7);
    for (size_t t = 0; t < samples; ++t) x.insert(x.end(), {left[t], 0.3f * right[t]});
    std::vector<std::pair<std::vector<int32_t>, float>> segments;
    WindowedEncoder encoder(codec, [&](View<const int32_t> c, float scale) {
      segments.push_back({{c.begin(), c.end()}, scale});
    });
    encoder.push(x);
    encoder.finish();
    std::vector<float> y, told;
    WindowedDecoder decoder(codec,
                            [&](std::span<const float> piece) { y.insert(y.end(), piece.begin(), piece.end()); });
    int64_t frames = 0;
    for (const auto& [codes, scale] : segments) {
      CHECK(scale != 1);
      decoder.push(codes, scale);
      frames += static_cast<int64_t>(codes.size() / 3);
      for (size_t i = 0; i < codes.size(); ++i) ++counts[i % 3 * 16 + static_cast<size_t>(codes[i])];
    }
    decoder.finish();
    y.resize(x.size());
    const ClipScore score = e.add("clip", x, &told);
    CHECK((told == y));
    CHECK(score.scales == static_cast<int64_t>((samples + 169) / 170));
    CHECK(score.frames == frames);
    CHECK(score.seconds == static_cast<double>(samples) / 48000);
    // Segments overlap by 3 frames.
    CHECK(score.frames > static_cast<int64_t>(samples / 10));
    double snr = 0;
    for (size_t c = 0; c < 2; ++c) {
      double signal = 0, noise = 0;
      for (size_t i = c; i < x.size(); i += 2) {
        const double a = x[i], b = y[i];
        signal += a * a, noise += (a - b) * (a - b);
        ++n, sum_x += a, sum_y += b;
      }
      snr += 10 * std::log10(signal / noise) / 2;
    }
    CHECK(score.snr == Approx(snr).margin(1e-11));  // as above
  }
  CHECK(e.input_mean() == Approx(sum_x / n).margin(1e-11));
  CHECK(e.output_mean() == Approx(sum_y / n).margin(1e-11));
  for (size_t book = 0; book < 3; ++book) {
    double used = 0;
    for (size_t k = 0; k < 16; ++k) used += counts[book * 16 + k] > 0;
    CHECK(e.usage()[book] == used / 16);
  }
}

TEST_CASE("scores: an evaluation with the first codebooks", "[evaluation][codebooks]") {
  Context ctx({.threads = 1});
  Codec codec(ctx, small(QuantizerKind::factorised));
  codec.parameters().initialise(ctx, 3);
  const std::vector<float> x = swelling_noise(1200, 1);
  Evaluation all(codec);
  std::vector<float> whole;
  all.add("x", x, &whole);
  CHECK(all.usage().size() == 3);
  for (int64_t n = 1; n <= 3; ++n) {
    INFO(n);
    std::vector<int32_t> codes;
    WindowedEncoder encoder(
        codec, [&](View<const int32_t> c, float) { codes.insert(codes.end(), c.begin(), c.end()); }, 0, n);
    encoder.push(x);
    encoder.finish();
    std::vector<float> y, told;
    WindowedDecoder decoder(
        codec, [&](std::span<const float> piece) { y.insert(y.end(), piece.begin(), piece.end()); }, 0, n);
    decoder.push(codes);
    decoder.finish();
    y.resize(x.size());
    Evaluation some(codec, n);
    some.add("x", x, &told);
    CHECK((told == y));
    CHECK((told == whole) == (n == 3));
    REQUIRE(some.usage().size() == static_cast<size_t>(n));
    REQUIRE(some.perplexity().size() == static_cast<size_t>(n));
    for (size_t i = 0; i < static_cast<size_t>(n); ++i) {
      CHECK(some.usage()[i] == all.usage()[i]);
      CHECK(some.perplexity()[i] == all.perplexity()[i]);
    }
  }
  CHECK_THROWS_WITH(Evaluation(codec, 4), "Evaluation: codebooks is 4, expected 1 to 3, or 0 for all");
}
