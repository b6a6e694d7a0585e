#include "nacre/ops/spectral_loss.h"

#include <limits>

#include "golden/mel_power.inc"
#include "golden/spectral.inc"
#include "harness.h"
#include "reference/spectral.h"
#if defined(NACRE_WITH_CUDA)
#include "runtime/runtime.h"
#endif

using namespace nacre;
using namespace nacre::test;

namespace {

SpectralScale scale(int64_t window, int64_t hop, int64_t mels, float magnitude = 1, float log_magnitude = 1,
                    float mel_magnitude = 1, float mel_log = 1) {
  return {window, hop, mels, magnitude, log_magnitude, mel_magnitude, mel_log};
}

/// EnCodec's mel term.
SpectralScale power_scale(int64_t window, int64_t mels, float stft = 0) {
  SpectralScale s = scale(window, window / 4, mels, stft, stft);
  s.mel_kind = MelKind::power, s.aligned = true;
  return s;
}
SpectralConfig encodec(std::vector<SpectralScale> scales) {
  return {.sample_rate = 24000,
          .scales = std::move(scales),
          .mel_scale = MelScale::htk,
          .area_normalised = false,
          .fmin = 64};
}

struct Trial {
  int64_t batch, time;
  SpectralConfig config;
  std::vector<int32_t> lengths{};
};

std::vector<Trial> trials() {
  const auto with = [](std::vector<SpectralScale> scales) { return SpectralConfig{.scales = std::move(scales)}; };
  SpectralConfig zero = with({scale(32, 8, 5), scale(64, 16, 6)});
  zero.padding = StftPadding::zero;
  SpectralConfig htk = with({scale(64, 16, 8)});
  htk.mel_scale = MelScale::htk, htk.area_normalised = false, htk.fmin = 100, htk.fmax = 7000;
  SpectralConfig squared = with({scale(128, 32, 0, 1, 1)});
  squared.log_power = 2;
  SpectralConfig high_floor = with({scale(64, 16, 10)});
  high_floor.floor = 3.0f;
  SpectralScale centred_power = power_scale(64, 12, 1), aligned_log = scale(64, 16, 10), odd_lead = scale(32, 2, 6);
  centred_power.aligned = false, aligned_log.aligned = true;
  odd_lead.aligned = true, odd_lead.mel_kind = MelKind::power;
  SpectralConfig zero_power = encodec({power_scale(64, 20, 1), power_scale(40, 9)});
  zero_power.padding = StftPadding::zero;
  SpectralConfig area_power = with({power_scale(64, 10), power_scale(256, 40)});
  area_power.fmin = 30;
  return {
      // Powers. Of 64 bands at window 64, 21 have no bin. 64 and 120 are fused and around cuFFT on CUDA.
      {2, 480, encodec({power_scale(64, 64), power_scale(128, 64), power_scale(256, 64)})},  // whole last frames
      {2, 481, encodec({power_scale(64, 64), power_scale(120, 30), power_scale(256, 64)})},  // one sample more
      {3, 479, encodec({power_scale(64, 64), power_scale(120, 30), scale(64, 16, 10)})},     // one less; both kinds
      {1, 1, encodec({power_scale(16, 3), power_scale(24, 4)})},                             // one sample
      {2, 5, encodec({power_scale(32, 6), power_scale(40, 5)})},  // several reflections, then zeros
      {1, 4001, encodec({power_scale(512, 64), power_scale(1024, 64), power_scale(2048, 64), power_scale(32, 6)})},
      {2, 300, encodec({power_scale(64, 20, 1), power_scale(120, 20, 1)})},  // with STFT terms in the same frames
      {2, 301, with({centred_power, aligned_log})},                          // power without aligned, and the reverse
      {2, 77, encodec({odd_lead})},                                          // a lead of 15 samples, hop 2
      {2, 250, zero_power},                                                  // zero padding
      {2, 301, area_power},                                                  // another bank
      {1, 5000, encodec({power_scale(4096, 64), power_scale(64, 64)})},      // chunks of the overlap-add
      {1, 3001, encodec({power_scale(4608, 64)})},                           // more bins than the usual block holds
      {1, 300, encodec({power_scale(8192, 64, 1)})},                         // more than any block holds
      {1, 200, encodec({power_scale(64, 256), power_scale(32, 128)})},       // as many bands as a configuration allows
      {4,
       200,
       encodec({power_scale(64, 64), power_scale(40, 9)}),
       {200, 100, 0, 1}},                                                             // full, half, nothing, one sample
      {3, 301, encodec({power_scale(64, 64), power_scale(120, 30)}), {96, 97, 300}},  // at and after a hop's begin
      {1, 64, with({scale(64, 16, 0)})},                     // one window of signal, no mel term
      {1, 1, with({scale(8, 2, 2)})},                        // one sample: every position reflects it
      {2, 2, with({scale(16, 4, 2)})},                       // reflection bounces several times
      {1, 33, with({scale(4, 1, 1)})},                       // the smallest window, hop 1
      {3, 200, with({scale(64, 16, 10), scale(32, 8, 5)})},  // one block of lanes has rows of two items
      {1, 15, with({scale(4, 1, 1), scale(32, 8, 4)})},      // exactly one block of 16 frames; signal inside the window
      {1, 16, with({scale(4, 1, 1)})},                       // one lane more than a block
      {2, 300, with({scale(120, 31, 12)})},                  // factors 2, 3, 5; the hop divides nothing
      {1, 500, with({scale(250, 100, 9)})},                  // odd half window (no middle bin)
      {1, 700, with({scale(64, 100, 10)})},                  // hop > window: samples in no frame
      {8, 4000, with({scale(64, 16, 10), scale(256, 64, 40), scale(1024, 256, 80)})},     // the trainer's, short
      {1, 2100, with({scale(2048, 512, 320, 0, 0, 0, 1), scale(32, 8, 5, 0, 0, 0, 1)})},  // DAC's extremes
      {1, 5000, with({scale(64, 16, 10)})},                                // long: several chunks of the overlap-add
      {2, 200, zero},                                                      // zero padding
      {2, 200, htk},                                                       // the other filter bank, with limits
      {1, 400, squared},                                                   // log of the power
      {1, 300, high_floor},                                                // many values below the floor
      {4, 200, with({scale(64, 16, 10)}), {200, 100, 0, 1}},               // full, half, nothing, one sample
      {3, 300, with({scale(64, 16, 10), scale(32, 8, 0)}), {96, 97, 95}},  // on, after and before a frame's centre
      {2, 64, with({scale(16, 4, 3)}), {-5, 1000}},                        // lengths out of range are clamped
      {2, 100, with({scale(32, 8, 6, 0, 1, 1, 0), scale(16, 4, 3, 1, 0, 0, 1)})},  // some weights 0
      {1, 128, with({scale(32, 8, 5, 0, 0, 1, 1)})},                               // mel only: dstft is all zero
      {2, 128, with({})},                                                          // no scales: zeros
      {2, 52, with({scale(30, 7, 6)})},                                            // nothing is a multiple of four
      {3, 96, with({scale(24, 12, 4)})},        // a frame and half a frame are whole packs
      {2, 96, with({scale(20, 4, 4)})},         // half a frame is no whole pack
      {1, 300, with({scale(4096, 1024, 30)})},  // a block of 512 threads
      {1, 300, with({scale(4500, 1125, 30)})},  // more bins than the usual block of a CUDA kernel holds
      {5, 90, with({scale(128, 32, 9), scale(512, 128, 20), scale(2048, 512, 0)})},  // the other powers of two
      {3, 1001, with({scale(32, 5, 5), scale(256, 64, 20)})},                        // odd hops and lengths
      {1, 300, with({scale(8192, 4096, 30)})},                                       // more than any block holds
      {1, 64, with({scale(32, 16, 400), scale(60, 15, 400)})},  // bands that fill 99 KiB of shared memory
  };
}

std::vector<double> doubles(const Buffer<float>& b) { return {b.before().begin(), b.before().end()}; }

View<const int32_t> lengths_view(Case& c, const std::vector<int32_t>& lengths) {
  if (lengths.empty()) return {};
  return c.values<int32_t>("lengths", {.batch = static_cast<int64_t>(lengths.size())}, lengths);
}

}  // namespace

