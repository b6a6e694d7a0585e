// The discriminator of interleaved samples: convolutions along time, one item per phase of the period.
#include "nacre/discriminators/discriminator.h"
#include "nacre/discriminators/signals.h"

namespace nacre {
namespace {

constexpr int64_t taps = 5, stride = 3, last_taps = 3;
constexpr float slope = 0.1f;

}  // namespace

Discriminator period_discriminator(Parameters& p, const std::string& name, const PeriodDiscriminatorConfig& config,
                                   Storage storage) {
  if (config.period < 1 || config.channels.empty())
    throw Error(ErrorKind::usage, "discriminator " + name + ": period " + std::to_string(config.period) + " and " +
                                      std::to_string(config.channels.size()) + " layers, expected at least 1 of each");
  std::vector<Conv1d> convs;
  int64_t channels = 1;
  for (size_t i = 0; i < config.channels.size(); ++i) {
    const int64_t out = config.channels[i];
    if (out < 1)
      throw Error(ErrorKind::usage, "discriminator " + name + ": layer " + std::to_string(i) + " has " +
                                        std::to_string(out) + " channels, expected at least 1");
    const bool last = i + 1 == config.channels.size();
    // The published networks have two-dimensional convolutions of 5 x 1 taps over time / period and period. With the
    // phases as items, these are convolutions along time.
    const Conv1dGeometry geometry{.stride = last ? 1 : stride, .left = taps / 2, .right = taps / 2};
    convs.push_back(Conv1d(p, name + ".convs." + std::to_string(i) + ".0", channels, out, taps, geometry, Norm::weight,
                           BiasStart::uniform)
                        .leaky(slope));
    channels = out;
  }
  const Conv1d post(p, name + ".conv_post", channels, 1, last_taps, {.left = last_taps / 2, .right = last_taps / 2},
                    Norm::weight, BiasStart::uniform);
  return [=, period = config.period](Plan& plan, Flow audio) {
    Verdict v;
    Flow x = stored_as(plan, fold(plan, name + ".fold", audio, period), storage);
    for (const Conv1d& conv : convs) v.features.push_back(x = conv.plan(plan, x));
    v.logits = post.plan(plan, x);
    return v;
  };
}

}  // namespace nacre
