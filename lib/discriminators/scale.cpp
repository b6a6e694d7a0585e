// The discriminator of the waveform: strided, grouped convolutions.
#include "nacre/discriminators/discriminator.h"

namespace nacre {
namespace {

constexpr float slope = 0.1f;

Conv1dGeometry centred(int64_t taps, int64_t stride, int64_t groups) {
  return {.stride = stride, .groups = groups, .left = (taps - 1) / 2, .right = (taps - 1) / 2};
}

}  // namespace

Discriminator scale_discriminator(Parameters& p, const std::string& name, const ScaleDiscriminatorConfig& config) {
  const auto refuse = [&](const std::string& what) {
    throw Error(ErrorKind::usage, "discriminator " + name + ": " + what);
  };
  std::vector<Conv1d> convs;
  int64_t channels = 1;
  for (const auto& [out, taps, stride, groups] : config.layers) {
    const std::string at = name + ".convs." + std::to_string(convs.size()) + ".0";
    if (out < 1 || taps < 1 || taps % 2 == 0 || stride < 1 || groups < 1 || channels % groups != 0 || out % groups != 0)
      refuse("layer " + std::to_string(convs.size()) + " has " + std::to_string(channels) + " to " +
             std::to_string(out) + " channels, " + std::to_string(taps) + " taps, stride " + std::to_string(stride) +
             " and " + std::to_string(groups) +
             " groups, expected odd taps, and channels that are multiples of the groups");
    convs.push_back(Conv1d(p, at, channels, out, taps, centred(taps, stride, groups), Norm::weight, BiasStart::uniform)
                        .leaky(slope));
    channels = out;
  }
  if (config.last_taps < 1 || config.last_taps % 2 == 0)
    refuse("last_taps is " + std::to_string(config.last_taps) + ", expected an odd number");
  const Conv1d last(p, name + ".conv_post", channels, 1, config.last_taps, centred(config.last_taps, 1, 1),
                    Norm::weight, BiasStart::uniform);
  return [=](Plan& plan, Flow x) {
    Verdict v;
    for (const Conv1d& conv : convs) v.features.push_back(x = conv.plan(plan, x));
    v.logits = last.plan(plan, x);
    return v;
  };
}

}  // namespace nacre