TEST_CASE("spectral_loss: losses and gradients against the reference", "[a100][rtx3090]") {
  for (const Device device : devices())
    for (const Trial& t : trials()) {
      const Shape s{.batch = t.batch, .time = t.time};
      Case c("spectral_loss", device, s);
      auto &x = c.random("estimate", s, -1, 1), &y = c.random("target", s, -1, 1);
      auto &losses = c.output("losses", {.batch = 2}), &dstft = c.output("dstft", s), &dmel = c.output("dmel", s);
      const auto lengths = lengths_view(c, t.lengths);
      const SpectralPlan plan(c.ctx, s, t.config);
      AllocationCounter allocations;
      spectral_loss(c.ctx, {.plan = plan,
                            .estimate = x,
                            .target = y,
                            .lengths = lengths,
                            .losses = losses,
                            .dstft = dstft,
                            .dmel = dmel});
      CHECK(allocations.count() == 0);
      const auto r = reference::spectral_loss(t.config, t.batch, t.time, doubles(x), doubles(y), t.lengths);
      const auto loss = [&](int64_t i) { return r.losses[i]; };
      // The reference adds up the worst case of every cell. The result is stored as a float.
      const auto loss_error = [&](int64_t i) { return r.loss_errors[i] + 2 * ulp * r.losses[i]; };
      c.expect(losses, loss, loss_error);
      for (int i = 0; i < 2; ++i) {
        auto& d = i == 0 ? dstft : dmel;
        const auto gradient = [&](int64_t n) { return r.gradients[i][static_cast<size_t>(n)]; };
        // The errors of bins and frames are independent. The limit is eight times the root of the sum of their squares,
        // plus the rounding of each sum of frames.
        const auto allowed = [&](int64_t n) {
          return 8 * std::sqrt(r.variances[i][static_cast<size_t>(n)]) + 8 * ulp * std::fabs(gradient(n));
        };
        c.expect(d, gradient, allowed);
        std::vector<double> planted = doubles(d);
        const auto found = d.read();
        for (size_t n = 0; n < planted.size(); ++n) planted[n] = static_cast<double>(found[n]);
        planted[0] += 10 * allowed(0);
        if (allowed(0) > 0) CHECK(worst_ratio(planted, gradient, allowed) > 1);
      }
      // A call for losses alone gives the same bits.
      const auto full = losses.read();
      losses.write({NAN, NAN});
      spectral_loss(c.ctx, {.plan = plan, .estimate = x, .target = y, .lengths = lengths, .losses = losses});
      c.expect_equal(losses, full);
    }
}

