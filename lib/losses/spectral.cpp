// Distances of spectra (ops/spectral_loss.h): short-time Fourier transforms and mel bands, over several windows.
#include <cmath>
#include <memory>

#include "nacre/losses/loss.h"

namespace nacre {
namespace {

/// Counts the fused kernel, which reads both signals and writes for each of the scale's losses (stft, mel or both) the
/// frames of a gradient, and the kernel that adds these frames up. `first`: it writes gradients, the others add to
/// them.
Costs window_costs(Shape signal, int64_t window, double losses, bool first) {
  const auto samples = static_cast<double>(signal.elements()), length = static_cast<double>(window);
  // The hop is a quarter of the window.
  const double frames = static_cast<double>(signal.batch * (1 + signal.time / (window / 4)));
  // Two transforms of real signals; a gradient takes one.
  const double transforms = 5 * length * std::ceil(std::log2(length)) * frames;
  return {.forward = {.floats = transforms + 20 * losses * frames * length, .bytes = 8 * samples, .launches = 1},
          .input_gradient = {.floats = losses * (transforms / 2 + 5 * frames * length),
                             .bytes = losses * (8 * frames * length + (first ? 4 : 8) * samples),
                             .launches = 1}};
}

}  // namespace

SpectralConfig LossConfig::spectral(int64_t sample_rate) const {
  SpectralConfig c;
  c.sample_rate = sample_rate;
  c.mel_scale = mel_scale;
  c.fmin = mel_fmin;
  int64_t with_mel = 0;
  for (const int64_t m : mels) with_mel += m > 0;
  // A window without mel bands takes no part in the mel term, so that term is divided among fewer windows.
  const float each = 1.0f / static_cast<float>(windows.size());
  const float each_mel = with_mel > 0 ? 1.0f / static_cast<float>(with_mel) : 0.0f;
  const bool power = mel_kind == MelKind::power, norms = mel_kind == MelKind::norms;
  c.area_normalised = mel_kind == MelKind::log;
  c.mel_excess = static_cast<float>(mel_excess), c.mel_transient = static_cast<float>(mel_transient);
  c.transient_rise = static_cast<float>(mel_transient_rise);
  for (size_t i = 0; i < windows.size(); ++i) {
    SpectralScale scale{.window = windows[i],
                        .hop = windows[i] / 4,
                        .mels = mels[i],
                        .magnitude = each,
                        .log_magnitude = each,
                        .mel_log = mels[i] > 0 ? each_mel : 0.0f};
    if (norms && scale.mels > 0) {
      // Magnitudes of noise grow with the root of the window, which is not normalised; so does the weight of
      // logarithms.
      scale.mel_kind = MelKind::norms;
      scale.mel_magnitude = each_mel;
      scale.mel_log = each_mel * static_cast<float>(std::sqrt(static_cast<double>(windows[i]) / 2));
    }
    if (power) {
      // The frames of this mel term are others than those of the STFT's, so the two share no transform.
      if (scale.mels > 0)
        c.scales.push_back({.window = scale.window,
                            .hop = scale.hop,
                            .mels = scale.mels,
                            .mel_magnitude = each_mel / 2,
                            .mel_log = each_mel / 2,
                            .mel_kind = MelKind::power,
                            .aligned = true});
      if (!(stft > 0)) continue;
      scale.mels = 0, scale.mel_log = 0;
    }
    c.scales.push_back(scale);
  }
  return c;
}

Loss spectral_loss_of(const LossConfig& config, int64_t sample_rate) {
  const auto plan = [config, sample_rate](Plan& p, const Signals& signals) {
    const Step s = p.step("loss.spectral");
    const Input<float> stft = read_branch(s, signals.estimates[0]), mel = read_branch(s, signals.estimates[1]);
    const Shape shape = signals.estimates[0].shape;
    for (size_t i = 0; i < config.windows.size(); ++i) {
      const int64_t window = config.windows[i];
      Costs costs;
      if (config.mel_kind != MelKind::power) costs += window_costs(shape, window, 2, i == 0);
      if (config.mel_kind == MelKind::power && config.stft > 0) costs += window_costs(shape, window, 1, i == 0);
      if (config.mel_kind == MelKind::power && config.mels[i] > 0) costs += window_costs(shape, window, 1, i == 0);
      // Weights of transients, from the recorded audio.
      if (config.mel_transient > 0)
        costs.forward +=
            {.floats = static_cast<double>(8 * shape.elements()),
             .bytes = static_cast<double>(4 * (shape.elements() + 2 * shape.batch * (1 + shape.time / (window / 4)))),
             .launches = 1};
      // Weights of frames, sums over parts, and results.
      if (i == 0) costs.forward.launches += 3;
      s.costs(costs, "loss.window." + std::to_string(window));
    }
    // Closures are copied, but the tables of windows and bands are shared. They are built only when steps are recorded.
    std::shared_ptr<const SpectralPlan> tables;
    if (p.recording()) tables = std::make_shared<SpectralPlan>(p.context(), shape, config.spectral(sample_rate));
    s.backward([=, target = signals.target, lengths = signals.lengths, values = signals.values](Context& c) {
      spectral_loss(c, {.plan = *tables,
                        .estimate = stft.value,
                        .target = target,
                        .lengths = lengths,
                        .losses = values,
                        .dstft = stft.grad,
                        .dmel = mel.grad});
    });
  };
  return {.terms = {{"stft", "STFT", config.stft}, {"mel", "mel", config.mel}}, .plan = plan};
}

}  // namespace nacre
