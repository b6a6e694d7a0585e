// Scores of clips that are too long to be scored at once, and clips without a score: constants, single samples, copies.
#include <cmath>
#include <numbers>

#include "catch.h"
#include "nacre/random.h"
#include "nacre/training/evaluation.h"
#include "nacre/training/intelligibility.h"

using namespace nacre;
using namespace nacre::training;

namespace {

constexpr int64_t rate = 8000;  // the least rate that has a STOI

struct Pair {
  std::vector<float> x, y;
  std::span<const float> original(int64_t from, int64_t to) const { return part(x, from, to); }
  std::span<const float> decoded(int64_t from, int64_t to) const { return part(y, from, to); }
  static std::span<const float> part(const std::vector<float>& v, int64_t from, int64_t to) {
    return std::span(v).subspan(static_cast<size_t>(from * rate), static_cast<size_t>((to - from) * rate));
  }
};

/// Harmonics with a rising level, and noise whose level increases every second.
Pair sound(int64_t seconds, double offset = 0) {
  const Philox noise{5, 5};
  Pair p;
  for (int64_t i = 0; i < seconds * rate; ++i) {
    const double t = static_cast<double>(i) / rate, turn = 2 * std::numbers::pi;
    const double v =
        0.3 * std::pow(std::sin(turn * 1.1 * t), 2) * (std::sin(turn * 180 * t) + 0.5 * std::sin(turn * 1400 * t));
    p.x.push_back(static_cast<float>(v + offset));
    p.y.push_back(p.x.back() +
                  static_cast<float>((0.01 + 0.001 * t) * (noise.uniform(static_cast<uint64_t>(i)) - 0.5)));
  }
  return p;
}

CodecConfig tiny_codec() {
  CodecConfig c;
  c.sample_rate = rate;
  c.encoder_dim = 4, c.decoder_dim = 8, c.dilations = {1};
  c.encoder_rates = {8}, c.decoder_rates = {8};
  c.n_codebooks = 2, c.codebook_size = 16, c.codebook_dim = 4;
  return c;
}

std::vector<float> interleaved(const std::vector<float>& left, const std::vector<float>& right) {
  std::vector<float> both;
  for (size_t t = 0; t < left.size(); ++t) both.insert(both.end(), {left[t], right[t]});
  return both;
}

bool same(double a, double b) { return a == b || (std::isnan(a) && std::isnan(b)); }
void check_same(const ClipScore& a, const ClipScore& b) {
  for (double ClipScore::*figure :
       {&ClipScore::seconds, &ClipScore::snr, &ClipScore::si_sdr, &ClipScore::mel, &ClipScore::stft,
        &ClipScore::segmental_snr, &ClipScore::stoi, &ClipScore::estoi, &ClipScore::input_mean, &ClipScore::input_std,
        &ClipScore::output_mean, &ClipScore::output_std})
    CHECK(same(a.*figure, b.*figure));
}

}  // namespace

TEST_CASE("a clip of 30 s is scored whole", "[evaluation]") {
  Context ctx({.threads = 1});
  const Pair p = sound(30);
  const ClipScore s = score_clip(ctx, p.x, p.y, rate);
  CHECK(s.stoi == intelligibility(ctx, p.y, p.x, rate).stoi);
  CHECK(s.segmental_snr == segmental_snr(p.y, p.x, rate));
  const SpectralDistance d = spectral_distance(ctx, p.y, p.x, rate);
  CHECK(s.mel == d.mel);
  CHECK(s.stft == d.stft);
}