TEST_CASE("spectral_loss: the gradients of the reference are finite differences") {
  for (const Trial& t : trials()) {
    if (t.batch * t.time > 800 || t.config.scales.empty()) continue;
    const Shape s{.batch = t.batch, .time = t.time};
    Case c("spectral_loss differences", Device{}, s);
    std::vector<double> x = doubles(c.random("x", s, -1, 1)), y = doubles(c.random("y", s, -1, 1));
    const auto r = reference::spectral_loss(t.config, t.batch, t.time, x, y, t.lengths);
    double size[2] = {0, 0};
    for (int i = 0; i < 2; ++i)
      for (const double g : r.gradients[i]) size[i] = std::max(size[i], std::fabs(g));
    for (int draw = 0; draw < 6; ++draw) {
      const size_t n = c.rng() % x.size();
      const double step = 1e-6, before = x[n];
      double losses[2][2];
      for (int side = 0; side < 2; ++side) {
        x[n] = before + (side == 0 ? -step : step);
        const auto moved = reference::spectral_loss(t.config, t.batch, t.time, x, y, t.lengths, false);
        for (int i = 0; i < 2; ++i) losses[i][side] = moved.losses[i];
      }
      x[n] = before;
      // Rounding costs 1e-15 / step of the loss. Curvature matters where the bins of a short signal are small: 1e-5 of
      // the largest gradient.
      for (int i = 0; i < 2; ++i) {
        const double slope = (losses[i][1] - losses[i][0]) / (2 * step);
        INFO("time " << t.time << " batch " << t.batch << " sample " << n << " term " << i << " seed " << seed());
        CHECK(std::fabs(slope - r.gradients[i][n]) <= 1e-8 * (1 + r.losses[i]) + 1e-5 * size[i]);
      }
    }
  }
}

namespace {

constexpr int64_t golden_batch = 2, golden_time = 300;

// The signals of golden/make_spectral.py.
std::vector<float> golden_signals() {
  uint32_t state = 12345;
  std::vector<float> out(static_cast<size_t>(2 * golden_batch * golden_time));
  for (float& x : out) {
    state = state * 1664525u + 1013904223u;
    x = static_cast<float>(state >> 8) * 0x1p-23f - 1.0f;
  }
  return out;
}

}  // namespace

TEST_CASE("spectral_loss: reference and library agree with PyTorch and librosa") {
  const struct {
    SpectralConfig config;
    const std::vector<double>&losses, &dstft, &dmel;
  } golden[] = {
      {{.scales = {scale(64, 16, 10, 1, 1, 0.5f, 1), scale(120, 31, 12, 1, 1, 0.5f, 1)}},
       losses_slaney,
       dstft_slaney,
       dmel_slaney},
      {{.scales = {scale(64, 16, 10, 0, 1, 1, 0), scale(120, 31, 12, 0, 1, 1, 0)},
        .mel_scale = MelScale::htk,
        .area_normalised = false,
        .log_power = 2,
        .padding = StftPadding::zero},
       losses_htk,
       dstft_htk,
       dmel_htk},
  };
  const std::vector<float> signals = golden_signals();
  const auto half = static_cast<int64_t>(signals.size() / 2);
  for (const Device device : devices())
    for (const auto& g : golden) {
      const Shape s{.batch = golden_batch, .time = golden_time};
      Case c("spectral_loss golden", device, s);
      auto& x = c.values<float>("estimate", s, {signals.begin(), signals.begin() + half});
      auto& y = c.values<float>("target", s, {signals.begin() + half, signals.end()});
      // The reference is in double, as PyTorch's is. The file keeps 13 digits. PyTorch takes fmax and the floor from
      // the same decimals, but the library's floor is a float.
      const auto r = reference::spectral_loss(g.config, s.batch, s.time, doubles(x), doubles(y), {});
      const std::vector<double>* expected[2] = {&g.dstft, &g.dmel};
      for (int i = 0; i < 2; ++i) {
        CHECK(std::fabs(r.losses[i] - g.losses[static_cast<size_t>(i)]) < 1e-10);
        double worst = 0;
        for (size_t n = 0; n < expected[i]->size(); ++n)
          worst = std::max(worst, std::fabs(r.gradients[i][n] - (*expected[i])[n]));
        CHECK(worst < 1e-11);
      }
      const SpectralPlan plan(c.ctx, s, g.config);
      auto &losses = c.output("losses", {.batch = 2}), &dstft = c.output("dstft", s), &dmel = c.output("dmel", s);
      spectral_loss(c.ctx, {.plan = plan, .estimate = x, .target = y, .losses = losses, .dstft = dstft, .dmel = dmel});
      c.expect(
          losses, [&](int64_t i) { return g.losses[static_cast<size_t>(i)]; },
          [&](int64_t i) { return r.loss_errors[i] + 2 * ulp * r.losses[i]; });
      for (int i = 0; i < 2; ++i)
        c.expect(
            i == 0 ? dstft : dmel, [&](int64_t n) { return (*expected[i])[static_cast<size_t>(n)]; },
            [&](int64_t n) {
              const size_t at = static_cast<size_t>(n);
              return 8 * std::sqrt(r.variances[i][at]) + 8 * ulp * std::fabs(r.gradients[i][at]);
            });
    }
}

