// The discriminators of a configuration.
#include <algorithm>

#include "files/fields.h"
#include "nacre/discriminators/discriminator.h"
#include "nacre/discriminators/signals.h"

namespace nacre {

void DiscriminatorConfig::check() const {
  DiscriminatorConfig c = *this;
  check_limits("discriminator", fields_of(c), twelve_digits);
  // Logs and checkpoints tell discriminators apart by period and window.
  for (const auto& [key, values] : {std::pair{"discriminator.periods", &periods},
                                    {"discriminator.windows", &windows},
                                    {"discriminator.stft_windows", &stft_windows}})
    for (auto at = values->begin(); at != values->end(); ++at)
      if (std::find(values->begin(), at, *at) != at) refuse(key, std::to_string(*at) + " twice", "different numbers");
  constexpr size_t most = 16;
  for (const auto& [key, values] :
       {std::pair{"discriminator.windows", &windows}, {"discriminator.stft_windows", &stft_windows}}) {
    if (values->size() > most) refuse(key, std::to_string(values->size()) + " entries", "at most 16");
    for (const int64_t window : *values)
      if (window < 32 || window > 65536 || window % 8 != 0)
        refuse(key, std::to_string(window), "multiples of 8, each 32 to 65536");
  }
}

bool DiscriminatorConfig::same_networks(const DiscriminatorConfig& c) const {
  return periods == c.periods && period_channels == c.period_channels && waveform == c.waveform &&
         windows == c.windows && window_channels == c.window_channels && stft_windows == c.stft_windows &&
         stft_channels == c.stft_channels && stft_slope == c.stft_slope && level == c.level;
}

Discriminators::Discriminators(Parameters& p, const DiscriminatorConfig& config, Storage storage)
    : level_(config.level) {
  config.check();
  const auto next = [&] { return "discriminators." + std::to_string(discriminators_.size()); };
  for (const int64_t period : config.periods) {
    discriminators_.push_back(
        period_discriminator(p, next(), {.period = period, .channels = config.period_channels}, storage));
    names_.push_back("period_" + std::to_string(period));
  }
  if (config.waveform) {
    discriminators_.push_back([storage, judge = scale_discriminator(p, next())](Plan& plan, Flow audio) {
      return judge(plan, stored_as(plan, audio, storage));
    });
    names_.emplace_back("waveform");
  }
  for (const int64_t window : config.windows) {
    discriminators_.push_back(
        band_discriminator(p, next(), {.window = window, .channels = config.window_channels}, storage));
    names_.push_back("window_" + std::to_string(window));
  }
  for (const int64_t window : config.stft_windows) {
    discriminators_.push_back(stft_discriminator(
        p, next(), {.window = window, .channels = config.stft_channels, .slope = config.stft_slope}, storage));
    names_.push_back("stft_" + std::to_string(window));
  }
}

std::vector<Verdict> Discriminators::plan(Plan& p, Flow audio) const {
  const Flow heard = level_ ? level(p, "discriminators.level", audio) : audio;
  std::vector<Verdict> all;
  for (const Discriminator& judge : discriminators_) all.push_back(judge(p, heard));
  return all;
}

}  // namespace nacre
