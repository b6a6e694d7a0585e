#include "nacre/ops/spectral_loss.h"

#include <cmath>
#include <memory>

#include "harness.h"

namespace nacre::bench {
namespace {

// A real transform takes 2.5 N log2 N operations. There are two forward transforms, and one per gradient.
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

struct Losses {
  const char* name;
  SpectralConfig config;
};
void add_losses(Suite& suite, const Losses& l, Shape s, bool alone = true) {
  std::string windows, mels, stft, kind = "log";
  for (const SpectralScale& scale : l.config.scales) {
    const char* comma = windows.empty() ? "" : ",";
    windows += comma + std::to_string(scale.window), mels += comma + std::to_string(scale.mels);
    stft += comma + std::to_string(scale.magnitude != 0);
    if (scale.mel_kind == MelKind::power) kind = "power";
    if (scale.mel_kind == MelKind::norms) kind = "norms";
  }
  if (l.config.mel_excess != 1 || l.config.mel_transient != 0) kind = "weighted log";
  for (const bool gradients : {true, false}) {
    if (!gradients && !alone) continue;
    suite.add({.name = std::string("spectral_loss") + (gradients ? "/" : "_only/") + l.name + "/" + label(s),
               .bytes = (gradients ? 16 : 8) * s.elements(),
               .flops = flops(l.config, s, gradients),
               .parameters = {{"op", "spectral_loss"},
                              {"direction", gradients ? "loss_and_gradient" : "loss"},
                              {"type", "fp32"},
                              {"batch", s.batch},
                              {"time", s.time},
                              {"rate", l.config.sample_rate},
                              {"windows", windows},
                              {"mels", mels},
                              {"stft", stft},
                              {"mel_kind", kind}}},
              [=, c = l.config](Data& data) -> Run {
                const auto plan = std::make_shared<SpectralPlan>(data.ctx, s, c);
                const View<float> x = data.random(s), y = data.random(s), losses = data.random({.batch = 2});
                const View<float> dstft = gradients ? data.random(s) : View<float>{};
                const View<float> dmel = gradients ? data.random(s) : View<float>{};
                return [=](Context& ctx) {
                  spectral_loss(
                      ctx, {.plan = *plan, .estimate = x, .target = y, .losses = losses, .dstft = dstft, .dmel = dmel});
                };
              });
  }
}

const Cases cases([](Suite& suite) {
  Losses trainer{"three", {.sample_rate = 16000}};  // three windows, both terms
  for (const int64_t n : {64, 256, 1024})
    trainer.config.scales.push_back({.window = n,
                                     .hop = n / 4,
                                     .mels = n == 64    ? 10
                                             : n == 256 ? 40
                                                        : 80,
                                     .magnitude = 1,
                                     .log_magnitude = 1,
                                     .mel_log = 1});
  // DAC's nine terms: mel at seven windows, and magnitudes at two of them.
  Losses dac{"dac", {.sample_rate = suite.cuda() ? 44100 : 16000}};
  for (int64_t n = 32; n <= 2048; n *= 2) {
    const bool stft = n == 512 || n == 2048;
    dac.config.scales.push_back({.window = n,
                                 .hop = n / 4,
                                 .mels = 5 * n / 32,
                                 .magnitude = stft ? 1.0f : 0.0f,
                                 .log_magnitude = stft ? 1.0f : 0.0f,
                                 .mel_log = 1});
  }
  // EnCodec's: powers of 64 bands at five windows.
  Losses encodec{
      "encodec",
      {.sample_rate = 24000, .scales = {}, .mel_scale = MelScale::htk, .area_normalised = false, .fmin = 64}};
  for (int64_t n = 64; n <= 1024; n *= 2)
    encodec.config.scales.push_back({.window = n,
                                     .hop = n / 4,
                                     .mels = 64,
                                     .mel_magnitude = 1,
                                     .mel_log = 1,
                                     .mel_kind = MelKind::power,
                                     .aligned = true});
  // SoundStream's: norms of 64 bands at six windows.
  Losses soundstream{"soundstream",
                     {.sample_rate = 24000, .scales = {}, .mel_scale = MelScale::htk, .area_normalised = false}};
  for (int64_t n = 64; n <= 2048; n *= 2)
    soundstream.config.scales.push_back({.window = n,
                                         .hop = n / 4,
                                         .mels = 64,
                                         .mel_magnitude = 1,
                                         .mel_log = std::sqrt(static_cast<float>(n) / 2),
                                         .mel_kind = MelKind::norms});
  if (suite.small()) {
    trainer.config.scales.pop_back();
    dac.config.scales.resize(3);
    encodec.config.scales.resize(3);
    soundstream.config.scales.resize(3);
  }
  // DAC's terms with weights of frames and of excess: the difference to dac is their cost.
  Losses perceptual = dac;
  perceptual.name = "perceptual", perceptual.config.mel_excess = 1.5f, perceptual.config.mel_transient = 1;
  if (suite.cuda()) {
    for (const int64_t batch : {72, 16})
      add_losses(suite, dac, {.batch = suite.least(batch, 2), .time = suite.least(16896, 300)});
    dac.config.sample_rate = 16000;
    add_losses(suite, {"dac16k", dac.config}, {.batch = suite.least(16, 2), .time = suite.least(16000, 300)});
    add_losses(suite, trainer, {.batch = suite.least(16, 2), .time = suite.least(16000, 300)});
    // Windows that are no powers of two use cuFFT.
    Losses around{"around_cufft", {.sample_rate = 16000}};
    for (const int64_t n : {96, 384, 1536})
      if (!suite.small() || n < 1000)
        around.config.scales.push_back(
            {.window = n, .hop = n / 4, .mels = 10, .magnitude = 1, .log_magnitude = 1, .mel_log = 1});
    add_losses(suite, around, {.batch = suite.least(16, 2), .time = suite.least(16000, 300)});
    add_losses(suite, perceptual, {.batch = suite.least(72, 2), .time = suite.least(16896, 300)}, false);
    add_losses(suite, encodec, {.batch = suite.least(64, 2), .time = suite.least(24000, 300)}, false);
    add_losses(suite, soundstream, {.batch = suite.least(64, 2), .time = suite.least(24000, 300)}, false);
  } else {
    add_losses(suite, encodec, {.batch = suite.least(8, 2), .time = suite.least(24000, 300)}, false);
    add_losses(suite, soundstream, {.batch = suite.least(8, 2), .time = suite.least(24000, 300)}, false);
    add_losses(suite, perceptual, {.batch = suite.least(8, 2), .time = suite.least(16000, 300)}, false);
    for (const int64_t time : {4000, 16000})
      for (const Losses& l : {trainer, dac})
        add_losses(suite, l, {.batch = suite.least(8, 2), .time = suite.least(time, 300)});
  }
});

}  // namespace
}  // namespace nacre::bench