TEST_CASE("a longer clip has the SNR of the whole, and means of its pieces for the rest", "[evaluation]") {
  Context ctx({.threads = 1});
  // 55 s are split into 20, 20 and 15 s. The offset makes the removal of means matter.
  const Pair p = sound(55, 0.25);
  const ClipScore s = score_clip(ctx, p.x, p.y, rate);
  const ClipScore parts[] = {score_clip(ctx, p.original(0, 20), p.decoded(0, 20), rate),
                             score_clip(ctx, p.original(20, 40), p.decoded(20, 40), rate),
                             score_clip(ctx, p.original(40, 55), p.decoded(40, 55), rate)};
  const auto mean = [&](double ClipScore::*v) { return (20 * parts[0].*v + 20 * parts[1].*v + 15 * parts[2].*v) / 55; };
  // The same operations on three numbers in another order: only rounding of doubles differs.
  for (double ClipScore::*v :
       {&ClipScore::segmental_snr, &ClipScore::stoi, &ClipScore::estoi, &ClipScore::mel, &ClipScore::stft})
    CHECK(s.*v == Approx(mean(v)).epsilon(1e-13));
  CHECK(parts[0].snr > parts[2].snr + 3);  // so that the score of the whole differs from the mean
  // Computed in two passes, as in the definitions.
  const auto n = static_cast<double>(p.x.size());
  double mx = 0, my = 0, power = 0, noise = 0, energy = 0, dot = 0, target = 0, rest = 0;
  for (size_t i = 0; i < p.x.size(); ++i) mx += static_cast<double>(p.x[i]) / n, my += static_cast<double>(p.y[i]) / n;
  for (size_t i = 0; i < p.x.size(); ++i) {
    const double x = p.x[i], y = p.y[i];
    power += x * x, noise += (x - y) * (x - y), energy += (x - mx) * (x - mx), dot += (x - mx) * (y - my);
  }
  for (size_t i = 0; i < p.x.size(); ++i) {
    const double a = dot / energy * (static_cast<double>(p.x[i]) - mx), b = static_cast<double>(p.y[i]) - my;
    target += a * a, rest += (b - a) * (b - a);
  }
  // The error of sums of 440000 doubles is at most 440000 x 2^-53 = 5e-11 of themselves. SI-SDR subtracts values that
  // are 300 times as large as the difference. The limit is 8.7 dB times that.
  CHECK(std::abs(s.snr - 10 * std::log10(power / noise)) < 1e-9);
  CHECK(std::abs(s.si_sdr - 10 * std::log10(target / rest)) < 8.7 * 300 * 1e-10);
  CHECK(s.input_mean == Approx(mx).epsilon(1e-9));
  CHECK(s.output_std == Approx(std::sqrt((target + rest) / n)).epsilon(1e-9));
  CHECK(s.seconds == 55);

  SECTION("a silent piece counts as silent frames do, and has no STOI") {
    Pair q = p;
    for (int64_t i = 0; i < 20 * rate; ++i) q.x[static_cast<size_t>(i)] = 0;
    const ClipScore t = score_clip(ctx, q.x, q.y, rate);
    CHECK(!t.silent);
    CHECK(t.stoi == Approx((20 * parts[1].stoi + 15 * parts[2].stoi) / 35).epsilon(1e-13));
    CHECK(t.segmental_snr ==
          Approx((20 * -10 + 20 * parts[1].segmental_snr + 15 * parts[2].segmental_snr) / 55).epsilon(1e-13));
  }
}

TEST_CASE("a clip of two equal channels has the score of one", "[evaluation][stereo]") {
  Context ctx({.threads = 1});
  for (const int64_t seconds : {0, 2, 43}) {
    INFO(seconds << " s");
    const Pair p = sound(seconds, 0.01);
    check_same(score_clip(ctx, interleaved(p.x, p.x), interleaved(p.y, p.y), rate, 2), score_clip(ctx, p.x, p.y, rate));
  }
  CHECK_THROWS_AS(score_clip(ctx, std::vector<float>(3), std::vector<float>(3), rate, 2), Error);
  CHECK_THROWS_AS(score_clip(ctx, std::vector<float>(4), std::vector<float>(6), rate, 2), Error);
  CHECK_THROWS_AS(score_clip(ctx, {}, {}, rate, 0), Error);
}

