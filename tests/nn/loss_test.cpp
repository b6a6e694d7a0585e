// The reconstruction loss of training: its windows, hops, bands and weights, and its three values.
#include "nacre/nn/loss.h"

#include <cmath>

#include "harness.h"
#include "nacre/random.h"
#include "reference/spectral.h"

using namespace nacre;
using namespace nacre::test;

namespace {

/// A scale of the loss as loss.h defines it. The hop is a quarter of the window. Weights are equal and sum to one, over
/// all windows for the STFT (magnitudes and logarithms alike), and over the windows with bands for mel.
SpectralScale scale(int64_t window, int64_t mels, float of_stft, float of_mel) {
  return {.window = window,
          .hop = window / 4,
          .mels = mels,
          .magnitude = of_stft,
          .log_magnitude = of_stft,
          .mel_log = of_mel};
}

}  // namespace

TEST_CASE("loss: scales of a configuration", "[loss]") {
  struct Known {
    std::vector<int64_t> windows, mels;
    std::vector<SpectralScale> scales;
  };
  const float third = 1.0f / 3;
  for (const Known& k :
       {Known{{64, 256, 1024},
              {10, 40, 80},
              {scale(64, 10, third, third), scale(256, 40, third, third), scale(1024, 80, third, third)}},
        Known{{16, 32, 64, 128},
              {0, 8, 16, 0},
              {scale(16, 0, 0.25f, 0), scale(32, 8, 0.25f, 0.5f), scale(64, 16, 0.25f, 0.5f), scale(128, 0, 0.25f, 0)}},
        Known{{20}, {0}, {scale(20, 0, 1, 0)}}}) {
    LossConfig config;
    config.windows = k.windows, config.mels = k.mels;
    config.mel_scale = MelScale::htk;
    const SpectralConfig made = config.spectral(24000);
    CHECK(made.sample_rate == 24000);
    CHECK(made.mel_scale == MelScale::htk);
    REQUIRE(made.scales.size() == k.scales.size());
    for (size_t i = 0; i < k.scales.size(); ++i) {
      const SpectralScale &found = made.scales[i], &expected = k.scales[i];
      INFO("window " << expected.window);
      CHECK(found.window == expected.window);
      CHECK(found.hop == expected.hop);
      CHECK(found.mels == expected.mels);
      CHECK(found.magnitude == expected.magnitude);
      CHECK(found.log_magnitude == expected.log_magnitude);
      CHECK(found.mel_magnitude == 0);
      CHECK(found.mel_log == expected.mel_log);
    }
  }
}

TEST_CASE("loss: the three values, in their order, of what is audio", "[loss]") {
  for (const Device device : devices()) {
    INFO(str(device));
    Context ctx({.device = device, .threads = 2});
    LossConfig config;
    config.windows = {16, 64}, config.mels = {3, 8};
    const ReconstructionLoss loss(config, 8000);
    ReconstructionLoss::Planned planned;
    const Shape shape{.batch = 2, .time = 300};
    const std::vector<int32_t> valid{300, 170};
    View<float> estimate, target;
    View<int32_t> lengths;
    Plan plan(ctx, Purpose::training);
    plan.reserve([&](Plan& p) {
      target = p.source<float>(shape).value;
      lengths = p.persistent<int32_t>({.channels = 2});
      const Output<float> source = p.source<float>(shape, true);
      estimate = source.value;
      planned = loss.plan(p, source.flow, target, lengths);
    });
    std::vector<float> x(600), y(600);
    const Philox draw{6, 1};
    double distance = 0;
    for (size_t t = 0; t < 600; ++t) {
      x[t] = static_cast<float>(draw.uniform(2 * t) - 0.5), y[t] = static_cast<float>(draw.uniform(2 * t + 1) - 0.5);
      if (t % 300 < static_cast<size_t>(valid[t / 300]))
        distance += std::fabs(static_cast<double>(x[t]) - static_cast<double>(y[t]));
    }
    ctx.write<float>(x, target);
    ctx.write<float>(y, estimate);
    ctx.write<int32_t>(valid, lengths);
    plan.run();
    std::vector<float> values(3);
    ctx.read<float>(planned.values, values);
    // Differences are rounded to float, and so is their mean: two units.
    CHECK(std::fabs(static_cast<double>(values[0]) - distance / 470) <= 2 * ulp * distance / 470);
    SpectralConfig by_hand{.sample_rate = 8000, .scales = {scale(16, 3, 0.5f, 0.5f), scale(64, 8, 0.5f, 0.5f)}};
    const reference::Spectral e =
        reference::spectral_loss(by_hand, 2, 300, {y.begin(), y.end()}, {x.begin(), x.end()}, valid, false);
    for (size_t i = 0; i < 2; ++i)
      CHECK(std::fabs(static_cast<double>(values[i + 1]) - e.losses[i]) <= e.loss_errors[i]);
  }
}
