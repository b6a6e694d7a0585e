// EnCodec's discriminator of complex spectra: one stack of convolutions over frames and bins.
#include "nacre/discriminators/discriminator.h"
#include "nacre/discriminators/signals.h"

namespace nacre {
namespace {

constexpr int layers = 5;

}  // namespace

Discriminator stft_discriminator(Parameters& p, const std::string& name, const StftDiscriminatorConfig& config,
                                 Storage storage) {
  if (config.window < 8 || config.window % 8 != 0 || config.channels < 1 || !(config.slope > 0 && config.slope < 1))
    throw Error(ErrorKind::usage, "discriminator " + name + ": a window of " + std::to_string(config.window) +
                                      " samples, " + std::to_string(config.channels) + " channels and a slope of " +
                                      std::to_string(config.slope) +
                                      ", expected a multiple of 8, at least 1 channel and a slope between 0 and 1");
  std::vector<Conv2d> convs;
  for (int i = 0; i < layers; ++i) {
    // Layers 1 to 3 halve the number of bins, and their taps over frames are 1, 2 and 4 frames apart.
    const bool first = i == 0, last = i == layers - 1;
    const int64_t dilation = first || last ? 1 : int64_t{1} << (i - 1), stride = first || last ? 1 : 2,
                  taps = last ? 3 : 9;
    const Conv2dGeometry geometry{
        .time = {.dilation = dilation, .left = dilation, .right = dilation},
        .width = {.stride = stride, .left = taps / 2, .right = taps / 2},
    };
    // The published code leaves the first layer without weight normalisation.
    convs.push_back(Conv2d(p, name + ".convs." + std::to_string(i) + ".conv", first ? 2 : config.channels,
                           config.channels, 3, taps, geometry, first ? Norm::none : Norm::weight, BiasStart::uniform)
                        .leaky(static_cast<float>(config.slope)));
  }
  const Conv2d post(p, name + ".conv_post.conv", config.channels, 1, 3, 3,
                    {.time = {.left = 1, .right = 1}, .width = {.left = 1, .right = 1}}, Norm::weight,
                    BiasStart::uniform);
  const StftGeometry geometry{.window = config.window, .hop = config.window / 4, .inside = true, .normalised = true};
  return [=](Plan& plan, Flow audio) {
    if (audio.shape.time < geometry.window)
      throw Error(ErrorKind::usage, "discriminator " + name + ": audio of " + std::to_string(audio.shape.time) +
                                        " samples, expected at least one window of " + std::to_string(geometry.window) +
                                        "; use longer segments or shorter windows (discriminator.stft_windows)");
    Verdict v;
    Flow x = stored_as(plan, spectrum(plan, name + ".spectrum", audio, geometry), storage);
    for (const Conv2d& conv : convs) v.features.push_back(x = conv.plan(plan, x));
    v.logits = post.plan(plan, x);
    return v;
  };
}

}  // namespace nacre
