// The discriminator of complex spectra: every band of bins has convolutions of its own.
#include "nacre/discriminators/discriminator.h"
#include "nacre/discriminators/signals.h"

namespace nacre {
namespace {

constexpr int layers = 5;
constexpr float slope = 0.1f;

/// Padding that keeps the length at stride 1.
Conv2dAxis centred(int64_t taps, int64_t stride = 1) { return {.stride = stride, .left = taps / 2, .right = taps / 2}; }

/// First bins of the bands, and the number of bins.
std::vector<int64_t> edges_of(const BandDiscriminatorConfig& config, const std::string& name) {
  const int64_t bins = config.window / 2 + 1;
  std::vector<int64_t> edges{0};
  for (const double end : config.bands) {
    edges.push_back(static_cast<int64_t>(end * static_cast<double>(bins)));
    if (edges.back() <= edges[edges.size() - 2] || edges.back() > bins)
      throw Error(ErrorKind::usage, "discriminator " + name + ": band " + std::to_string(edges.size() - 2) +
                                        " has no bins or lies outside of the " + std::to_string(bins) + " bins");
  }
  if (edges.back() != bins || edges.size() > static_cast<size_t>(conv2d_max_parts) + 1)
    throw Error(ErrorKind::usage, "discriminator " + name + ": " + std::to_string(config.bands.size()) +
                                      " bands that end at bin " + std::to_string(edges.back()) + ", expected at most " +
                                      std::to_string(conv2d_max_parts) + " that cover all " + std::to_string(bins));
  return edges;
}

}  // namespace

Discriminator band_discriminator(Parameters& p, const std::string& name, const BandDiscriminatorConfig& config,
                                 Storage storage) {
  if (config.window < 8 || config.window % 8 != 0 || config.channels < 1)
    throw Error(ErrorKind::usage, "discriminator " + name + ": a window of " + std::to_string(config.window) +
                                      " samples and " + std::to_string(config.channels) +
                                      " channels, expected a multiple of 8 and at least 1 channel");
  if (config.full_layers < 0 || config.full_channels < 0)
    throw Error(ErrorKind::usage, "discriminator " + name + ": " + std::to_string(config.full_layers) +
                                      " layers of all bands of " + std::to_string(config.full_channels) +
                                      " channels, expected 0 or more of each");
  const std::vector<int64_t> edges = edges_of(config, name);
  std::vector<std::vector<Conv2d>> bands;
  for (size_t band = 0; band + 1 < edges.size(); ++band) {
    bands.emplace_back();
    for (int i = 0; i < layers; ++i) {
      // The first layer reads real and imaginary parts of the band's bins. Layers 1 to 3 halve the number of columns.
      const bool first = i == 0, last = i == layers - 1;
      const int64_t width_taps = last ? 3 : 9;
      Conv2dGeometry geometry{.time = centred(3), .width = centred(width_taps, first || last ? 1 : 2)};
      if (first) geometry.first_column = edges[band], geometry.columns = edges[band + 1] - edges[band];
      bands.back().push_back(Conv2d(p, name + ".band_convs." + std::to_string(band) + "." + std::to_string(i) + ".0",
                                    first ? 2 : config.channels, config.channels, 3, width_taps, geometry, Norm::weight,
                                    BiasStart::uniform)
                                 .leaky(slope));
    }
  }
  std::vector<Conv2d> full;
  int64_t channels = config.channels;
  for (int64_t i = 0; i < config.full_layers; ++i) {
    const int64_t out = config.full_channels > 0 ? config.full_channels : config.channels;
    full.push_back(Conv2d(p, name + ".full_convs." + std::to_string(i) + ".0", channels, out, 3, 3,
                          {.time = centred(3), .width = centred(3)}, Norm::weight, BiasStart::uniform)
                       .leaky(slope));
    channels = out;
  }
  const Conv2d post(p, name + ".conv_post", channels, 1, 3, 3, {.time = centred(3), .width = centred(3)}, Norm::weight,
                    BiasStart::uniform);
  const StftGeometry geometry{.window = config.window, .hop = config.window / 4, .aligned = true};
  return [=](Plan& plan, Flow audio) {
    Verdict v;
    const Flow spectra = stored_as(plan, spectrum(plan, name + ".spectrum", audio, geometry), storage);
    std::vector<Flow> ends;
    for (const std::vector<Conv2d>& band : bands) {
      Flow x = spectra;
      for (const Conv2d& conv : band) v.features.push_back(x = conv.plan(plan, x));
      ends.push_back(x);
    }
    // The first convolution behind the bands reads their results as parts side by side along the width, so nothing is
    // copied to join them. Later ones read one activation.
    for (const Conv2d& conv : full) {
      v.features.push_back(conv.plan(plan, ends));
      ends.assign(1, v.features.back());
    }
    v.logits = post.plan(plan, ends);
    return v;
  };
}

}  // namespace nacre
