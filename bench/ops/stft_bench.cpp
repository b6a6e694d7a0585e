#include "nacre/ops/stft.h"

#include <cmath>
#include <memory>

#include "harness.h"

namespace nacre::bench {
namespace {

void add_stft(Suite& suite, Shape s, const StftGeometry& g) {
  const int64_t n = g.window, frames = s.batch * stft_frames(s.time, g), values = frames * (n + 2);
  const auto info = [&](const char* direction) {
    CaseInfo found{.name = std::string("stft_") + direction +
                           (g.inside    ? "/inside/"
                            : g.aligned ? "/aligned/"
                                        : "/") +
                           std::to_string(n) + "/" + label(s),
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
    if (g.aligned) found.parameters.push_back({"aligned", 1});
    if (g.inside) found.parameters.push_back({"inside", 1});
    return found;
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

const Cases cases([](Suite& suite) {
  const Shape s = suite.cuda() ? Shape{.batch = suite.least(72, 2), .time = suite.least(16896, 300)}
                               : Shape{.batch = suite.least(8, 2), .time = suite.least(16000, 300)};
  for (const int64_t n : {64, 256, 1024, 2048})  // windows of the spectral losses
    if (!suite.small() || n <= 256) add_stft(suite, s, {.window = n, .hop = n / 4});
  for (const int64_t n : {512, 1024, 2048})  // windows of the discriminators
    if (!suite.small() || n <= 512) add_stft(suite, s, {.window = n, .hop = n / 4, .aligned = true});
  const int64_t n = suite.small() ? 256 : 1024;  // of EnCodec's discriminators
  add_stft(suite, s, {.window = n, .hop = n / 4, .inside = true, .normalised = true});
});

}  // namespace
}  // namespace nacre::bench
