// The discriminators of a configuration.
#include <algorithm>
#include <bit>

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
                                    {"discriminator.stft_windows", &stft_windows},
                                    {"discriminator.scales", &scales},
                                    {"discriminator.residual_windows", &residual_windows}})
    for (auto at = values->begin(); at != values->end(); ++at)
      if (std::find(values->begin(), at, *at) != at) refuse(key, std::to_string(*at) + " twice", "different numbers");
  constexpr size_t most = 16;
  // Limits that depend on the network: STFTs of bands and of EnCodec take multiples of 8; residual units halve the bins
  // six times and need window / 2 to be a multiple of 64.
  struct Windows {
    const char* key;
    const std::vector<int64_t>& values;
    int64_t least, step;
  };
  for (const auto& [key, values, least, step] :
       {Windows{"discriminator.windows", windows, 32, 8}, Windows{"discriminator.stft_windows", stft_windows, 32, 8},
        Windows{"discriminator.residual_windows", residual_windows, 128, 128}}) {
    if (values.size() > most) refuse(key, std::to_string(values.size()) + " entries", "at most 16");
    for (const int64_t window : values)
      if (window < least || window > 65536 || window % step != 0)
        refuse(key, std::to_string(window),
               "multiples of " + std::to_string(step) + ", each " + std::to_string(least) + " to 65536");
  }
  for (const int64_t scale : scales)
    if (scale < 1 || scale > 64 || !std::has_single_bit(static_cast<uint64_t>(scale)))
      refuse("discriminator.scales", std::to_string(scale), "powers of two, each 1 to 64");
}

// Compares every key that decides parameters or results of the networks. Keys of their training are left out, so a run
// may go on with others.
bool DiscriminatorConfig::same_networks(const DiscriminatorConfig& c) const {
  return periods == c.periods && period_channels == c.period_channels && waveform == c.waveform &&
         windows == c.windows && window_channels == c.window_channels && window_full_layers == c.window_full_layers &&
         stft_windows == c.stft_windows && stft_channels == c.stft_channels && stft_slope == c.stft_slope &&
         scales == c.scales && scale_slope == c.scale_slope && scale_norm == c.scale_norm &&
         residual_windows == c.residual_windows && residual_channels == c.residual_channels &&
         residual_slope == c.residual_slope && residual_norm == c.residual_norm && level == c.level;
}

Discriminators::Discriminators(Parameters& p, const DiscriminatorConfig& config, Storage storage)
    : level_(config.level) {
  config.check();
  // The number in names of parameters is the place in the list. The order below is therefore part of the format of
  // checkpoints.
  const auto next = [&] { return "discriminators." + std::to_string(discriminators_.size()); };
  for (const int64_t period : config.periods) {
    discriminators_.push_back(
        period_discriminator(p, next(), {.period = period, .channels = config.period_channels}, storage));
    names_.push_back("period_" + std::to_string(period));
  }
  if (config.waveform) {
    discriminators_.push_back(scale_discriminator(p, next(), {}, storage));
    names_.emplace_back("waveform");
  }
  for (const int64_t window : config.windows) {
    discriminators_.push_back(band_discriminator(
        p, next(), {.window = window, .channels = config.window_channels, .full_layers = config.window_full_layers},
        storage));
    names_.push_back("window_" + std::to_string(window));
  }
  for (const int64_t window : config.stft_windows) {
    discriminators_.push_back(stft_discriminator(
        p, next(), {.window = window, .channels = config.stft_channels, .slope = config.stft_slope}, storage));
    names_.push_back("stft_" + std::to_string(window));
  }
  for (const int64_t scale : config.scales) {
    discriminators_.push_back(scale_discriminator(p, next(),
                                                  {.slope = config.scale_slope,
                                                   .norm = config.scale_norm,
                                                   .reflect = true,
                                                   .halvings = std::countr_zero(static_cast<uint64_t>(scale))},
                                                  storage));
    names_.push_back("scale_" + std::to_string(scale));
  }
  for (const int64_t window : config.residual_windows) {
    discriminators_.push_back(residual_discriminator(p, next(),
                                                     {.window = window,
                                                      .channels = config.residual_channels,
                                                      .slope = config.residual_slope,
                                                      .norm = config.residual_norm},
                                                     storage));
    names_.push_back("residual_" + std::to_string(window));
  }
}

// The level is taken once for all discriminators.
std::vector<Verdict> Discriminators::plan(Plan& p, Flow audio) const {
  const Flow heard = level_ ? level(p, "discriminators.level", audio) : audio;
  std::vector<Verdict> all;
  for (const Discriminator& judge : discriminators_) all.push_back(judge(p, heard));
  return all;
}

}  // namespace nacre
