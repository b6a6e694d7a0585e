// The discriminator of the waveform: strided, grouped convolutions.
#include "nacre/discriminators/discriminator.h"
#include "nacre/discriminators/signals.h"

namespace nacre {
namespace {

constexpr int64_t most_halvings = 30;

Conv1dGeometry centred(int64_t taps, int64_t stride, int64_t groups) {
  return {.stride = stride, .groups = groups, .left = (taps - 1) / 2, .right = (taps - 1) / 2};
}

}  // namespace

Discriminator scale_discriminator(Parameters& p, const std::string& name, const ScaleDiscriminatorConfig& config,
                                  Storage storage) {
  const auto refuse = [&](const std::string& what) {
    throw Error(ErrorKind::usage, "discriminator " + name + ": " + what);
  };
  if (!(config.slope > 0 && config.slope < 1))
    refuse("slope is " + std::to_string(config.slope) + ", expected above 0 and below 1");
  if (config.norm != Norm::weight && config.norm != Norm::none)
    refuse("the outputs are normalised, expected a norm of the weights or none");
  if (config.halvings < 0 || config.halvings > most_halvings)
    refuse("halvings are " + std::to_string(config.halvings) + ", expected 0 to " + std::to_string(most_halvings));
  std::vector<Conv1d> convs;
  int64_t channels = 1;
  for (const auto& [out, taps, stride, groups] : config.layers) {
    const std::string at = name + ".convs." + std::to_string(convs.size()) + ".0";
    if (out < 1 || taps < 1 || taps % 2 == 0 || stride < 1 || groups < 1 || channels % groups != 0 || out % groups != 0)
      refuse("layer " + std::to_string(convs.size()) + " has " + std::to_string(channels) + " to " +
             std::to_string(out) + " channels, " + std::to_string(taps) + " taps, stride " + std::to_string(stride) +
             " and " + std::to_string(groups) +
             " groups, expected odd taps, and channels that are multiples of the groups");
    Conv1dGeometry geometry = centred(taps, stride, groups);
    if (config.reflect && convs.empty()) geometry.padding = Padding::reflect;
    convs.push_back(Conv1d(p, at, channels, out, taps, geometry, config.norm, BiasStart::uniform)
                        .leaky(static_cast<float>(config.slope)));
    channels = out;
  }
  if (config.last_taps < 1 || config.last_taps % 2 == 0)
    refuse("last_taps is " + std::to_string(config.last_taps) + ", expected an odd number");
  const Conv1d last(p, name + ".conv_post", channels, 1, config.last_taps, centred(config.last_taps, 1, 1), config.norm,
                    BiasStart::uniform);
  // Half of the time, rounded down, remains after each halving; reflection needs one sample more than it repeats.
  const int64_t reflected = config.reflect && !config.layers.empty() ? (config.layers[0].taps - 1) / 2 : 0,
                fewest = (reflected + 1) << config.halvings;
  return [=, halvings = config.halvings](Plan& plan, Flow x) {
    if (x.shape.time < fewest)
      throw Error(ErrorKind::usage, "discriminator " + name + ": audio of " + std::to_string(x.shape.time) +
                                        " samples, expected at least " + std::to_string(fewest) +
                                        "; use longer segments or smaller factors (discriminator.scales)");
    Verdict v;
    for (int64_t i = 0; i < halvings; ++i) x = pooled(plan, name + ".pool." + std::to_string(i), x);
    x = stored_as(plan, x, storage);
    for (const Conv1d& conv : convs) v.features.push_back(x = conv.plan(plan, x));
    v.logits = last.plan(plan, x);
    return v;
  };
}

}  // namespace nacre
