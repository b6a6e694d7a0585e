// spectral_loss with norms over the bands of a frame (MelKind::norms), and with weights of the mel logarithms.
#include "nacre/ops/spectral_loss.h"

#include <limits>

#include "golden/mel_norms.inc"
#include "harness.h"
#include "reference/spectral.h"
#if defined(NACRE_WITH_CUDA)
#include "runtime/runtime.h"
#endif

using namespace nacre;
using namespace nacre::test;

namespace {

SpectralScale norms(int64_t window, int64_t mels, float stft = 0, float linear = 1, float logarithmic = 2) {
  return {window, window / 4, mels, stft, stft, linear, logarithmic, MelKind::norms};
}
SpectralScale logs(int64_t window, int64_t mels, float stft = 0, float linear = 0) {
  return {window, window / 4, mels, stft, stft, linear, 1};
}
SpectralConfig soundstream(std::vector<SpectralScale> scales) {
  return {.sample_rate = 24000, .scales = std::move(scales), .mel_scale = MelScale::htk, .area_normalised = false};
}
SpectralConfig perceptual(std::vector<SpectralScale> scales, float excess, float transient, float rise = 10) {
  return {.scales = std::move(scales), .mel_excess = excess, .mel_transient = transient, .transient_rise = rise};
}

struct Trial {
  int64_t batch, time;
  SpectralConfig config;
  std::vector<int32_t> lengths{};
};

std::vector<Trial> trials() {
  SpectralScale aligned_norms = norms(64, 20), aligned_logs = logs(64, 10), far = logs(64, 10);
  aligned_norms.aligned = aligned_logs.aligned = true, far.hop = 100;
  SpectralConfig zero_norms = soundstream({norms(64, 20), norms(120, 9)}), area_norms = soundstream({norms(64, 20)});
  zero_norms.padding = StftPadding::zero, area_norms.area_normalised = true, area_norms.fmin = 50;
  SpectralConfig zero_weights = perceptual({logs(64, 10), logs(120, 12)}, 2, 3),
                 high = perceptual({logs(64, 10)}, 3, 2);
  zero_weights.padding = StftPadding::zero, high.floor = 3;
  return {
      // On CUDA windows 32 to 4096 of a power of two are fused, 120 and 4608 by rows, 8192 in the plain way.
      {2, 480, soundstream({norms(64, 64), norms(128, 64), norms(256, 64)})},  // some bands without a bin
      {2, 481, soundstream({norms(64, 64), norms(120, 30), norms(256, 64)})},
      {2, 300, soundstream({norms(64, 20, 1), norms(120, 20, 1)})},                // with STFT terms
      {1, 4001, soundstream({norms(512, 64), norms(1024, 64), norms(2048, 64)})},  // the longest of the paper
      {1, 1, soundstream({norms(16, 3), norms(32, 4)})},                           // one sample
      {2, 5, soundstream({norms(32, 6), norms(40, 5)})},                           // several reflections
      {1, 15, soundstream({norms(4, 1), norms(32, 2)})},                           // a norm of one band
      {1, 300, soundstream({norms(64, 20, 0, 0, 1), norms(120, 20, 0, 1, 0)})},    // one of the two terms alone
      {1, 5000, soundstream({norms(4096, 64), norms(64, 64)})},                    // chunks of the overlap-add
      {1, 3001, soundstream({norms(4608, 64)})},                                   // 512 threads by rows
      {1, 300, soundstream({norms(8192, 64, 1)})},                                 // a block per frame
      {1, 200, soundstream({norms(64, 256), norms(32, 128), norms(60, 240)})},     // many bands
      {4, 200, soundstream({norms(64, 64), norms(40, 9)}), {200, 100, 0, 1}},      // lengths
      {2, 301, soundstream({aligned_norms, norms(32, 7), aligned_logs})},          // kinds and frames mixed
      {2, 250, zero_norms},
      {2, 250, area_norms},
      {3, 96, soundstream({norms(2048, 64), norms(8192, 30)}), {96, 50, 0}},
      {2, 480, perceptual({logs(64, 10), logs(256, 40)}, 2, 0)},  // excess alone
      {2, 480, perceptual({logs(64, 10), logs(256, 40)}, 1, 3)},  // transients alone
      {2, 481, perceptual({logs(64, 10), logs(120, 12), logs(256, 40)}, 2, 3)},
      {2, 300, perceptual({logs(64, 10, 1, 1), logs(120, 12, 1, 1)}, 1.5f, 1)},  // linear terms are not weighted
      {3, 200, perceptual({logs(32, 5), logs(64, 10)}, 2, 2)},                   // a block of lanes has two items
      {1, 2100, perceptual({logs(2048, 320), logs(1024, 80)}, 2, 3)},
      {1, 300, perceptual({logs(8192, 30, 1)}, 2, 3)},  // the plain kernels
      {1, 3001, perceptual({logs(4608, 30)}, 2, 3)},
      {1, 1, perceptual({logs(16, 3), logs(32, 4)}, 2, 3)},  // one frame: none before it
      {2, 5, perceptual({logs(32, 6), logs(40, 5)}, 2, 3)},
      {1, 900, perceptual({far}, 2, 3)},                        // frames apart
      {2, 301, perceptual({aligned_logs, logs(30, 6)}, 2, 3)},  // 30: a rest of the sum of squares
      {4, 200, perceptual({logs(64, 10), logs(40, 9)}, 2, 3), {200, 100, 0, 1}},
      {3, 301, perceptual({logs(64, 10), logs(120, 12)}, 2, 3), {96, 97, 300}},
      {2, 250, zero_weights},
      {1, 300, high},  // bands below the floor are neither above nor below
  };
}

std::vector<double> doubles(const Buffer<float>& b) { return {b.before().begin(), b.before().end()}; }

/// Noise whose level jumps between steps of `length` samples: transients of many sizes, silence among them.
std::vector<float> bursts(Case& c, int64_t samples, int64_t length) {
  const float levels[] = {0.5f, 0.02f, 0.2f, 0, 1, 0.9f, 3e-4f};
  auto& noise = c.random("noise", {.channels = samples}, -1, 1);
  std::vector<float> out(noise.before());
  for (size_t i = 0; i < out.size(); ++i) out[i] *= levels[i / static_cast<size_t>(length) % 7];
  return out;
}

}  // namespace

