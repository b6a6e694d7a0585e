// EnCodec (Defossez et al. 2022, arXiv 2210.13438, section 3.1, and the published code): topology and presets. Names of
// parameters are those of EncodecModel in transformers.
#include "files/fields.h"
#include "systems/list.h"
#include "systems/seanet.h"

namespace nacre::systems {
namespace {

constexpr int64_t compression = 2;  // a residual unit's channels over those of its branch

void add_units(Chain& layers, Numbered& number, Parameters& p, const CodecConfig& c, int64_t channels) {
  const int64_t taps = c.residual_kernel_size > 0 ? c.residual_kernel_size : c.kernel_size;
  for (const int64_t dilation : c.dilations)
    layers << SeanetUnit(p, c, number.next(),
                         {.channels = channels, .branch = channels / compression, .taps = taps, .dilation = dilation});
}

/// conv -> blocks of (residual units, activation, strided conv) -> LSTM -> activation -> conv
Net encoder(Parameters& p, const CodecConfig& c) {
  Chain layers;
  Numbered number("encoder");
  int64_t channels = c.encoder_dim;
  layers << PaddedConv(p, c, number.next(), c.audio_channels, channels, c.kernel_size);
  for (const int64_t rate : c.encoder_rates) {
    add_units(layers, number, p, c, channels);
    layers << Activation(p, number.next(), channels, c.activation);
    layers << PaddedConv(p, c, number.next(), channels, 2 * channels, 2 * rate, rate);
    channels *= 2;
  }
  add_lstm(layers, number, p, c, channels);
  layers << Activation(p, number.next(), channels, c.activation);
  layers << PaddedConv(p, c, number.next(), channels, c.latent(), c.kernel_size);
  return layers;
}

/// conv -> LSTM -> blocks of (activation, transposed conv, residual units) -> activation -> conv
Net decoder(Parameters& p, const CodecConfig& c) {
  Chain layers;
  Numbered number("decoder");
  int64_t channels = c.decoder_dim;
  layers << PaddedConv(p, c, number.next(), c.latent(), channels, c.kernel_size);
  add_lstm(layers, number, p, c, channels);
  for (const int64_t rate : c.decoder_rates) {
    layers << Activation(p, number.next(), channels, c.activation);
    layers << TrimmedConvTranspose(p, c, number.next(), channels, channels / 2, rate);
    channels /= 2;
    add_units(layers, number, p, c, channels);
  }
  layers << Activation(p, number.next(), channels, c.activation);
  layers << PaddedConv(p, c, number.next(), channels, c.audio_channels, c.kernel_size);
  if (c.output_tanh) layers << Activation(p, number.next(), c.audio_channels, ActivationKind::tanh);
  return layers;
}

/// Branches of residual units have half of the channels.
void check(const CodecConfig& c) {
  expect_defaults(
      c, {"encoder_channels", "decoder_channels", "residual_width", "residual_kernel_sizes", "residual_taps",
          "activation_order", "groups", "upsampling_strides", "latent_convolutions", "denoise", "long_codebooks"});
  const auto narrowest = c.decoder_dim >> c.decoder_rates.size();
  if (c.encoder_dim % compression != 0)
    refuse("codec.encoder_dim", std::to_string(c.encoder_dim), "an even number with network \"encodec\"");
  if (narrowest % compression != 0)
    refuse("codec.decoder_dim", std::to_string(c.decoder_dim),
           "a multiple of " + std::to_string(int64_t{2} << c.decoder_rates.size()) + " with network \"encodec\"");
}

// What the presets share: one residual unit per block, ELU, two LSTM layers, latents of 128 channels and codebooks of
// moving averages.
CodecConfig common() {
  CodecConfig c;
  c.network = "encodec";
  c.dilations = {1}, c.residual_kernel_size = 3;
  c.activation = ActivationKind::elu;
  c.output_tanh = false;
  c.lstm_layers = 2;
  c.latent_dim = 128;
  c.quantizer = QuantizerKind::ema, c.metric = VqMetric::euclidean;
  // A code without use is replaced after 91 steps (docs/decisions/random-start.md).
  c.dead_below = 0.4;
  return c;
}
/// 1.5, 3, 6, 12 and 24 kbit/s.
CodecConfig at_24k() {
  CodecConfig c = common();
  c.sample_rate = 24000;
  c.encoder_dim = 32, c.encoder_rates = {2, 4, 5, 8};
  c.decoder_dim = 512, c.decoder_rates = {8, 5, 4, 2};
  c.causal = true, c.padding = Padding::reflect;
  c.shortcut = Shortcut::convolution;
  c.n_codebooks = 32, c.codebooks_drawn = {2, 4, 8, 16, 32};
  return c;
}
/// The codec of MusicGen (Copet et al. 2023, arXiv 2306.05284): 2.2 kbit/s.
CodecConfig at_32k() {
  CodecConfig c = common();
  c.sample_rate = 32000;
  c.encoder_dim = 64, c.encoder_rates = {4, 4, 5, 8};
  c.decoder_dim = 1024, c.decoder_rates = {8, 5, 4, 4};
  c.padding = Padding::reflect;
  c.n_codebooks = 4, c.codebook_size = 2048;
  return c;
}
/// Stereo: 3, 6, 12 and 24 kbit/s. A frame depends on its whole segment of one second.
CodecConfig at_48k() {
  CodecConfig c = common();
  c.sample_rate = 48000;
  c.audio_channels = 2;
  c.segment = 48000, c.segment_stride = 47520, c.segment_scale = true;
  c.encoder_dim = 32, c.encoder_rates = {2, 4, 5, 8};
  c.decoder_dim = 512, c.decoder_rates = {8, 5, 4, 2};
  c.norm = Norm::group, c.padding = Padding::reflect;
  c.shortcut = Shortcut::convolution;
  c.n_codebooks = 16, c.codebooks_drawn = {2, 4, 8, 16};
  return c;
}
/// For telephony: 1 to 8 kbit/s, frames of 20 ms, no lookahead. Zeros in front of the signal, so that a stream can
/// start at once.
CodecConfig at_8k() {
  CodecConfig c = common();
  c.sample_rate = 8000;
  c.encoder_dim = 32, c.encoder_rates = {2, 4, 4, 5};
  c.decoder_dim = 512, c.decoder_rates = {5, 4, 4, 2};
  c.causal = true;
  c.shortcut = Shortcut::convolution;
  c.n_codebooks = 16, c.codebooks_drawn = {2, 4, 8, 16};
  return c;
}

}  // namespace

Preset::Settings with_encodec_training(const Preset::Settings& own) {
  Preset::Settings settings{{"discriminator.periods", "[]"},
                            {"discriminator.windows", "[]"},
                            {"discriminator.level", "false"},
                            {"discriminator.learning_rate", "3e-4"},
                            {"discriminator.beta1", "0.5"},
                            {"discriminator.beta2", "0.9"},
                            {"discriminator.weight_decay", "0"},
                            {"discriminator.clip", "0"},
                            {"optimizer.learning_rate", "3e-4"},
                            {"optimizer.beta1", "0.5"},
                            {"optimizer.beta2", "0.9"},
                            {"optimizer.weight_decay", "0"},
                            {"optimizer.clip", "0"},
                            {"training.start", "\"scaled\""},
                            {"training.schedule", "\"constant\""},
                            {"training.batch_size", "64"}};
  settings.insert(settings.end(), own.begin(), own.end());
  return settings;
}

SystemFile encodec() {
  // The paper (section 3.4), which audiocraft's default configuration shares where it is not said otherwise.
  const Preset::Settings both = with_encodec_training({{"loss.balanced", "true"},
                                                       {"loss.balancer_norm", "\"item\""},
                                                       {"loss.waveform", "0.1"},
                                                       {"loss.stft", "0"},
                                                       {"loss.vq", "1"},
                                                       {"loss.vq_mean", "true"},
                                                       {"loss.mel_kind", "\"power\""},
                                                       {"loss.mel_scale", "\"htk\""},
                                                       {"loss.mel_fmin", "64"},
                                                       {"optimizer.ema_decay", "0.99"}});
  const auto with = [](Preset::Settings settings, const Preset::Settings& more) {
    settings.insert(settings.end(), more.begin(), more.end());
    return settings;
  };
  const auto paper = [&](const char* adversarial, const char* updates) {
    return with(both, {{"loss.mel", "1"},
                       {"loss.adversarial", adversarial},
                       {"loss.feature", adversarial},
                       {"loss.feature_relative", "true"},
                       {"discriminator.loss", "\"hinge\""},
                       {"discriminator.update_fraction", updates}});
  };
  // The discriminators train in two of three steps.
  const Preset::Settings paper_mono = paper("3", "0.6666666666666666");
  const Preset::Settings audiocraft = with(both, {{"loss.mel", "2"},
                                                  {"loss.adversarial", "4"},
                                                  {"loss.feature", "4"},
                                                  {"discriminator.loss", "\"hinge_linear\""},
                                                  {"discriminator.stft_slope", "0.3"}});
  // Segments of one second.
  return {
      .networks = {{.name = "encodec", .encoder = encoder, .decoder = decoder, .check = check}},
      .presets = {{.name = "encodec-24k",
                   .codec = at_24k(),
                   .settings = with(paper_mono, {{"loss.windows", "[32, 64, 128, 256, 512, 1024, 2048]"},
                                                 {"loss.mels", "[64, 64, 64, 64, 64, 64, 64]"},
                                                 {"discriminator.stft_windows", "[2048, 1024, 512, 256, 128]"},
                                                 {"training.segment_length", "24000"}})},
                  {.name = "encodec-32k",
                   .codec = at_32k(),
                   .settings = with(audiocraft, {{"loss.windows", "[64, 128, 256, 512, 1024]"},
                                                 {"loss.mels", "[64, 64, 64, 64, 64]"},
                                                 {"discriminator.stft_windows", "[1024, 2048, 512, 256, 128]"},
                                                 {"training.segment_length", "32000"}})},
                  {.name = "encodec-48k",
                   .codec = at_48k(),
                   .settings = with(paper("4", "0.5"), {{"loss.windows", "[32, 64, 128, 256, 512, 1024, 2048]"},
                                                        {"loss.mels", "[64, 64, 64, 64, 64, 64, 64]"},
                                                        {"discriminator.stft_windows", "[4096, 2048, 1024, 512, 256]"},
                                                        {"training.segment_length", "48000"}})},
                  {.name = "speech-8k",
                   .codec = at_8k(),
                   .settings = with(paper_mono, {{"loss.windows", "[32, 64, 128, 256, 512, 1024]"},
                                                 {"loss.mels", "[64, 64, 64, 64, 64, 64]"},
                                                 {"discriminator.stft_windows", "[1024, 512, 256, 128]"},
                                                 {"training.segment_length", "8000"}})}}};
}

}  // namespace nacre::systems