TEST_CASE("spectral_loss: powers agree with EnCodec's loss in PyTorch") {
  // Signals, loss per scale and the gradient of their sum from golden/make_mel_power.py: windows 64 to 1024 at 24 kHz.
  const Shape s{.batch = 2, .time = 1201};
  uint32_t state = 54321;
  std::vector<float> signals(static_cast<size_t>(2 * s.elements()));
  for (float& x : signals) {
    state = state * 1664525u + 1013904223u;
    x = static_cast<float>(state >> 8) * 0x1p-24f - 0.5f;
  }
  const auto half = static_cast<int64_t>(signals.size() / 2);
  for (const Device device : devices()) {
    Case c("spectral_loss mel_power golden", device, s);
    auto& x = c.values<float>("estimate", s, {signals.begin(), signals.begin() + half});
    auto& y = c.values<float>("target", s, {signals.begin() + half, signals.end()});
    auto &losses = c.output("losses", {.batch = 2}), &dmel = c.output("dmel", s);
    SpectralConfig all = encodec({});
    for (size_t i = 0; i < mel_power_losses.size(); ++i) {
      SpectralScale one = power_scale(int64_t{64} << i, 64);
      // Of five scales with alpha 1, each term has a tenth.
      one.mel_magnitude = one.mel_log = 0.1f;
      all.scales.push_back(one);
      const SpectralConfig alone = encodec({one});
      const auto r = reference::spectral_loss(alone, s.batch, s.time, doubles(x), doubles(y), {}, false);
      // 0.1f differs from a tenth by less than a rounding error; the file keeps 13 digits.
      const double expected = 10 * static_cast<double>(0.1f) * mel_power_losses[i];
      CHECK(std::fabs(r.losses[1] - expected) <= 1e-11 * expected);
      const SpectralPlan plan(c.ctx, s, alone);
      spectral_loss(c.ctx, {.plan = plan, .estimate = x, .target = y, .losses = losses});
      CHECK(std::fabs(static_cast<double>(losses.read()[1]) - expected) <= r.loss_errors[1] + 2 * ulp * expected);
    }
    const auto r = reference::spectral_loss(all, s.batch, s.time, doubles(x), doubles(y), {});
    const double factor = 10 * static_cast<double>(0.1f);
    double worst = 0, most = 0;
    for (size_t n = 0; n < mel_power_gradient.size(); ++n) {
      worst = std::max(worst, std::fabs(r.gradients[1][n] - factor * mel_power_gradient[n]));
      most = std::max(most, std::fabs(mel_power_gradient[n]));
    }
    CHECK(worst <= 1e-11 * most);
    const SpectralPlan plan(c.ctx, s, all);
    spectral_loss(c.ctx, {.plan = plan, .estimate = x, .target = y, .losses = losses, .dmel = dmel});
    c.expect(
        dmel, [&](int64_t n) { return factor * mel_power_gradient[static_cast<size_t>(n)]; },
        [&](int64_t n) {
          const size_t at = static_cast<size_t>(n);
          return 8 * std::sqrt(r.variances[1][at]) + 8 * ulp * std::fabs(r.gradients[1][at]);
        });
  }
}

TEST_CASE("spectral_loss: powers of silence and of large samples") {
  for (const Device device : devices()) {
    const Shape s{.batch = 1, .time = 601};
    Case c("spectral_loss silent powers", device, s);
    auto &silence = c.zeros("silence", s), &sound = c.random("sound", s, -1, 1);
    auto& large = c.values("large", s, std::vector<float>(601, 1e12f));
    auto &losses = c.output("losses", {.batch = 2}), &dstft = c.output("dstft", s), &dmel = c.output("dmel", s);
    const SpectralPlan plan(c.ctx, s, encodec({power_scale(64, 64), power_scale(120, 40), power_scale(8192, 64)}));
    const auto run = [&](View<const float> estimate, View<const float> target) {
      spectral_loss(
          c.ctx,
          {.plan = plan, .estimate = estimate, .target = target, .losses = losses, .dstft = dstft, .dmel = dmel});
    };
    for (auto* x : {&silence, &sound, &large}) {
      run(*x, *x);
      for (const auto& v : {losses.read(), dstft.read(), dmel.read()})
        CHECK(std::all_of(v.begin(), v.end(), [](float f) { return f == 0; }));
    }
    // The derivative of |X|^2 is 0 at X = 0.
    run(silence, sound);
    CHECK(losses.read()[1] > 0);
    for (const float v : dmel.read()) CHECK(v == 0);
    run(large, silence);
    CHECK(std::isfinite(losses.read()[1]));
    for (const float v : dmel.read()) CHECK(std::isfinite(v));
    auto nan = sound.before();
    nan.back() = NAN;
    run(c.values("nan", s, nan), silence);
    CHECK(std::isnan(losses.read()[1]));
  }
}

