#include "nacre/ops/stft.h"

#include <cmath>

#include "harness.h"

namespace nacre::bench {
namespace {

const Cases cases([](Suite& suite) {
  const Shape s{.batch = 8, .time = 16000};
  for (const int64_t n : {64, 256, 1024, 2048}) {  // the windows of the spectral losses
    const StftGeometry g{.window = n, .hop = n / 4};
    const int64_t frames = s.batch * stft_frames(s.time, g), values = frames * (n + 2);
    const int64_t flops = static_cast<int64_t>(2.5 * std::log2(static_cast<double>(n))) * n * frames;
    const std::string shape = std::to_string(n) + "/" + label(s);
    suite.add({.name = "stft_forward/" + shape, .bytes = 4 * (s.elements() + values), .flops = flops},
              [=](Data& data) -> Run {
                const auto plan = std::make_shared<StftPlan>(data.ctx, s, g);
                const View<float> x = data.random(s), y = data.random(plan->spectrum());
                return [=](Context& ctx) { stft_forward(ctx, {.plan = *plan, .x = x, .spectrum = y}); };
              });
    suite.add({.name = "stft_adjoint/" + shape, .bytes = 4 * (s.elements() + values), .flops = flops},
              [=](Data& data) -> Run {
                const auto plan = std::make_shared<StftPlan>(data.ctx, s, g);
                const View<float> dx = data.random(s), dy = data.random(plan->spectrum());
                return [=](Context& ctx) { stft_adjoint(ctx, {.plan = *plan, .dspectrum = dy, .dx = dx}); };
              });
  }
});

}  // namespace
}  // namespace nacre::bench