TEST_CASE("a figure of two channels is the mean over those that have it", "[evaluation][stereo]") {
  Context ctx({.threads = 1});
  for (const int64_t seconds : {2, 43}) {
    INFO(seconds << " s");
    const Pair a = sound(seconds, 0.01);
    Pair b = sound(seconds);
    for (size_t t = 0; t < b.x.size(); ++t) b.x[t] *= 0.5f, b.y[t] = 0.25f * b.y[t] + 0.1f;
    const auto n = a.x.size();
    const auto both = [&](const Pair& l, const Pair& r) {
      return score_clip(ctx, interleaved(l.x, r.x), interleaved(l.y, r.y), rate, 2);
    };
    const ClipScore s = both(a, b), left = score_clip(ctx, a.x, a.y, rate), right = score_clip(ctx, b.x, b.y, rate);
    CHECK(s.seconds == static_cast<double>(seconds));
    for (double ClipScore::*figure : {&ClipScore::snr, &ClipScore::si_sdr, &ClipScore::mel, &ClipScore::stft,
                                      &ClipScore::segmental_snr, &ClipScore::stoi, &ClipScore::estoi}) {
      CHECK(s.*figure == (left.*figure + right.*figure) / 2);
      CHECK(left.*figure != right.*figure);
    }
    // Levels of all samples, in two passes. Means of up to 688000 values below 1 are within 688000 x 2^-53 = 8e-11 of
    // the exact ones, and the root of a variance above 0.01 is within 5 times that.
    const auto levels = [&](const std::vector<float>& l, const std::vector<float>& r) {
      double sum = 0, squares = 0;
      for (size_t t = 0; t < n; ++t) sum += static_cast<double>(l[t]) + static_cast<double>(r[t]);
      const double mean = sum / static_cast<double>(2 * n);
      for (size_t t = 0; t < n; ++t)
        for (const float v : {l[t], r[t]}) squares += (static_cast<double>(v) - mean) * (static_cast<double>(v) - mean);
      return std::pair(mean, std::sqrt(squares / static_cast<double>(2 * n)));
    };
    const auto [in_mean, in_std] = levels(a.x, b.x);
    const auto [out_mean, out_std] = levels(a.y, b.y);
    CHECK(s.input_mean == Approx(in_mean).margin(5e-10));
    CHECK(s.input_std == Approx(in_std).margin(5e-10));
    CHECK(s.output_mean == Approx(out_mean).margin(5e-10));
    CHECK(s.output_std == Approx(out_std).margin(5e-10));

    // A silent channel has no SNR of any kind and no STOI, but spectral distances.
    Pair silent = a;
    std::fill(silent.x.begin(), silent.x.end(), 0.0f);
    const ClipScore one = both(silent, a), nothing = score_clip(ctx, silent.x, silent.y, rate);
    CHECK_FALSE(one.silent);
    CHECK(one.snr == left.snr);
    CHECK(one.si_sdr == left.si_sdr);
    CHECK(one.segmental_snr == left.segmental_snr);
    CHECK(one.stoi == left.stoi);
    CHECK(one.mel == (nothing.mel + left.mel) / 2);
    const ClipScore none = both(silent, silent);
    CHECK(none.silent);
    CHECK(none.snr == nothing.snr);
    CHECK(std::isnan(none.segmental_snr));
  }
}

