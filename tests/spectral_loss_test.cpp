#include "nacre/ops/spectral_loss.h"

#include <limits>

#include "golden/spectral.inc"
#include "harness.h"
#include "log10.h"
#include "reference/spectral.h"

using namespace nacre;
using namespace nacre::test;

namespace {

SpectralScale scale(int64_t window, int64_t hop, int64_t mels, float magnitude = 1, float log_magnitude = 1,
                    float mel_magnitude = 1, float mel_log = 1) {
  return {window, hop, mels, magnitude, log_magnitude, mel_magnitude, mel_log};
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
  return {
      {1, 64, with({scale(64, 16, 0)})},                     // one window of signal, no mel term
      {1, 1, with({scale(8, 2, 2)})},                        // one sample: every position reflects it
      {2, 2, with({scale(16, 4, 2)})},                       // reflection bounces several times
      {1, 33, with({scale(4, 1, 1)})},                       // smallest window, hop 1
      {3, 200, with({scale(64, 16, 10), scale(32, 8, 5)})},  // rows of two items in one block of lanes
      {1, 15, with({scale(4, 1, 1), scale(32, 8, 4)})},      // exactly one block of 16 frames; signal inside the window
      {1, 16, with({scale(4, 1, 1)})},                       // one lane more than a block
      {2, 300, with({scale(120, 31, 12)})},                  // factors 2, 3, 5; hop does not divide anything
      {1, 500, with({scale(250, 100, 9)})},                  // odd half window (no middle bin)
      {1, 700, with({scale(64, 100, 10)})},                  // hop > window: samples in no frame
      {8, 4000, with({scale(64, 16, 10), scale(256, 64, 40), scale(1024, 256, 80)})},     // the trainer's, short
      {1, 2100, with({scale(2048, 512, 320, 0, 0, 0, 1), scale(32, 8, 5, 0, 0, 0, 1)})},  // both ends of DAC's
      {1, 5000, with({scale(64, 16, 10)})},                                // long: several chunks of the overlap-add
      {2, 200, zero},                                                      // zero padding
      {2, 200, htk},                                                       // the other filter bank, with limits
      {1, 400, squared},                                                   // log of the power
      {1, 300, high_floor},                                                // many values below the floor
      {4, 200, with({scale(64, 16, 10)}), {200, 100, 0, 1}},               // full, half, nothing, one sample
      {3, 300, with({scale(64, 16, 10), scale(32, 8, 0)}), {96, 97, 95}},  // on, after and before a frame's centre
      {2, 64, with({scale(16, 4, 3)}), {-5, 1000}},                        // lengths out of range are brought into it
      {2, 100, with({scale(32, 8, 6, 0, 1, 1, 0), scale(16, 4, 3, 1, 0, 0, 1)})},  // some weights 0
      {1, 128, with({scale(32, 8, 5, 0, 0, 1, 1)})},                               // mel only: dstft is all zero
      {2, 128, with({})},                                                          // no scales: zeros
  };
}

std::vector<double> doubles(const Buffer<float>& b) { return {b.before().begin(), b.before().end()}; }

View<const int32_t> lengths_view(Case& c, const std::vector<int32_t>& lengths) {
  if (lengths.empty()) return {};
  return c.values<int32_t>("lengths", {.batch = static_cast<int64_t>(lengths.size())}, lengths);
}

}  // namespace

TEST_CASE("spectral_loss: losses and gradients against the reference") {
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
      // The reference adds the worst case of every cell; the result is stored as a float.
      const auto loss_error = [&](int64_t i) { return r.loss_errors[i] + 2 * ulp * r.losses[i]; };
      c.expect(losses, loss, loss_error);
      for (int i = 0; i < 2; ++i) {
        auto& d = i == 0 ? dstft : dmel;
        const auto gradient = [&](int64_t n) { return r.gradients[i][static_cast<size_t>(n)]; };
        // Independent errors of many bins and frames: eight times the root of the sum of their squares, and the
        // rounding of each of the sums of frames.
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
      // Losses alone are the same bits.
      const auto full = losses.read();
      losses.write({NAN, NAN});
      spectral_loss(c.ctx, {.plan = plan, .estimate = x, .target = y, .lengths = lengths, .losses = losses});
      c.expect_equal(losses, full);
    }
}