TEST_CASE("spectral_loss: norms and weights against the reference", "[a100][rtx3090]") {
  for (const Device device : devices())
    for (const Trial& t : trials()) {
      const Shape s{.batch = t.batch, .time = t.time};
      Case c("spectral_loss kinds", device, s);
      auto& x = c.random("estimate", s, -1, 1);
      auto& y = c.values("target", s, bursts(c, s.elements(), 61));
      auto &losses = c.output("losses", {.batch = 2}), &dstft = c.output("dstft", s), &dmel = c.output("dmel", s);
      View<const int32_t> lengths;
      if (!t.lengths.empty()) lengths = c.values<int32_t>("lengths", {.batch = t.batch}, t.lengths);
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
      INFO("window " << t.config.scales[0].window << " time " << t.time << " excess " << t.config.mel_excess);
      c.expect(
          losses, [&](int64_t i) { return r.losses[i]; },
          [&](int64_t i) { return r.loss_errors[i] + 2 * ulp * r.losses[i]; });
      for (int i = 0; i < 2; ++i) {
        auto& d = i == 0 ? dstft : dmel;
        const auto gradient = [&](int64_t n) { return r.gradients[i][static_cast<size_t>(n)]; };
        // As in spectral_loss_test.cpp: eight times the root of the sum of the squares of independent errors.
        const auto allowed = [&](int64_t n) {
          return 8 * std::sqrt(r.variances[i][static_cast<size_t>(n)]) + 8 * ulp * std::fabs(gradient(n));
        };
        c.expect(d, gradient, allowed);
        std::vector<double> planted;
        for (const float v : d.read()) planted.push_back(static_cast<double>(v));
        planted[0] += 10 * allowed(0);
        if (allowed(0) > 0) CHECK(worst_ratio(planted, gradient, allowed) > 1);
      }
      const auto full = losses.read();
      losses.write({NAN, NAN});
      spectral_loss(c.ctx, {.plan = plan, .estimate = x, .target = y, .lengths = lengths, .losses = losses});
      c.expect_equal(losses, full);
    }
}

