#include "nacre/nn/loss.h"

#include <cmath>
#include <memory>

#include "files/fields.h"
#include "nacre/ops/waveform_loss.h"

namespace nacre {
namespace {

[[noreturn]] void refuse_loss(const std::string& key, const std::string& what) {
  throw Error(ErrorKind::usage, "loss." + key + ": " + what);
}

/// Counts frames of both signals and their spectra, each written and read, and for each of the two losses one gradient
/// spectrum with its frames.
Costs window_costs(Shape signal, int64_t window) {
  const auto samples = static_cast<double>(signal.elements()), length = static_cast<double>(window);
  const double frames = static_cast<double>(signal.batch) * (1 + static_cast<double>(signal.time) / (length / 4));
  const double transforms = 5 * length * std::ceil(std::log2(length)) * frames,
               bytes = 32 * frames * length + 8 * samples;
  return {.forward = {.floats = transforms + 40 * frames * length, .bytes = bytes},
          .input_gradient = {.floats = transforms + 10 * frames * length, .bytes = bytes}};
}

}  // namespace

void LossConfig::check(int64_t sample_rate) const {
  LossConfig c = *this;
  check_limits("loss", fields_of(c), twelve_digits);
  if (waveform + stft + mel <= 0) refuse_loss("waveform", "waveform, stft and mel are all zero; one must be positive");
  if (windows.empty()) refuse_loss("windows", "is empty");
  if (mels.size() != windows.size())
    refuse_loss("mels", std::to_string(mels.size()) + " entries for " + std::to_string(windows.size()) + " windows");
  for (size_t i = 0; i < windows.size(); ++i) {
    if (windows[i] < 8 || windows[i] > 65536 || windows[i] % 4 != 0)
      refuse_loss("windows", std::to_string(windows[i]) + " is not a multiple of 4 between 8 and 65536");
    if (mels[i] < 0 || mels[i] > windows[i] / 2)
      refuse_loss("mels", std::to_string(mels[i]) + " bands at window " + std::to_string(windows[i]) +
                              ", expected 0 to " + std::to_string(windows[i] / 2));
  }
  if (sample_rate <= 0) refuse_loss("sample_rate", "must be positive");
}

SpectralConfig LossConfig::spectral(int64_t sample_rate) const {
  SpectralConfig c;
  c.sample_rate = sample_rate;
  c.mel_scale = mel_scale;
  int64_t with_mel = 0;
  for (const int64_t m : mels) with_mel += m > 0;
  const float each = 1.0f / static_cast<float>(windows.size());
  const float each_mel = with_mel > 0 ? 1.0f / static_cast<float>(with_mel) : 0.0f;
  for (size_t i = 0; i < windows.size(); ++i)
    c.scales.push_back({.window = windows[i],
                        .hop = windows[i] / 4,
                        .mels = mels[i],
                        .magnitude = each,
                        .log_magnitude = each,
                        .mel_log = mels[i] > 0 ? each_mel : 0.0f});
  return c;
}

ReconstructionLoss::ReconstructionLoss(LossConfig config, int64_t sample_rate)
    : config_(std::move(config)), sample_rate_(sample_rate) {
  config_.check(sample_rate);
}

ReconstructionLoss::Planned ReconstructionLoss::plan(Plan& p, Flow estimate, View<const float> target,
                                                     View<const int32_t> lengths) const {
  const Step s = p.step("loss");
  Context& context = p.context();
  const Shape shape = estimate.shape;
  const auto in = s.reads<float>(estimate, Until::backward);
  if (in.add) throw Error(ErrorKind::usage, "reconstruction loss: must be the last reader of the waveform");
  const View<float> losses = p.persistent<float>({.channels = 3}), shares = p.persistent<float>({.channels = 3}),
                    state = p.persistent<float>({.channels = 6});
  const auto gradient = [&] { return s.scratch(shape, Until::backward); };
  const View<float> dwaveform = gradient(), dstft = gradient(), dmel = gradient();
  const View<float> waveform_scratch = s.scratch(waveform_loss_scratch(context, shape), Until::backward);
  const View<float> balancer_space = s.scratch(balancer_scratch(context, shape, 3), Until::backward);
  s.changes(state);
  for (const int64_t window : config_.windows)
    s.costs(window_costs(shape, window), "loss.window." + std::to_string(window));
  const auto samples = static_cast<double>(shape.elements());
  s.costs({.forward = {.floats = 3 * samples, .bytes = 12 * samples},
           .input_gradient = {.floats = 12 * samples, .bytes = 28 * samples}},
          "loss.waveform, balancer");
  // Closures are copied, but the tables of windows and bands are shared. They are built only when steps are recorded.
  std::shared_ptr<const SpectralPlan> spectral;
  if (p.recording()) spectral = std::make_shared<SpectralPlan>(context, shape, config_.spectral(sample_rate_));
  s.backward([=, config = config_](Context& c) {
    waveform_loss(c, {.estimate = in.value,
                      .target = target,
                      .lengths = lengths,
                      .loss = View<float>(losses.data, {}),
                      .gradient = dwaveform,
                      .scratch = waveform_scratch});
    spectral_loss(c, {.plan = *spectral,
                      .estimate = in.value,
                      .target = target,
                      .lengths = lengths,
                      .losses = View<float>(losses.data + 1, {.channels = 2}),
                      .dstft = dstft,
                      .dmel = dmel});
    balancer(c, {.gradients = {dwaveform, dstft, dmel},
                 .weights = {static_cast<float>(config.waveform), static_cast<float>(config.stft),
                             static_cast<float>(config.mel)},
                 .count = 3,
                 .state = state,
                 .shares = shares,
                 .gradient = in.grad,
                 .scratch = balancer_space,
                 .decay = static_cast<float>(config.balancer_decay),
                 .balanced = config.balanced});
  });
  return {s.number(), losses, shares, state};
}

}  // namespace nacre