TEST_CASE("mel_filter_bank: 64 bands at short windows leave bands without a bin") {
  const auto empty = [](int64_t rate, int64_t window) {
    int64_t count = 0;
    for (const auto& row : mel_filter_bank(rate, window, 64, 64, 0, MelScale::htk, false))
      count += std::all_of(row.begin(), row.end(), [](double w) { return w == 0; });
    return count;
  };
  CHECK(empty(24000, 64) == 21);
  CHECK(empty(24000, 128) == 9);
  CHECK(empty(24000, 256) == 1);
  CHECK(empty(24000, 512) == 0);
  CHECK(empty(48000, 64) == 25);
  CHECK(empty(48000, 128) == 14);
  CHECK(empty(48000, 256) == 5);
}

TEST_CASE("mel_filter_bank: librosa's, on both scales") {
  const auto same = [](const std::vector<std::vector<double>>& bank, const std::vector<double>& expected) {
    std::vector<double> flat;
    for (const auto& row : bank) flat.insert(flat.end(), row.begin(), row.end());
    REQUIRE(flat.size() == expected.size());
    // Edges cancel to 1e-14 of the largest weight. The file keeps 13 digits.
    const double most = *std::max_element(expected.begin(), expected.end());
    for (size_t i = 0; i < flat.size(); ++i) CHECK(std::fabs(flat[i] - expected[i]) <= 1e-12 * most);
  };
  same(mel_filter_bank(16000, 64, 10, 0, 8000, MelScale::slaney, true), mel_bank_0);
  same(mel_filter_bank(16000, 64, 10, 0, 0, MelScale::slaney, true), mel_bank_0);
  same(mel_filter_bank(22050, 128, 8, 50, 8000, MelScale::htk, false), mel_bank_1);
  same(mel_filter_bank(44100, 96, 6, 0, 22050, MelScale::slaney, false), mel_bank_2);
  same(mel_filter_bank(16000, 80, 7, 64, 7600, MelScale::htk, true), mel_bank_3);
  using Catch::Contains;
  CHECK_THROWS_WITH(mel_filter_bank(16000, 64, 10, 0, 9000, MelScale::htk, true), Contains("fmax 9000"));
  CHECK_THROWS_WITH(mel_filter_bank(16000, 64, 10, 500, 400, MelScale::htk, true), Contains("fmin 500"));
  CHECK_THROWS_WITH(mel_filter_bank(16000, 63, 10, 0, 0, MelScale::htk, true), Contains("window 63"));
  CHECK_THROWS_WITH(mel_filter_bank(16000, 64, 0, 0, 0, MelScale::htk, true), Contains("bands 0"));
}

