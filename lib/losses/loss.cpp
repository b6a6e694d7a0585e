#include "nacre/nn/loss.h"

#include <cstdio>

#include "nacre/ops/waveform_loss.h"

namespace nacre {
namespace {

[[noreturn]] void refuse(const std::string& key, const std::string& what) {
  throw Error(ErrorKind::usage, "loss." + key + ": " + what);
}
[[noreturn]] void refuse(const std::string& key, double value, const char* expected) {
  char found[32];
  std::snprintf(found, sizeof found, "%.12g", value);
  throw Error(ErrorKind::usage, "loss." + key + " is " + found + ", expected " + expected);
}

}  // namespace

void LossConfig::check(int64_t sample_rate) const {
  for (const auto& [key, w] : {std::pair{"waveform", waveform}, {"stft", stft}, {"mel", mel}, {"vq", vq}})
    if (!(w >= 0 && w <= 1e6)) refuse(key, w, "0 to 1e6");
  if (waveform + stft + mel <= 0) refuse("waveform", "waveform, stft and mel are all zero; one must be positive");
  if (!(balancer_decay >= 0 && balancer_decay < 1)) refuse("balancer_decay", balancer_decay, "0 to below 1");
  if (windows.empty()) refuse("windows", "is empty");
  if (mels.size() != windows.size())
    refuse("mels", std::to_string(mels.size()) + " entries for " + std::to_string(windows.size()) + " windows");
  for (size_t i = 0; i < windows.size(); ++i) {
    if (windows[i] < 8 || windows[i] > 65536 || windows[i] % 4 != 0)
      refuse("windows", std::to_string(windows[i]) + " is not a multiple of 4 between 8 and 65536");
    if (mels[i] < 0 || mels[i] > windows[i] / 2)
      refuse("mels", std::to_string(mels[i]) + " bands at window " + std::to_string(windows[i]) + ", expected 0 to " +
                         std::to_string(windows[i] / 2));
  }
  if (sample_rate <= 0) refuse("sample_rate", "must be positive");
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

void ReconstructionLoss::plan(Plan& p, Flow<float> estimate, View<const float> target, View<const int32_t> lengths) {
  p.next_step();
  Context& c = p.context();
  const Shape s = estimate.shape;
  if (!spectral_ || spectral_->signal() != s) spectral_.emplace(c, s, config_.spectral(sample_rate_));
  estimate_ = p.reads(estimate, Phase::backward);
  if (estimate_.add) throw Error(ErrorKind::usage, "reconstruction loss: must be the last reader of the waveform");
  target_ = target;
  lengths_ = lengths;
  losses_ = p.keeps<float>({.channels = 3});
  shares_ = p.keeps<float>({.channels = 3});
  state_ = p.keeps<float>({.channels = 6});
  dwaveform_ = p.scratch(s, Phase::backward);
  dstft_ = p.scratch(s, Phase::backward);
  dmel_ = p.scratch(s, Phase::backward);
  waveform_scratch_ = p.scratch(waveform_loss_scratch(c, s), Phase::backward);
  balancer_scratch_ = p.scratch(balancer_scratch(c, s, 3), Phase::backward);
}

void ReconstructionLoss::backward(Context& c) {
  waveform_loss(c, {.estimate = estimate_.value,
                    .target = target_,
                    .lengths = lengths_,
                    .loss = View<float>(losses_.data, {}),
                    .gradient = dwaveform_,
                    .scratch = waveform_scratch_});
  spectral_loss(c, {.plan = *spectral_,
                    .estimate = estimate_.value,
                    .target = target_,
                    .lengths = lengths_,
                    .losses = View<float>(losses_.data + 1, {.channels = 2}),
                    .dstft = dstft_,
                    .dmel = dmel_});
  balancer(c, {.gradients = {dwaveform_, dstft_, dmel_},
               .weights = {static_cast<float>(config_.waveform), static_cast<float>(config_.stft),
                           static_cast<float>(config_.mel)},
               .count = 3,
               .state = state_,
               .shares = shares_,
               .gradient = estimate_.grad,
               .scratch = balancer_scratch_,
               .decay = static_cast<float>(config_.balancer_decay),
               .balanced = config_.balanced});
}

}  // namespace nacre
