#include "nacre/ops/stft.h"

#include <cmath>
#include <memory>

#include "harness.h"

namespace nacre::bench {
namespace {

const Cases cases([](Suite& suite) {
  const Shape s = suite.cuda() ? Shape{.batch = suite.least(72, 2), .time = suite.least(16896, 300)}
                               : Shape{.batch = suite.least(8, 2), .time = suite.least(16000, 300)};
  for (const int64_t n : {64, 256, 1024, 2048}) {  // windows of the spectral losses
    if (suite.small() && n > 256) continue;
    const StftGeometry g{.window = n, .hop = n / 4};
    const int64_t frames = s.batch * stft_frames(s.time, g), values = frames * (n + 2);
    const auto info = [&](const char* direction) {
      return CaseInfo{.name = std::string("stft_") + direction + "/" + std::to_string(n) + "/" + label(s),
                      .bytes = 4 * (s.elements() + values),
                      .flops = static_cast<int64_t>(2.5 * static_cast<double>(n) * std::log2(static_cast<double>(n)) *
                                                    static_cast<double>(frames)),
                      .parameters = {{"op", "stft"},
                                     {"direction", direction},
                                     {"type", "fp32"},
                                     {"batch", s.batch},
                                     {"time", s.time},
                                     {"window", n},
                                     {"hop", g.hop}}};
    };
    suite.add(info("forward"), [=](Data& data) -> Run {
      const auto plan = std::make_shared<StftPlan>(data.ctx, s, g);
      const View<float> x = data.random(s), y = data.random(plan->spectrum());
      return [=](Context& ctx) { stft_forward(ctx, {.plan = *plan, .x = x, .spectrum = y}); };
    });
    suite.add(info("adjoint"), [=](Data& data) -> Run {
      const auto plan = std::make_shared<StftPlan>(data.ctx, s, g);
      const View<float> dx = data.random(s), dy = data.random(plan->spectrum());
      return [=](Context& ctx) { stft_adjoint(ctx, {.plan = *plan, .dspectrum = dy, .dx = dx}); };
    });
  }
});

}  // namespace
}  // namespace nacre::bench
