// LDCodec (arXiv 2510.15364): DAC's encoder, a cheap decoder of inverted bottlenecks, and a quantizer with two rates
// (nacre/systems/quantizer.h). docs/systems.md tells what the paper leaves open.
#include <cmath>

#include "files/fields.h"
#include "files/text.h"
#include "systems/dac.h"
#include "systems/list.h"

namespace nacre::systems {
namespace {

// Keeps the length for odd taps.
Conv1dGeometry same(int64_t taps, int64_t dilation, int64_t groups) {
  const int64_t side = (taps - 1) / 2 * dilation;
  return {.dilation = dilation, .groups = groups, .left = side, .right = side};
}

/// Channels between the two convolutions of a unit. The default doubles them.
int64_t inner_width(const CodecConfig& c, int64_t channels) {
  return std::llround((c.residual_width > 0 ? c.residual_width : 2) * static_cast<double>(channels));
}
// Channels behind so many upsampling blocks; 0: of the first convolution.
int64_t width(const CodecConfig& c, size_t block) {
  return c.decoder_channels.empty() ? c.decoder_dim >> block : c.decoder_channels[block];
}

/// conv to more channels -> activation -> conv back -> + x. One of both has kernel_size taps and the dilation.
class Bottleneck {
 public:
  Bottleneck(Parameters& p, const CodecConfig& c, const std::string& name, int64_t channels, int64_t dilation)
      : Bottleneck(p, c, name, channels, inner_width(c, channels),
                   c.residual_taps == UnitTaps::first ? c.kernel_size : 1,
                   c.residual_taps == UnitTaps::first ? 1 : c.kernel_size, dilation) {}
  Flow plan(Plan& p, Flow x) const { return shrink_.plan(p, expand_.plan(p, x), x); }

 private:
  Bottleneck(Parameters& p, const CodecConfig& c, const std::string& name, int64_t channels, int64_t inner,
             int64_t taps_in, int64_t taps_out, int64_t dilation)
      : expand_(p, name + ".block.0", channels, inner, taps_in, same(taps_in, taps_in > 1 ? dilation : 1, c.groups)),
        shrink_(p, name + ".block.1", name + ".block.2", inner, channels, taps_out, c.activation,
                same(taps_out, taps_out > 1 ? dilation : 1, c.groups)) {}
  Conv1d expand_;
  ActivatedConv1d shrink_;
};

/// conv k7 -> blocks of (activation, transposed conv, units) -> activation -> conv k7 -> tanh
Net decoder(Parameters& p, const CodecConfig& c) {
  Chain layers;
  size_t index = 1;
  layers << Conv1d(p, "decoder.model.0", c.latent(), width(c, 0), c.kernel_size, same(c.kernel_size, 1, 1));
  for (const int64_t rate : c.decoder_rates) {
    const std::string name = "decoder.model." + std::to_string(index) + ".block.";
    layers << Activation(p, name + "0", width(c, index - 1), c.activation)
           << ConvTranspose1d(p, name + "1", width(c, index - 1), width(c, index), 2 * rate, rate, (rate + 1) / 2,
                              rate % 2);
    for (size_t i = 0; i < c.dilations.size(); ++i)
      layers << Bottleneck(p, c, name + std::to_string(2 + i), width(c, index), c.dilations[i]);
    ++index;
  }
  const std::string name = "decoder.model.";
  layers << ActivatedConv1d(p, name + std::to_string(index), name + std::to_string(index + 1), width(c, index - 1),
                            c.audio_channels, c.kernel_size, c.activation, same(c.kernel_size, 1, 1));
  if (c.output_tanh) layers << Activation(p, name + std::to_string(index + 2), c.audio_channels, ActivationKind::tanh);
  return layers;
}

void check(const CodecConfig& c) {
  expect_defaults(
      c, {"causal", "padding", "norm", "residual_kernel_size", "shortcut", "segment", "lstm_layers", "encoder_channels",
          "residual_kernel_sizes", "activation_order", "upsampling_strides", "latent_convolutions", "denoise"});
  const size_t blocks = c.decoder_rates.size();
  if (!c.decoder_channels.empty() && c.decoder_channels.size() != blocks + 1)
    refuse("codec.decoder_channels", std::to_string(c.decoder_channels.size()) + " widths",
           std::to_string(blocks + 1) + ", one more than decoder_rates, or none");
  for (size_t i = 1; i <= blocks; ++i) {
    const int64_t outer = width(c, i), inner = inner_width(c, outer);
    if (inner < 1)
      refuse("codec.residual_width", shortest(c.residual_width),
             "at least one channel inside of the units of " + std::to_string(outer));
    if (outer % c.groups != 0 || inner % c.groups != 0)
      refuse("codec.groups", std::to_string(c.groups),
             "a divisor of the widths of all residual units, and those of block " + std::to_string(i) + " are " +
                 std::to_string(outer) + " and " + std::to_string(inner));
  }
}

CodecConfig at_16k() {
  CodecConfig c;
  c.network = "ldcodec";
  c.latent_dim = 256;
  c.decoder_channels = {96, 64, 32, 16, 12};
  c.activation = ActivationKind::snake_beta;
  c.residual_width = 2, c.groups = 4;
  c.quantizer = QuantizerKind::ema, c.metric = VqMetric::euclidean;
  c.n_codebooks = 18, c.long_codebooks = 8, c.long_frames = 4, c.synthesiser_kernel_size = 3;
  c.quantizer_dropout = 0.5;
  c.beam = 8;
  return c;
}

}  // namespace

SystemFile ldcodec() {
  // As DAC, with hinge losses and a batch of 16. Codebooks of moving averages start from data.
  Preset::Settings training = dac_training();
  for (auto& [key, value] : training) {
    if (key == "training.batch_size") value = "16";
    if (key == "training.codebook_start_rows") value = "60000";
  }
  training.emplace_back("discriminator.loss", "\"hinge\"");
  // The paper has a stage over the whole band and weights of energy and transients, but gives no numbers.
  training.emplace_back("discriminator.window_full_layers", "2");
  training.emplace_back("loss.mel_excess", "1.5");
  training.emplace_back("loss.mel_transient", "1");
  training.emplace_back("training.segment_length", "6400");  // five frames of 80 ms
  return {.networks = {{.name = "ldcodec", .encoder = dac_encoder, .decoder = decoder, .check = check}},
          .presets = {{.name = "ldcodec-16k", .codec = at_16k(), .settings = training}}};
}

}  // namespace nacre::systems