TEST_CASE("spectral_loss: signals at the floor give finite losses and gradients") {
  for (const Device device : devices()) {
    const Shape s{.batch = 1, .time = 600};
    const SpectralConfig config{.scales = {scale(64, 16, 10), scale(256, 64, 40)}};
    const auto made = [](int64_t time, auto value) {
      std::vector<float> x(static_cast<size_t>(time));
      for (size_t i = 0; i < x.size(); ++i) x[i] = value(static_cast<int>(i));
      return x;
    };
    const std::vector<std::pair<std::string, std::vector<float>>> signals = {
        {"silence", made(600, [](int) { return 0.0f; })},
        {"impulse", made(600, [](int i) { return i == 300 ? 1.0f : 0.0f; })},
        {"constant", made(600, [](int) { return 0.5f; })},
        {"square", made(600, [](int i) { return i / 20 % 2 != 0 ? 1.0f : -1.0f; })},
        {"alternating", made(600, [](int i) { return i % 2 != 0 ? 1.0f : -1.0f; })},
        {"denormal", made(600, [](int i) { return i % 3 != 0 ? 1e-40f : -1e-41f; })},
        {"square of it underflows", made(600, [](int i) { return i % 3 != 0 ? 1e-22f : 0.0f; })},
        {"near the floor", made(600, [](int i) { return i % 5 != 0 ? 1e-6f : -1e-6f; })},
        {"large", made(600, [](int i) { return i % 7 != 0 ? 1e12f : -1e12f; })},
    };
    for (const auto& x : signals)
      for (const auto& y : signals) {
        Case c("spectral_loss of " + x.first + " and " + y.first, device, s);
        auto &estimate = c.values("estimate", s, x.second), &target = c.values("target", s, y.second);
        auto &losses = c.output("losses", {.batch = 2}), &dstft = c.output("dstft", s), &dmel = c.output("dmel", s);
        const SpectralPlan plan(c.ctx, s, config);
        spectral_loss(
            c.ctx,
            {.plan = plan, .estimate = estimate, .target = target, .losses = losses, .dstft = dstft, .dmel = dmel});
        INFO(x.first << " and " << y.first);
        for (const float v : losses.read()) CHECK(std::isfinite(v));
        // The slope of a bin is at most (1 + 1 / (floor ln 10)) of its share. A sample is in window / hop = 4 frames.
        // The bins of a frame share 1 / frames. A bin is in at most two triangles of area 1.
        for (const auto& gradient : {dstft.read(), dmel.read()})
          for (const float v : gradient) CHECK(std::fabs(v) < 4.5e4 * 8 * 2);
        if (&x != &y) continue;
        for (const float v : losses.read()) CHECK(v == 0);
        for (const auto& gradient : {dstft.read(), dmel.read()})
          for (const float v : gradient) CHECK(v == 0);
      }
    // The gradient at silence is zero.
    Case c("spectral_loss of silence", device, s);
    auto &silence = c.zeros("estimate", s), &target = c.random("target", s, -1, 1);
    auto &losses = c.output("losses", {.batch = 2}), &dstft = c.output("dstft", s), &dmel = c.output("dmel", s);
    const SpectralPlan plan(c.ctx, s, config);
    spectral_loss(
        c.ctx, {.plan = plan, .estimate = silence, .target = target, .losses = losses, .dstft = dstft, .dmel = dmel});
    for (const auto& gradient : {dstft.read(), dmel.read()})
      for (const float v : gradient) CHECK(v == 0);
    CHECK(losses.read()[0] > 0);
    // NaN must reach the loss.
    auto& bad = c.values("bad", s, made(600, [](int i) { return i == 599 ? NAN : 0.1f; }));
    spectral_loss(c.ctx, {.plan = plan, .estimate = bad, .target = target, .losses = losses});
    for (const float v : losses.read()) CHECK(std::isnan(v));
  }
}

TEST_CASE("spectral_loss: lengths") {
  for (const Device device : devices()) {
    const Shape s{.batch = 3, .time = 300};
    Case c("spectral_loss lengths", device, s);
    const SpectralConfig config{.scales = {scale(64, 16, 10), scale(32, 8, 5)}};
    const SpectralPlan plan(c.ctx, s, config);
    auto &x = c.random("estimate", s, -1, 1), &y = c.random("target", s, -1, 1);
    auto &losses = c.output("losses", {.batch = 2}), &dstft = c.output("dstft", s), &dmel = c.output("dmel", s);
    const auto run = [&](View<const int32_t> lengths) {
      spectral_loss(c.ctx, {.plan = plan,
                            .estimate = x,
                            .target = y,
                            .lengths = lengths,
                            .losses = losses,
                            .dstft = dstft,
                            .dmel = dmel});
    };
    // Lengths that cover all samples give the result without lengths.
    run({});
    const auto all = losses.read(), all_dstft = dstft.read(), all_dmel = dmel.read();
    run(c.values<int32_t>("lengths", {.batch = 3}, {300, 300, 300}));
    c.expect_equal(losses, all);
    c.expect_equal(dstft, all_dstft);
    c.expect_equal(dmel, all_dmel);
    // Without valid samples all results are zero, whatever the outputs held before.
    run(c.values<int32_t>("lengths", {.batch = 3}, {0, 0, 0}));
    for (const auto& v : {losses.read(), dstft.read(), dmel.read()})
      CHECK(std::all_of(v.begin(), v.end(), [](float f) { return f == 0; }));
    // Samples behind an item's length have no effect, even if they are NaN.
    auto& lengths = c.values<int32_t>("lengths", {.batch = 3}, {100, 0, 299});
    run(lengths);
    const auto before = losses.read(), before_dstft = dstft.read(), before_dmel = dmel.read();
    auto changed = x.before();
    for (size_t i = 100; i < 600; ++i) changed[i] = NAN;
    x.write(changed);
    run(lengths);
    c.expect_equal(losses, before);
    c.expect_equal(dstft, before_dstft);
    c.expect_equal(dmel, before_dmel);
    for (size_t i = 100; i < 600; ++i) CHECK(before_dstft[i] == 0);
  }
}