TEST_CASE("a clip that is judged piece by piece scores as one that is given at once", "[evaluation]") {
  Context ctx({.threads = 1});
  for (const auto& [channels, seconds] : {std::pair<size_t, int64_t>{1, 1}, {1, 43}, {2, 1}, {2, 43}}) {
    INFO(channels << " channels, " << seconds << " s");
    CodecConfig config = tiny_codec();
    config.audio_channels = static_cast<int64_t>(channels);
    Codec codec(ctx, config);
    codec.parameters().initialise(ctx, 1);
    const Pair p = sound(seconds);
    const std::vector<float> x = channels == 1 ? p.x : interleaved(p.x, p.y);
    Evaluation whole(codec), pieces(codec);
    std::vector<float> decoded, heard, original;
    whole.add("a", x, &decoded);
    std::vector<size_t> lengths;
    double last = 0;
    ClipJudge judge(pieces, "a",
                    {.progress =
                         [&](double done) {
                           CHECK(done >= last);
                           last = done;
                         },
                     .piece =
                         [&](std::span<const float> a, std::span<const float> b) {
                           lengths.push_back(a.size());
                           original.insert(original.end(), a.begin(), a.end());
                           heard.insert(heard.end(), b.begin(), b.end());
                         }});
    for (size_t at = 0, n = channels; at < x.size(); at += n, n = (n * 3 % 50021 + 1) * channels)
      judge.push(std::span(x).subspan(at, std::min(n, x.size() - at)));
    check_same(judge.finish(), whole.clips()[0]);
    CHECK(last == static_cast<double>(seconds));
    CHECK((original == x));
    CHECK((heard == decoded));
    CHECK(lengths == (seconds == 1 ? std::vector<size_t>{8000 * channels}
                                   : std::vector<size_t>{160000 * channels, 184000 * channels}));
    CHECK(whole.clips()[0].frames == seconds * rate / 8);
    CHECK(whole.clips()[0].scales == 0);
    check_same(score_clip(ctx, x, decoded, rate, config.audio_channels), whole.clips()[0]);
    CHECK(pieces.usage() == whole.usage());
    CHECK(pieces.perplexity() == whole.perplexity());
    CHECK(pieces.output_std() == whole.output_std());
    CHECK(pieces.input_mean() == whole.input_mean());

    // An abandoned clip counts nowhere.
    const std::vector<double> before = pieces.perplexity();
    CHECK_THROWS_AS(
        pieces.add("b", sound(2).x, nullptr, {.progress = [](double) { throw Error(ErrorKind::io, "stop"); }}), Error);
    CHECK(pieces.clips().size() == 1);
    CHECK(pieces.perplexity() == before);
    CHECK(pieces.output_std() == whole.output_std());
  }
}

TEST_CASE("a clip that has no value of a figure is left out of its mean, and means are numbers", "[evaluation]") {
  Context ctx({.threads = 1});
  const Pair p = sound(2);
  Scores scores;
  const ClipScore speech = scores.add(score_clip(ctx, p.x, p.y, rate));
  // A constant is zero after its mean is removed.
  for (const float level : {0.95f, 0.1f, -0.3f})
    for (const size_t n : {size_t{3}, size_t{16001}, static_cast<size_t>(40 * rate)}) {
      INFO(level << ", " << n << " samples");
      std::vector<float> constant(n, level), near = constant;
      near[n / 2] += 0.01f;
      for (size_t i = 0; i < n; i += 3) constant[i] += 2e-7f;  // the rounding of a resampler
      const ClipScore s = scores.add(score_clip(ctx, constant, near, rate));
      CHECK(s.silent);  // a constant offset is inaudible
      CHECK(std::isnan(s.si_sdr));
      CHECK(std::isfinite(s.snr));
    }
  // One sample has no spectrum.
  const std::vector<float> one{0.5f}, other{0.4f};
  const ClipScore single = scores.add(score_clip(ctx, one, other, rate));
  CHECK(std::isnan(single.mel));
  CHECK(std::isnan(single.stft));
  CHECK(single.snr == Approx(10 * std::log10(0.25 / 0.01)).epsilon(1e-6));  // 0.4f is off by 2^-26
  CHECK(scores.si_sdr() == speech.si_sdr);
  CHECK(std::isfinite(scores.snr()));
  CHECK(std::isfinite(scores.mel()));
  Scores alone;
  alone.add(single);
  CHECK(std::isnan(alone.mel()));
  CHECK(std::isnan(alone.si_sdr()));

  // A copy, and silent output.
  for (const int64_t seconds : {2, 31}) {
    const Pair q = sound(seconds);
    const ClipScore copy = score_clip(ctx, q.x, q.x, rate);
    CHECK(copy.snr == 120);
    CHECK(copy.si_sdr == 120);
    CHECK(copy.mel == 0);
    const ClipScore nothing = score_clip(ctx, q.x, std::vector<float>(q.x.size()), rate);
    CHECK(nothing.snr == 0);
    CHECK(nothing.si_sdr == -120);
  }
}
