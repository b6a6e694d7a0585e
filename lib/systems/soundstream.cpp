// SoundStream (Zeghidour et al. 2021, arXiv 2107.03312, sections III.A and III.B): topology and presets. The layers are
// numbered as those of EnCodec.
#include <cmath>

#include "files/fields.h"
#include "systems/list.h"
#include "systems/seanet.h"

namespace nacre::systems {
namespace {

constexpr int64_t denoise_labels = 2;  // off and on
constexpr double half_width = 0.5;  // what the paper's table of parameters implies (docs/systems.md)

// Channels of the branch of a unit. check() refuses widths for which this is no whole number.
double branch_of(const CodecConfig& c, int64_t channels) {
  return (c.residual_width > 0 ? c.residual_width : half_width) * static_cast<double>(channels);
}

void add_units(Chain& layers, Numbered& number, Parameters& p, const CodecConfig& c, int64_t channels) {
  const int64_t taps = c.residual_kernel_size > 0 ? c.residual_kernel_size : c.kernel_size;
  for (size_t i = 0; i < c.dilations.size(); ++i)
    layers << SeanetUnit(p, c, number.next(),
                         {.channels = channels,
                          .branch = static_cast<int64_t>(branch_of(c, channels)),
                          .taps = c.residual_kernel_sizes.empty() ? taps : c.residual_kernel_sizes[i],
                          .dilation = c.dilations[i],
                          .order = c.activation_order});
}

/// The activation in front of a convolution between units. ActivationOrder::after has none there.
void add_activation(Chain& layers, Numbered& number, Parameters& p, const CodecConfig& c, int64_t channels) {
  if (c.activation_order == ActivationOrder::before) layers << Activation(p, number.next(), channels, c.activation);
}

/// Its name has no number, so that the layers behind it keep theirs and start from the same values with it and without.
void add_film(Chain& layers, Denoise half, const char* name, Parameters& p, const CodecConfig& c, int64_t channels) {
  if (c.denoise == half) layers << Film(p, name, channels, denoise_labels);
}

constexpr int64_t latent_taps = 3;  // of the encoder's last convolution

/// conv -> blocks of (residual units, strided conv) -> conv
Net encoder(Parameters& p, const CodecConfig& c) {
  Chain layers;
  Numbered number("encoder");
  const std::vector<int64_t> widths = encoder_widths(c);
  layers << PaddedConv(p, c, number.next(), c.audio_channels, widths[0], c.kernel_size);
  for (size_t i = 0; i < c.encoder_rates.size(); ++i) {
    add_units(layers, number, p, c, widths[i]);
    add_activation(layers, number, p, c, widths[i]);
    layers << PaddedConv(p, c, number.next(), widths[i], widths[i + 1], 2 * c.encoder_rates[i], c.encoder_rates[i]);
  }
  add_lstm(layers, number, p, c, widths.back());
  add_film(layers, Denoise::encoder, "encoder.film", p, c, widths.back());
  if (!c.latent_convolutions) return layers;
  add_activation(layers, number, p, c, widths.back());
  layers << PaddedConv(p, c, number.next(), widths.back(), c.latent(), latent_taps);
  return layers;
}

/// conv -> blocks of (transposed conv, residual units) -> conv
Net decoder(Parameters& p, const CodecConfig& c) {
  Chain layers;
  Numbered number("decoder");
  const std::vector<int64_t> widths = decoder_widths(c);
  if (c.latent_convolutions) layers << PaddedConv(p, c, number.next(), c.latent(), widths[0], c.kernel_size);
  add_film(layers, Denoise::decoder, "decoder.film", p, c, widths[0]);
  add_lstm(layers, number, p, c, widths[0]);
  for (size_t i = 0; i < c.decoder_rates.size(); ++i) {
    add_activation(layers, number, p, c, widths[i]);
    layers << TrimmedConvTranspose(p, c, number.next(), widths[i], widths[i + 1], c.decoder_rates[i],
                                   c.upsampling_strides);
    add_units(layers, number, p, c, widths[i + 1]);
  }
  add_activation(layers, number, p, c, widths.back());
  layers << PaddedConv(p, c, number.next(), widths.back(), c.audio_channels, c.kernel_size);
  if (c.output_tanh) layers << Activation(p, number.next(), c.audio_channels, ActivationKind::tanh);
  return layers;
}

void expect_count(const char* key, const std::vector<int64_t>& found, size_t expected, const char* of) {
  if (!found.empty() && found.size() != expected)
    refuse(std::string("codec.") + key, std::to_string(found.size()) + " numbers",
           std::to_string(expected) + ", " + of + ", or none");
}

void check(const CodecConfig& c) {
  expect_defaults(c, {"residual_taps", "groups", "segment", "long_codebooks"});
  expect_count("encoder_channels", c.encoder_channels, c.encoder_rates.size() + 1, "one more than strides");
  expect_count("decoder_channels", c.decoder_channels, c.decoder_rates.size() + 1, "one more than strides");
  expect_count("residual_kernel_sizes", c.residual_kernel_sizes, c.dilations.size(), "one per dilation");
  const std::vector<int64_t> coded = encoder_widths(c), decoded = decoder_widths(c);
  // The innermost widths belong to no unit.
  std::vector<int64_t> units(coded.begin(), coded.end() - 1);
  units.insert(units.end(), decoded.begin() + 1, decoded.end());
  for (const int64_t channels : units)
    if (const double branch = branch_of(c, channels); branch < 1 || branch != std::floor(branch))
      refuse("codec.residual_width", shortest(branch / static_cast<double>(channels)),
             "one that gives whole channels in units of " + std::to_string(channels));
  if (c.latent_convolutions) return;
  for (const auto& [key, width] :
       {std::pair{"codec.encoder_channels", coded.back()}, {"codec.decoder_channels", decoded[0]}})
    if (width != c.latent())
      refuse(key, std::to_string(width) + " at the latent",
             std::to_string(c.latent()) + ", codec.latent_dim, without codec.latent_convolutions");
}

/// What the paper says of every model. Where it is silent: docs/systems.md.
CodecConfig common() {
  CodecConfig c;
  c.network = "soundstream";
  c.encoder_dim = 32, c.encoder_rates = {2, 4, 5, 8};
  c.decoder_dim = 512, c.decoder_rates = {8, 5, 4, 2};
  c.activation = ActivationKind::elu;
  c.output_tanh = false;
  c.causal = true;
  c.quantizer = QuantizerKind::ema, c.metric = VqMetric::euclidean;
  c.n_codebooks = 8;
  c.quantizer_dropout = 1;
  // A code without use is replaced after 91 steps (docs/decisions/random-start.md).
  c.dead_below = 0.4;
  return c;
}
/// 6 kbit/s with all codebooks, no lookahead.
CodecConfig at_24k() {
  CodecConfig c = common();
  c.sample_rate = 24000;
  c.latent_dim = 256;
  return c;
}
/// The defaults of audiolm-pytorch, without its local attention.
CodecConfig at_16k() {
  CodecConfig c = common();
  c.sample_rate = 16000;
  c.latent_dim = 512;
  c.residual_width = 1;
  c.activation_order = ActivationOrder::after;
  c.padding = Padding::reflect;
  c.norm = Norm::none;
  c.ema_decay = 0.95;
  return c;
}

}  // namespace

SystemFile soundstream() {
  // Section III.E. Optimizer and batch are EnCodec's, because the paper does not state them.
  const Preset::Settings both = with_encodec_training({{"loss.balanced", "false"},
                                                       {"loss.waveform", "0"},
                                                       {"loss.stft", "0"},
                                                       {"loss.mel", "0.1"},
                                                       {"loss.windows", "[64, 128, 256, 512, 1024, 2048]"},
                                                       {"loss.mels", "[64, 64, 64, 64, 64, 64]"},
                                                       {"loss.mel_kind", "\"norms\""},
                                                       {"loss.mel_scale", "\"htk\""},
                                                       {"loss.vq", "1"},
                                                       {"loss.vq_mean", "true"},
                                                       {"loss.adversarial", "1"},
                                                       {"loss.feature", "100"},
                                                       {"discriminator.loss", "\"hinge\""},
                                                       {"discriminator.scales", "[1, 2, 4]"},
                                                       {"discriminator.residual_windows", "[1024]"},
                                                       {"optimizer.ema_decay", "0.99"}});
  const auto with = [&](const Preset::Settings& more) {
    Preset::Settings settings = both;
    settings.insert(settings.end(), more.begin(), more.end());
    return settings;
  };
  return {
      .networks = {{.name = "soundstream", .encoder = encoder, .decoder = decoder, .check = check}},
      .presets = {
          {.name = "soundstream-24k", .codec = at_24k(), .settings = with({{"training.segment_length", "24000"}})},
          {.name = "soundstream-16k", .codec = at_16k(), .settings = with({{"training.segment_length", "16000"}})}}};
}

}  // namespace nacre::systems
