#include "nacre/ops/spectral_loss.h"

#include <cmath>

#include "harness.h"

namespace nacre::bench {
namespace {

// 2.5 N log2 N for a real transform: two forward, one per gradient.
int64_t flops(const SpectralConfig& c, Shape s, bool gradients) {
  double sum = 0;
  for (const SpectralScale& scale : c.scales) {
    const double N = static_cast<double>(scale.window);
    const bool stft = scale.magnitude != 0 || scale.log_magnitude != 0;
    sum += (2 + (gradients ? stft + (scale.mels > 0) : 0)) * 2.5 * N * std::log2(N) *
           static_cast<double>(s.batch * (1 + s.time / scale.hop));
  }
  return static_cast<int64_t>(sum);
}

const Cases cases([](Suite& suite) {
  SpectralConfig trainer{.sample_rate = 16000};  // three windows, both terms
  for (const int64_t n : {64, 256, 1024})
    trainer.scales.push_back({.window = n,
                              .hop = n / 4,
                              .mels = n == 64    ? 10
                                      : n == 256 ? 40
                                                 : 80,
                              .magnitude = 1,
                              .log_magnitude = 1,
                              .mel_magnitude = 1,
                              .mel_log = 1});
  SpectralConfig dac{.sample_rate = 16000};  // seven mel windows
  for (int64_t n = 32; n <= 2048; n *= 2)
    dac.scales.push_back({.window = n, .hop = n / 4, .mels = 5 * n / 32, .mel_log = 1});
  const struct {
    const char* name;
    SpectralConfig config;
  } configs[] = {{"three", trainer}, {"dac", dac}};
  for (const auto& config : configs)
    for (const Shape s : {Shape{.batch = 8, .time = 4000}, Shape{.batch = 8, .time = 16000}})
      for (const bool gradients : {true, false})
        suite.add({.name = std::string("spectral_loss") + (gradients ? "/" : "_only/") + config.name + "/" + label(s),
                   .bytes = (gradients ? 16 : 8) * s.elements(),
                   .flops = flops(config.config, s, gradients)},
                  [=, c = config.config](Data& data) -> Run {
                    const auto plan = std::make_shared<SpectralPlan>(data.ctx, s, c);
                    const View<float> x = data.random(s), y = data.random(s), losses = data.random({.batch = 2});
                    const View<float> dstft = gradients ? data.random(s) : View<float>{};
                    const View<float> dmel = gradients ? data.random(s) : View<float>{};
                    return [=](Context& ctx) {
                      spectral_loss(
                          ctx,
                          {.plan = *plan, .estimate = x, .target = y, .losses = losses, .dstft = dstft, .dmel = dmel});
                    };
                  });
});

}  // namespace
}  // namespace nacre::bench