TEST_CASE("spectral_loss: the same bits for every number of threads") {
  for (const Device device : devices()) {
    std::vector<float> found[3];
    const Shape s{.batch = 3, .time = 1500};
    for (int threads = 1; threads <= 3; ++threads) {
      Case c("spectral_loss threads", device, s, threads);
      const SpectralPlan plan(c.ctx, s, {.scales = {scale(64, 16, 10), scale(256, 64, 40)}});
      auto &x = c.random("estimate", s, -1, 1), &y = c.random("target", s, -1, 1);
      auto &losses = c.output("losses", {.batch = 2}), &dstft = c.output("dstft", s), &dmel = c.output("dmel", s);
      spectral_loss(c.ctx, {.plan = plan, .estimate = x, .target = y, .losses = losses, .dstft = dstft, .dmel = dmel});
      for (const auto& part : {losses.read(), dstft.read(), dmel.read()})
        found[threads - 1].insert(found[threads - 1].end(), part.begin(), part.end());
    }
    CHECK(found[1] == found[0]);
    CHECK(found[2] == found[0]);
  }
}

TEST_CASE("spectral_loss: a captured step gives the bits of an eager one") {
  for (const Device device : devices()) {
    const Shape s{.batch = 2, .time = 320};
    Case c("spectral_loss captured", device, s);
    const SpectralPlan plan(c.ctx, s, {.scales = {scale(64, 16, 10), scale(30, 7, 0), scale(32, 8, 5, 0, 0, 0, 1)}});
    const StftPlan transform(c.ctx, s, {.window = 64, .hop = 16});
    auto &x = c.random("estimate", s, -1, 1), &y = c.random("target", s, -1, 1);
    auto& lengths = c.values<int32_t>("lengths", {.batch = 2}, {320, 200});
    auto &losses = c.output("losses", {.batch = 2}), &dstft = c.output("dstft", s), &dmel = c.output("dmel", s);
    auto &spectrum = c.output("spectrum", transform.spectrum()), &dx = c.output("dx", s);
    const auto step = [&] {
      stft_forward(c.ctx, {.plan = transform, .x = x, .spectrum = spectrum});
      stft_adjoint(c.ctx, {.plan = transform, .dspectrum = spectrum, .dx = dx});
      spectral_loss(c.ctx, {.plan = plan,
                            .estimate = x,
                            .target = y,
                            .lengths = lengths,
                            .losses = losses,
                            .dstft = dstft,
                            .dmel = dmel});
    };
    const auto found = [&] {
      std::vector<float> all;
      for (const auto& part : {spectrum.read(), dx.read(), losses.read(), dstft.read(), dmel.read()})
        all.insert(all.end(), part.begin(), part.end());
      return all;
    };
    Graph graph = c.ctx.capture(step);
    for (int turn = 0; turn < 3; ++turn) {
      if (turn == 1) x.write(c.random("other", s, -2, 2).before());
      if (turn == 2) lengths.write({17, 400});
      step();
      const auto eager = found();
      for (auto* b : {&spectrum, &dx, &losses, &dstft, &dmel})
        b->write(std::vector<float>(static_cast<size_t>(b->size()), NAN));
      graph.replay();
      CHECK(found() == eager);
    }
  }
}

#if defined(NACRE_WITH_CUDA)
TEST_CASE("spectral_loss: which kernels run on CUDA", "[a100][rtx3090]") {
  for (const Device device : devices()) {
    if (device.kind != Device::cuda) continue;
    const Shape s{.batch = 2, .time = 256};
    const auto launches = [&](SpectralScale one, bool gradients) {
      Case c("spectral_loss kernels", device, s);
      const SpectralPlan plan(c.ctx, s, {.scales = {one}});
      auto &x = c.random("estimate", s, -1, 1), &losses = c.output("losses", {.batch = 2});
      auto &dstft = c.output("dstft", s), &dmel = c.output("dmel", s);
      const View<float> none;
      const auto before = [&] {
        std::vector<int64_t> n;
        for (const char* name : {"spectral_fused", "spectral_frames", "cufft", "spectral_rows", "spectral_rows_long",
                                 "spectral_bands", "spectral_cells", "overlap_add", "overlap_add_packs", ""})
          n.push_back(cuda::runtime(c.ctx).launches(name));
        return n;
      };
      auto first = before();
      spectral_loss(c.ctx, {.plan = plan,
                            .estimate = x,
                            .target = x,
                            .losses = losses,
                            .dstft = gradients ? View<float>(dstft) : none,
                            .dmel = gradients ? View<float>(dmel) : none});
      auto after = before();
      for (size_t i = 0; i < after.size(); ++i) after[i] -= first[i];
      after.pop_back();
      return after;
    };
    using Counts = std::vector<int64_t>;
    for (const int64_t window : {32, 64, 128, 256, 512, 1024, 2048, 4096})
      CHECK(launches(scale(window, 16, 10), true) == Counts{1, 0, 0, 0, 0, 0, 0, 0, 1});
    CHECK(launches(scale(64, 15, 0), false) == Counts{1, 0, 0, 0, 0, 0, 0, 0, 0});
    CHECK(launches(scale(16, 4, 3), true) == Counts{0, 1, 2, 1, 0, 0, 0, 0, 1});
    CHECK(launches(scale(60, 15, 10), true) == Counts{0, 1, 2, 1, 0, 0, 0, 1, 0});
    CHECK(launches(scale(60, 15, 10), false) == Counts{0, 1, 1, 1, 0, 0, 0, 0, 0});
    CHECK(launches(scale(4500, 64, 10), true) == Counts{0, 1, 2, 0, 1, 0, 0, 1, 0});
    CHECK(launches(scale(8192, 64, 10), true) == Counts{0, 1, 2, 0, 0, 1, 1, 0, 1});
    CHECK(launches(scale(8192, 64, 10, 0, 0), false) == Counts{0, 1, 1, 0, 0, 1, 0, 0, 0});
    for (const int64_t window : {64, 1024})
      CHECK(launches(power_scale(window, 10), true) == Counts{1, 0, 0, 0, 0, 0, 0, 0, 1});
    CHECK(launches(power_scale(120, 10, 1), true) == Counts{0, 1, 2, 1, 0, 0, 0, 1, 0});
    CHECK(launches(power_scale(8192, 10), true) == Counts{0, 1, 2, 0, 0, 1, 1, 0, 1});
    CHECK(launches(scale(64, 16, 10, 0, 0, 0, 0), true) == Counts{0, 0, 0, 0, 0, 0, 0, 0, 0});
    // A block has room for its frames with this many bands on some devices only.
    const bool room = cuda::limits(Context({.device = device})).shared_per_block > 99 << 10;
    CHECK(launches(scale(32, 16, 400), true) ==
          (room ? Counts{1, 0, 0, 0, 0, 0, 0, 0, 1} : Counts{0, 1, 2, 0, 0, 1, 1, 0, 1}));
    CHECK(launches(scale(60, 15, 400), true) ==
          (room ? Counts{0, 1, 2, 1, 0, 0, 0, 1, 0} : Counts{0, 1, 2, 0, 0, 1, 1, 1, 0}));
  }
}
#endif