TEST_CASE("spectral_loss: the reference's gradients of norms and weights are finite differences") {
  for (const Trial& t : trials()) {
    if (t.batch * t.time > 1000) continue;
    const Shape s{.batch = t.batch, .time = t.time};
    Case c("spectral_loss kinds differences", Device{}, s);
    std::vector<double> x = doubles(c.random("x", s, -1, 1)), y = doubles(c.random("y", s, -1, 1));
    const auto r = reference::spectral_loss(t.config, t.batch, t.time, x, y, t.lengths);
    double size = 0;
    for (const double g : r.gradients[1]) size = std::max(size, std::fabs(g));
    for (int draw = 0; draw < 6; ++draw) {
      const size_t n = c.rng() % x.size();
      const double step = 1e-6, before = x[n];
      double moved[2];
      for (int side = 0; side < 2; ++side) {
        x[n] = before + (side == 0 ? -step : step);
        moved[side] = reference::spectral_loss(t.config, t.batch, t.time, x, y, t.lengths, false).losses[1];
      }
      x[n] = before;
      // As in spectral_loss_test.cpp: rounding, and curvature where bins are small.
      const double slope = (moved[1] - moved[0]) / (2 * step);
      INFO("time " << t.time << " batch " << t.batch << " sample " << n << " seed " << seed());
      CHECK(std::fabs(slope - r.gradients[1][n]) <= 1e-8 * (1 + r.losses[1]) + 1e-5 * size);
    }
  }
}

TEST_CASE("spectral_loss: norms agree with SoundStream's loss in numpy") {
  // Signals, loss per window and the gradient of their sum from golden/make_mel_norms.py: windows 64 to 2048 at 24 kHz.
  const Shape s{.batch = 2, .time = 1201};
  uint32_t state = 54321;
  std::vector<float> signals(static_cast<size_t>(2 * s.elements()));
  for (float& x : signals) {
    state = state * 1664525u + 1013904223u;
    x = static_cast<float>(state >> 8) * 0x1p-24f - 0.5f;
  }
  const auto half = static_cast<int64_t>(signals.size() / 2);
  for (const Device device : devices()) {
    Case c("spectral_loss mel_norms golden", device, s);
    auto& x = c.values<float>("estimate", s, {signals.begin(), signals.begin() + half});
    auto& y = c.values<float>("target", s, {signals.begin() + half, signals.end()});
    auto &losses = c.output("losses", {.batch = 2}), &dmel = c.output("dmel", s);
    SpectralConfig all = soundstream({});
    double sum = 0;
    for (size_t i = 0; i < mel_norms_losses.size(); ++i) {
      const int64_t window = int64_t{64} << i;
      const SpectralScale one = norms(window, 64, 0, 1, static_cast<float>(std::sqrt(static_cast<double>(window) / 2)));
      all.scales.push_back(one);
      const auto r = reference::spectral_loss(soundstream({one}), s.batch, s.time, doubles(x), doubles(y), {}, false);
      // The root of s / 2 is rounded to float in the library's weight; the file keeps 13 digits.
      const double expected = mel_norms_losses[i];
      CHECK(std::fabs(r.losses[1] - expected) <= ulp * expected);
      sum += expected;
      const SpectralPlan plan(c.ctx, s, soundstream({one}));
      spectral_loss(c.ctx, {.plan = plan, .estimate = x, .target = y, .losses = losses});
      CHECK(std::fabs(static_cast<double>(losses.read()[1]) - expected) <= r.loss_errors[1] + 2 * ulp * expected);
    }
    const auto r = reference::spectral_loss(all, s.batch, s.time, doubles(x), doubles(y), {});
    CHECK(std::fabs(r.losses[1] - sum) <= ulp * sum);
    double worst = 0, most = 0;
    for (size_t n = 0; n < mel_norms_gradient.size(); ++n) {
      worst = std::max(worst, std::fabs(r.gradients[1][n] - mel_norms_gradient[n]));
      most = std::max(most, std::fabs(mel_norms_gradient[n]));
    }
    CHECK(worst <= ulp * most);
    const SpectralPlan plan(c.ctx, s, all);
    spectral_loss(c.ctx, {.plan = plan, .estimate = x, .target = y, .losses = losses, .dmel = dmel});
    c.expect(
        dmel, [&](int64_t n) { return mel_norms_gradient[static_cast<size_t>(n)]; },
        [&](int64_t n) { return 8 * std::sqrt(r.variances[1][static_cast<size_t>(n)]) + (8 * ulp + ulp) * most; });
  }
}

