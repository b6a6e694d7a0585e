// EnCodec (Defossez et al. 2022, arXiv 2210.13438, section 3.1, and the published code): topology and presets. Names of
// parameters are those of EncodecModel in transformers.
#include <algorithm>
#include <optional>

#include "files/fields.h"
#include "systems/list.h"

namespace nacre::systems {
namespace {

constexpr int64_t compression = 2;  // a residual unit's channels over those of its branch

/// A convolution whose output has time / stride positions, rounded up. Causal: all padding is on the left, but for what
/// completes the last position.
class PaddedConv {
 public:
  PaddedConv(Parameters& p, const CodecConfig& c, const std::string& name, int64_t in, int64_t out, int64_t taps,
             int64_t stride = 1, int64_t dilation = 1)
      : conv_(p, name + ".conv", in, out, taps, geometry(c, taps, stride, dilation), norm_of_weight(c),
              BiasStart::uniform),
        norm_(norm_of_output(p, c, name, out)) {}

  Flow plan(Plan& p, Flow x) const { return plan(p, x, {}); }
  /// y = conv(x) + residual. The residual may be absent; only a convolution of one tap takes one.
  Flow plan(Plan& p, Flow x, Flow residual) const {
    const int64_t time = x.shape.time, stride = conv_.geometry().stride, positions = (time + stride - 1) / stride;
    const Conv1d conv = conv_.padded_right(positions * stride - time);
    const Conv1dGeometry& g = conv.geometry();
    const int64_t least = std::max(g.left, g.right) + 1;
    // A signal that is too short to be reflected is extended with zeros first, and the result is cut. The length of a
    // block is not that of the signal.
    const bool extend = !p.streaming() && g.padding == Padding::reflect && time < least;
    const Flow longer = extend ? rows_of(p, x, 0, least) : x;
    const Flow y = rows_of(p, conv.plan(p, longer, norm_ ? Flow{} : residual), 0, positions);
    return norm_ ? norm_->plan(p, y, residual) : y;
  }

  static Norm norm_of_weight(const CodecConfig& c) { return c.norm == Norm::weight ? Norm::weight : Norm::none; }
  static std::optional<GroupNorm> norm_of_output(Parameters& p, const CodecConfig& c, const std::string& name,
                                                 int64_t channels) {
    if (c.norm != Norm::group && c.norm != Norm::layer) return std::nullopt;
    return GroupNorm(p, name + ".norm", channels, 1, c.norm == Norm::group ? NormOver::item : NormOver::position);
  }

 private:
  static Conv1dGeometry geometry(const CodecConfig& c, int64_t taps, int64_t stride, int64_t dilation) {
    const int64_t all = (taps - 1) * dilation + 1 - stride, right = c.causal ? 0 : all / 2;
    return {.stride = stride, .dilation = dilation, .left = all - right, .right = right, .padding = c.padding};
  }
  Conv1d conv_;
  std::optional<GroupNorm> norm_;
};

/// A transposed convolution of 2 stride taps whose output has time * stride positions. Causal: the rest is cut off at
/// the right end. The norm, if any, sees what is cut off.
class TrimmedConvTranspose {
 public:
  TrimmedConvTranspose(Parameters& p, const CodecConfig& c, const std::string& name, int64_t in, int64_t out,
                       int64_t stride)
      : stride_(stride),
        trim_(trim(c, stride)),
        norm_(PaddedConv::norm_of_output(p, c, name, out)),
        conv_(p, name + ".conv", in, out, 2 * stride, stride, norm_ ? Trim{} : trim_, PaddedConv::norm_of_weight(c)) {}

  Flow plan(Plan& p, Flow x) const {
    const Flow y = conv_.plan(p, x);
    return norm_ ? rows_of(p, norm_->plan(p, y), trim_.left, x.shape.time * stride_) : y;
  }

 private:
  static Trim trim(const CodecConfig& c, int64_t stride) {
    const int64_t right = c.causal ? stride : stride / 2;
    return {.left = stride - right, .right = right};
  }
  int64_t stride_;
  Trim trim_;
  std::optional<GroupNorm> norm_;
  ConvTranspose1d conv_;
};

/// activation -> conv -> activation -> conv of one tap -> + shortcut
class Unit {
 public:
  Unit(Parameters& p, const CodecConfig& c, const std::string& name, int64_t channels, int64_t dilation)
      : first_(p, name + ".block.0", channels, c.activation),
        wide_(p, c, name + ".block.1", channels, channels / compression,
              c.residual_kernel_size > 0 ? c.residual_kernel_size : c.kernel_size, 1, dilation),
        second_(p, name + ".block.2", channels / compression, c.activation),
        narrow_(p, c, name + ".block.3", channels / compression, channels, 1) {
    if (c.shortcut == Shortcut::convolution) shortcut_.emplace(p, c, name + ".shortcut", channels, channels, 1);
  }
  Flow plan(Plan& p, Flow x) const {
    const Flow skip = shortcut_ ? shortcut_->plan(p, x) : x;
    return narrow_.plan(p, second_.plan(p, wide_.plan(p, first_.plan(p, x))), skip);
  }

 private:
  Activation first_;
  PaddedConv wide_;
  Activation second_;
  PaddedConv narrow_;
  std::optional<PaddedConv> shortcut_;
};

/// The layers of one half. Every layer, activations included, has a number.
class Numbered {
 public:
  explicit Numbered(const char* half) : half_(half) {}
  std::string next() { return half_ + std::string(".layers.") + std::to_string(count_++); }

 private:
  const char* half_;
  int count_ = 0;
};

void add_units(Chain& layers, Numbered& number, Parameters& p, const CodecConfig& c, int64_t channels) {
  for (const int64_t dilation : c.dilations) layers << Unit(p, c, number.next(), channels, dilation);
}
void add_lstm(Chain& layers, Numbered& number, Parameters& p, const CodecConfig& c, int64_t channels) {
  if (c.lstm_layers > 0) layers << Lstm(p, number.next() + ".lstm", channels, c.lstm_layers);
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
  expect_defaults(c,
                  {"encoder_channels", "decoder_channels", "residual_width", "residual_kernel_sizes", "residual_taps",
                   "activation_order", "groups", "upsampling_strides", "latent_convolutions", "long_codebooks"});
  const auto narrowest = c.decoder_dim >> c.decoder_rates.size();
  if (c.encoder_dim % compression != 0)
    refuse("codec.encoder_dim", std::to_string(c.encoder_dim), "an even number with network \"encodec\"");
  if (narrowest % compression != 0)
    refuse("codec.decoder_dim", std::to_string(c.decoder_dim),
           "a multiple of " + std::to_string(int64_t{2} << c.decoder_rates.size()) + " with network \"encodec\"");
}

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

SystemFile encodec() {
  // The paper (section 3.4), which audiocraft's default configuration shares where it is not said otherwise.
  const Preset::Settings both{{"loss.balanced", "true"},
                              {"loss.balancer_norm", "\"item\""},
                              {"loss.waveform", "0.1"},
                              {"loss.stft", "0"},
                              {"loss.vq", "1"},
                              {"loss.vq_mean", "true"},
                              {"loss.mel_kind", "\"power\""},
                              {"loss.mel_scale", "\"htk\""},
                              {"loss.mel_fmin", "64"},
                              {"discriminator.periods", "[]"},
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
                              {"optimizer.ema_decay", "0.99"},
                              {"training.start", "\"scaled\""},
                              {"training.schedule", "\"constant\""},
                              {"training.batch_size", "64"}};
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
