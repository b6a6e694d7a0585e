// The Descript Audio Codec (Kumar et al. 2023, arXiv 2306.06546, section 3): topology and presets.
#include "systems/dac.h"

#include "systems/list.h"

namespace nacre::systems {
namespace {

int64_t strided_padding(int64_t stride) { return (stride + 1) / 2; }  // as in DAC

void add_units(Chain& layers, Parameters& p, const CodecConfig& c, const std::string& name, size_t first,
               int64_t channels) {
  for (size_t i = 0; i < c.dilations.size(); ++i)
    layers << ResidualUnit(p, name + std::to_string(first + i), channels, c.kernel_size, c.dilations[i], c.activation);
}

// Keeps the length for odd taps.
Conv1dGeometry centred(int64_t taps) { return {.left = (taps - 1) / 2, .right = (taps - 1) / 2}; }

/// The mirror image of the encoder:
/// conv k7 -> blocks of (activation, transposed conv, residual units) -> activation -> conv k7 -> tanh
Net decoder(Parameters& p, const CodecConfig& c) {
  Chain layers;
  int64_t channels = c.decoder_dim;
  size_t index = 1;
  layers << Conv1d(p, "decoder.model.0", c.latent(), channels, c.kernel_size, centred(c.kernel_size));
  for (const int64_t rate : c.decoder_rates) {
    const std::string name = "decoder.model." + std::to_string(index++) + ".block.";
    layers << Activation(p, name + "0", channels, c.activation)
           << ConvTranspose1d(p, name + "1", channels, channels / 2, 2 * rate, rate, strided_padding(rate), rate % 2);
    channels /= 2;
    add_units(layers, p, c, name, 2, channels);
  }
  const std::string name = "decoder.model.";
  layers << ActivatedConv1d(p, name + std::to_string(index), name + std::to_string(index + 1), channels,
                            c.audio_channels, c.kernel_size, c.activation, centred(c.kernel_size));
  if (c.output_tanh) layers << Activation(p, name + std::to_string(index + 2), c.audio_channels, ActivationKind::tanh);
  return layers;
}

/// Keys of other topologies must have their defaults.
void check(const CodecConfig& c) {
  expect_defaults(
      c, {"causal", "padding", "norm", "residual_kernel_size", "shortcut", "segment", "lstm_layers", "encoder_channels",
          "decoder_channels", "residual_width", "residual_kernel_sizes", "residual_taps", "activation_order", "groups",
          "upsampling_strides", "latent_convolutions", "denoise", "long_codebooks"});
}

// The published models: 16 kHz with 12 codebooks, 24 kHz with 32, 44.1 kHz with 9.
CodecConfig at_16k() {
  CodecConfig c;
  c.network = "dac";
  c.quantizer_dropout = 0.5;
  return c;
}
CodecConfig at_24k() {
  CodecConfig c = at_16k();
  c.sample_rate = 24000, c.n_codebooks = 32;
  return c;
}
CodecConfig at_44k() {
  CodecConfig c = at_16k();
  c.sample_rate = 44100, c.n_codebooks = 9;
  c.encoder_rates = {2, 4, 8, 8}, c.decoder_rates = {8, 8, 4, 2};
  return c;
}

}  // namespace

Net dac_encoder(Parameters& p, const CodecConfig& c) {
  Chain layers;
  // Names are the indices of nested sequences in the published code: units come first in a block, then the activation
  // and the convolution.
  const size_t per_block = c.dilations.size();
  int64_t channels = c.encoder_dim;
  size_t index = 1;
  layers << Conv1d(p, "encoder.block.0", c.audio_channels, channels, c.kernel_size, centred(c.kernel_size));
  for (const int64_t rate : c.encoder_rates) {
    const std::string name = "encoder.block." + std::to_string(index++) + ".block.";
    add_units(layers, p, c, name, 0, channels);
    layers << ActivatedConv1d(p, name + std::to_string(per_block), name + std::to_string(per_block + 1), channels,
                              2 * channels, 2 * rate, c.activation,
                              {.stride = rate, .left = strided_padding(rate), .right = strided_padding(rate)});
    channels *= 2;
  }
  layers << ActivatedConv1d(p, "encoder.block." + std::to_string(index), "encoder.block." + std::to_string(index + 1),
                            channels, c.latent(), 3, c.activation, centred(3));
  return layers;
}

Preset::Settings dac_training() {
  // The published training (section 3.5 and the code's conf/final): mel with weight 15, summed over seven windows. Here
  // a term is the mean over its windows, so the weight is 7 times as large.
  return {{"loss.windows", "[32, 64, 128, 256, 512, 1024, 2048]"},
          {"loss.mels", "[5, 10, 20, 40, 80, 160, 320]"},
          {"loss.balanced", "false"},
          {"loss.waveform", "0"},
          {"loss.stft", "0"},
          {"loss.mel", "105"},
          {"loss.vq", "0.25"},
          {"loss.adversarial", "1"},
          {"loss.feature", "2"},
          {"optimizer.learning_rate", "1e-4"},
          {"optimizer.beta1", "0.8"},
          {"optimizer.beta2", "0.99"},
          {"optimizer.clip", "1000"},
          {"optimizer.ema_decay", "0"},
          {"training.start", "\"random\""},
          {"training.codebook_start_rows", "0"},
          {"training.schedule", "\"exponential\""},
          {"training.batch_size", "12"}};
}

SystemFile dac() {
  const Preset::Settings training = dac_training();
  // Segments of 0.38 s.
  const auto with_segment = [&](const char* samples) {
    Preset::Settings settings = training;
    settings.push_back({"training.segment_length", samples});
    return settings;
  };
  return {.networks = {{.name = "dac", .encoder = dac_encoder, .decoder = decoder, .check = check}},
          .presets = {{.name = "dac-16k", .codec = at_16k(), .settings = with_segment("6080")},
                      {.name = "dac-24k", .codec = at_24k(), .settings = with_segment("9120")},
                      {.name = "dac-44k", .codec = at_44k(), .settings = with_segment("16758")}}};
}

}  // namespace nacre::systems