TEST_CASE("spectral_loss: what cannot be is refused") {
  using Catch::Contains;
  Case c("spectral_loss errors", Device{}, {});
  const Shape s{.batch = 2, .time = 100};
  const auto plan_of = [&](SpectralScale one, SpectralConfig config = {}) {
    config.scales = {one};
    return SpectralPlan(c.ctx, s, config);
  };
  CHECK_THROWS_WITH(plan_of({.window = 14, .hop = 2}), Contains("spectral_loss: window is 14"));
  CHECK_THROWS_WITH(plan_of({.window = 16, .hop = 0}), Contains("hop is 0"));
  CHECK_THROWS_WITH(plan_of({.window = 16, .hop = 4, .mels = -1}), Contains("mels is -1"));
  CHECK_THROWS_WITH(plan_of({.window = 16, .hop = 4}, {.floor = 0}), Contains("floor is 0"));
  CHECK_THROWS_WITH(plan_of({.window = 16, .hop = 5, .aligned = true}), Contains("window is 16 and hop is 5, aligned"));
  CHECK_THROWS_WITH(plan_of({.window = 16, .hop = 18, .aligned = true}),
                    Contains("window is 16 and hop is 18, aligned"));
  CHECK_THROWS_WITH(plan_of({.window = 16, .hop = 4, .mels = 4}, {.fmax = 9000}), Contains("fmax 9000"));
  CHECK_THROWS_WITH(SpectralPlan(c.ctx, {.batch = 2, .time = 9, .channels = 2}, {}),
                    Contains("signal is [2, 9, 1, 2]"));
  const SpectralPlan plan = plan_of({.window = 16, .hop = 4, .mels = 4, .magnitude = 1});
  auto &x = c.zeros("x", s), &wrong = c.zeros("wrong", {.batch = 2, .time = 99});
  auto &losses = c.zeros("losses", {.batch = 2}), &one = c.zeros("one", {});
  auto& lengths = c.values<int32_t>("lengths", {.batch = 3}, {1, 2, 3});
  const auto refused = [&](const SpectralLoss& a, const std::string& text) {
    CHECK_THROWS_WITH(spectral_loss(c.ctx, a), Contains("spectral_loss: " + text));
  };
  refused({.plan = plan, .estimate = wrong, .target = x, .losses = losses}, "estimate is [2, 99, 1, 1], expected");
  refused({.plan = plan, .estimate = x, .target = wrong, .losses = losses}, "target is");
  refused({.plan = plan, .estimate = x, .target = x, .lengths = lengths, .losses = losses}, "lengths is");
  refused({.plan = plan, .estimate = x, .target = x, .losses = one}, "losses is");
  refused({.plan = plan, .estimate = x, .target = x, .losses = losses, .dstft = wrong}, "dstft is");
  refused({.plan = plan, .estimate = x, .target = x, .losses = losses, .dmel = wrong}, "dmel is");
  for (const Device device : devices())
    if (device.kind == Device::cuda) {
      Context other({.device = device});
      CHECK_THROWS_WITH(spectral_loss(other, {.plan = plan, .estimate = x, .target = x, .losses = losses}),
                        Contains("made for another device"));
    }
  Context more({.threads = 3});
  CHECK_THROWS_WITH(spectral_loss(more, {.plan = plan, .estimate = x, .target = x, .losses = losses}),
                    Contains("made for 2 threads"));
}