TEST_CASE("spectral_loss: norms of equal signals, of silence and of large samples") {
  for (const Device device : devices()) {
    const Shape s{.batch = 1, .time = 601};
    Case c("spectral_loss silent norms", device, s);
    auto &silence = c.zeros("silence", s), &sound = c.random("sound", s, -1, 1);
    auto& large = c.values("large", s, std::vector<float>(601, 1e12f));
    auto &losses = c.output("losses", {.batch = 2}), &dmel = c.output("dmel", s);
    const SpectralPlan plan(c.ctx, s, soundstream({norms(64, 64), norms(120, 40), norms(8192, 64)}));
    const auto run = [&](View<const float> estimate, View<const float> target) {
      spectral_loss(c.ctx, {.plan = plan, .estimate = estimate, .target = target, .losses = losses, .dmel = dmel});
    };
    // The gradient of a norm at zero is zero.
    for (auto* x : {&silence, &sound, &large}) {
      run(*x, *x);
      for (const auto& v : {losses.read(), dmel.read()})
        CHECK(std::all_of(v.begin(), v.end(), [](float f) { return f == 0; }));
    }
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

TEST_CASE("spectral_loss: the number of frames does not change a loss of norms") {
  // A cosine whose period divides the hop, and which is even about both ends, has equal frames however long it is.
  for (const Device device : devices()) {
    double found[2];
    for (int i = 0; i < 2; ++i) {
      const Shape s{.batch = 1, .time = i == 0 ? 129 : 513};
      Case c("spectral_loss frames of norms", device, s);
      std::vector<float> x(static_cast<size_t>(s.time));
      for (size_t n = 0; n < x.size(); ++n)
        x[n] = static_cast<float>(std::cos(2 * reference::pi * static_cast<double>(n % 16) / 16));
      auto &estimate = c.values("estimate", s, x), &target = c.zeros("target", s);
      auto& losses = c.output("losses", {.batch = 2});
      const SpectralPlan plan(c.ctx, s, soundstream({norms(64, 20)}));
      spectral_loss(c.ctx, {.plan = plan, .estimate = estimate, .target = target, .losses = losses});
      const auto r = reference::spectral_loss(plan.config(), 1, s.time, doubles(estimate), doubles(target), {}, false);
      CHECK(std::fabs(static_cast<double>(losses.read()[1]) - r.losses[1]) <= r.loss_errors[1] + 2 * ulp * r.losses[1]);
      found[i] = r.losses[1];
    }
    // Frames are sums of the same doubles in another place.
    CHECK(std::fabs(found[1] - found[0]) <= 1e-9 * found[0]);
  }
}

TEST_CASE("spectral_loss: weights of frames come from the target alone") {
  for (const Device device : devices()) {
    const Shape s{.batch = 1, .time = 600};
    Case c("spectral_loss transients", device, s);
    // Decays by 0.17 dB per sample, so each frame is below the one before. The other one has a click.
    std::vector<float> decay(600), click;
    for (size_t i = 0; i < decay.size(); ++i) decay[i] = static_cast<float>(std::pow(0.98, static_cast<double>(i)));
    click = decay;
    click[300] = 1;
    auto &quiet = c.values("decay", s, decay), &loud = c.values("click", s, click);
    auto &losses = c.output("losses", {.batch = 2}), &dmel = c.output("dmel", s);
    const auto results = [&](View<const float> estimate, View<const float> target, float transient) {
      const SpectralPlan plan(c.ctx, s, perceptual({logs(64, 10), logs(120, 12), logs(8192, 10)}, 1, transient));
      spectral_loss(c.ctx, {.plan = plan, .estimate = estimate, .target = target, .losses = losses, .dmel = dmel});
      std::vector<float> all = losses.read();
      for (const float v : dmel.read()) all.push_back(v);
      return all;
    };
    const auto a = results(loud, quiet, 1), b = results(loud, quiet, 4);
    CHECK(a == b);
    CHECK(a[1] > 0);
    CHECK(results(quiet, loud, 4)[1] > results(quiet, loud, 1)[1]);
    // Without a rise the weights are 1, which gives the bits of a loss without weights; on a GPU another kernel.
    if (device.kind == Device::cpu) CHECK(a == results(loud, quiet, 0));
  }
}

TEST_CASE("spectral_loss: the weight of a rise is as written") {
  for (const Device device : devices()) {
    const Shape s{.batch = 1, .time = 192};
    Case c("spectral_loss rise", device, s);
    // Three frames without overlap: silence at -60 dB, then ones at 0 dB, twice. The estimate has half or twice that.
    std::vector<float> ones(192);
    std::fill(ones.begin() + 64, ones.end(), 1.0f);
    const auto times = [&](float factor) {
      std::vector<float> x = ones;
      for (float& v : x) v *= factor;
      return x;
    };
    auto &target = c.values("target", s, ones), &twice = c.values("twice", s, times(2)),
         &half = c.values("half", s, times(0.5f)), &losses = c.output("losses", {.batch = 2});
    SpectralScale apart = logs(64, 10);
    apart.hop = 64, apart.aligned = true;
    const auto loss = [&](View<const float> estimate, float excess, float transient, float rise) {
      const SpectralPlan plan(c.ctx, s, perceptual({apart}, excess, transient, rise));
      spectral_loss(c.ctx, {.plan = plan, .estimate = estimate, .target = target, .losses = losses});
      return static_cast<double>(losses.read()[1]);
    };
    // Both loud frames have the same loss. The weight of the first is a number of a few roundings; bands without any
    // energy lie below the floor and do not matter. Logarithms have errors of 2^-22, their differences are log10(2).
    const double allowed = 1e-5, plain = loss(twice, 1, 0, 100);
    CHECK(plain > 0);
    const auto ratio = [&](View<const float> estimate, float excess, float transient, float rise) {
      return loss(estimate, excess, transient, rise) / plain;
    };
    CHECK(std::fabs(ratio(twice, 1, 1, 100) - (1.6 + 1) / 2) < allowed);
    CHECK(std::fabs(ratio(twice, 1, 2, 80) - (2.5 + 1) / 2) < allowed);
    CHECK(std::fabs(ratio(twice, 1, 3, 10) - (4.0 + 1) / 2) < allowed);
    CHECK(std::fabs(ratio(twice, 3, 1, 100) - 3 * (1.6 + 1) / 2) < allowed);
    CHECK(std::fabs(ratio(half, 3, 1, 100) - (1.6 + 1) / 2) < allowed);
  }
}

TEST_CASE("spectral_loss: norms and weights have the same bits for every number of threads, and captured") {
  for (const Device device : devices())
    for (const SpectralConfig& config : {soundstream({norms(64, 20), norms(256, 64), norms(60, 20)}),
                                         perceptual({logs(64, 10), logs(256, 40), logs(60, 8)}, 2, 3)}) {
      const Shape s{.batch = 3, .time = 700};
      std::vector<float> found[3];
      for (int threads = 1; threads <= 3; ++threads) {
        Case c("spectral_loss kinds threads", device, s, threads);
        const SpectralPlan plan(c.ctx, s, config);
        auto &x = c.random("estimate", s, -1, 1), &y = c.values("target", s, bursts(c, s.elements(), 61));
        auto& lengths = c.values<int32_t>("lengths", {.batch = 3}, {700, 333, 1});
        auto &losses = c.output("losses", {.batch = 2}), &dmel = c.output("dmel", s);
        const auto step = [&] {
          spectral_loss(c.ctx,
                        {.plan = plan, .estimate = x, .target = y, .lengths = lengths, .losses = losses, .dmel = dmel});
        };
        const auto all = [&] {
          std::vector<float> out = losses.read();
          for (const float v : dmel.read()) out.push_back(v);
          return out;
        };
        step();
        found[threads - 1] = all();
        Graph graph = c.ctx.capture(step);
        y.write(c.random("other", s, -2, 2).before());
        step();
        const auto eager = all();
        dmel.write(std::vector<float>(static_cast<size_t>(s.elements()), NAN));
        graph.replay();
        CHECK(all() == eager);
        CHECK(eager != found[threads - 1]);
      }
      CHECK(found[1] == found[0]);
      CHECK(found[2] == found[0]);
    }
}

#if defined(NACRE_WITH_CUDA)
TEST_CASE("spectral_loss: which kernels run on CUDA for norms and weights", "[a100][rtx3090]") {
  for (const Device device : devices()) {
    if (device.kind != Device::cuda) continue;
    const Shape s{.batch = 2, .time = 256};
    const auto launches = [&](const SpectralConfig& config) {
      Case c("spectral_loss kinds kernels", device, s);
      const SpectralPlan plan(c.ctx, s, config);
      auto &x = c.random("estimate", s, -1, 1), &losses = c.output("losses", {.batch = 2}), &dmel = c.output("dmel", s);
      const auto counts = [&] {
        std::vector<int64_t> n;
        for (const char* name : {"spectral_transients", "spectral_fused", "spectral_rows", "spectral_rows_long",
                                 "spectral_norms", "spectral_bands", "spectral_cells"})
          n.push_back(cuda::runtime(c.ctx).launches(name));
        return n;
      };
      const auto before = counts();
      spectral_loss(c.ctx, {.plan = plan, .estimate = x, .target = x, .losses = losses, .dmel = dmel});
      auto after = counts();
      for (size_t i = 0; i < after.size(); ++i) after[i] -= before[i];
      return after;
    };
    using Counts = std::vector<int64_t>;
    CHECK(launches(soundstream({norms(64, 64)})) == Counts{0, 1, 0, 0, 0, 0, 0});
    CHECK(launches(soundstream({norms(120, 30)})) == Counts{0, 0, 1, 0, 0, 0, 0});
    CHECK(launches(soundstream({norms(4608, 30)})) == Counts{0, 0, 0, 1, 0, 0, 0});
    CHECK(launches(soundstream({norms(8192, 30)})) == Counts{0, 0, 0, 0, 1, 0, 1});
    CHECK(launches(perceptual({logs(64, 10)}, 2, 0)) == Counts{0, 1, 0, 0, 0, 0, 0});
    CHECK(launches(perceptual({logs(64, 10)}, 1, 2)) == Counts{1, 1, 0, 0, 0, 0, 0});
    CHECK(launches(perceptual({logs(64, 0, 1), logs(120, 10)}, 1, 2)) == Counts{1, 1, 1, 0, 0, 0, 0});
    CHECK(launches(perceptual({logs(8192, 10)}, 2, 2)) == Counts{1, 0, 0, 0, 0, 1, 1});
  }
}
#endif

TEST_CASE("spectral_loss: weights that cannot be are refused") {
  using Catch::Contains;
  Case c("spectral_loss kinds errors", Device{}, {});
  const auto plan_of = [&](const SpectralConfig& config) { SpectralPlan(c.ctx, {.batch = 2, .time = 100}, config); };
  const float nan = std::numeric_limits<float>::quiet_NaN();
  for (const float excess : {0.99f, 1001.0f, nan})
    CHECK_THROWS_WITH(plan_of(perceptual({logs(64, 10)}, excess, 0)), Contains("spectral_loss: mel_excess is"));
  for (const float transient : {-0.01f, 1001.0f, nan})
    CHECK_THROWS_WITH(plan_of(perceptual({logs(64, 10)}, 1, transient)), Contains("expected 1 to 1000 and 0 to 1000"));
  for (const float rise : {0.0f, 101.0f, nan})
    CHECK_THROWS_WITH(plan_of(perceptual({logs(64, 10)}, 1, 1, rise)), Contains("spectral_loss: transient_rise is"));
  for (const MelKind kind : {MelKind::power, MelKind::norms}) {
    SpectralScale other = logs(64, 10);
    other.mel_kind = kind;
    CHECK_THROWS_WITH(plan_of(perceptual({other}, 2, 0)), Contains("expected 1 and 0 without MelKind::log"));
    CHECK_THROWS_WITH(plan_of(perceptual({other}, 1, 1)), Contains("expected 1 and 0 without MelKind::log"));
    other.mels = 0;
    CHECK_NOTHROW(plan_of(perceptual({other}, 2, 1)));
  }
}
