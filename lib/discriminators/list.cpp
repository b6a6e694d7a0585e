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
  for (const auto& [key, values] : {std::pair{"discriminator.periods", &periods}, {"discriminator.windows", &windows}})
    for (auto at = values->begin(); at != values->end(); ++at)
      if (std::find(values->begin(), at, *at) != at) refuse(key, std::to_string(*at) + " twice", "different numbers");
  constexpr size_t most = 16;
  if (windows.size() > most) refuse("discriminator.windows", std::to_string(windows.size()) + " entries", "at most 16");
  for (const int64_t window : windows)
    if (window < 32 || window > 65536 || window % 8 != 0)
      refuse("discriminator.windows", std::to_string(window), "multiples of 8, each 32 to 65536");
}

bool DiscriminatorConfig::same_networks(const DiscriminatorConfig& c) const {
  return periods == c.periods && period_channels == c.period_channels && waveform == c.waveform &&
         windows == c.windows && window_channels == c.window_channels;
}

Discriminators::Discriminators(Parameters& p, const DiscriminatorConfig& config, Storage storage) {
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
}

std::vector<Verdict> Discriminators::plan(Plan& p, Flow audio) const {
  const Flow levelled = level(p, "discriminators.level", audio);
  std::vector<Verdict> all;
  for (const Discriminator& judge : discriminators_) all.push_back(judge(p, levelled));
  return all;
}

}  // namespace nacre
