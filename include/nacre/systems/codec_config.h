#pragma once
// The configuration of a codec, read from JSON. Key names are those of DAC's configuration files.
#include <cstdint>
#include <string>
#include <vector>

#include "nacre/files/fields.h"
#include "nacre/nn/layers.h"
#include "nacre/ops/rvq.h"

namespace nacre {

enum class QuantizerKind : uint8_t {
  ema,        ///< codes are vectors of the latent space; codebooks follow moving averages (EnCodec, SoundStream)
  factorised  ///< codes are vectors of a low-dimensional projection, compared by cosine; codebooks get gradients (DAC)
};

/// What is added to the result of a residual unit's branch.
enum class Shortcut : uint8_t {
  identity,    ///< the unit's input
  convolution  ///< a convolution of the unit's input with one tap
};

/// Where the activations of a topology of SoundStream's kind stand.
enum class ActivationOrder : uint8_t {
  before,  ///< in front of every convolution but the first of each half (SEANet, EnCodec, ESPnet)
  after    ///< behind every convolution of a residual unit, and nowhere else (audiolm-pytorch)
};
/// Which convolution of a residual unit has more than one tap.
enum class UnitTaps : uint8_t { first, second };

/// The topologies that codec.network chooses from (nacre/systems/system.h).
std::vector<std::string> network_names();

struct CodecConfig {
  std::string network = "dac";
  int64_t sample_rate = 16000;
  int64_t audio_channels = 1;
  int64_t segment = 0;
  int64_t segment_stride = 0;
  bool segment_scale = false;
  int64_t encoder_dim = 64;
  std::vector<int64_t> encoder_rates{2, 4, 5, 8};
  int64_t decoder_dim = 1536;
  std::vector<int64_t> decoder_rates{8, 5, 4, 2};
  int64_t latent_dim = 0;
  int64_t kernel_size = 7;
  std::vector<int64_t> dilations{1, 3, 9};
  ActivationKind activation = ActivationKind::snake;
  bool output_tanh = true;
  bool causal = false;
  Padding padding = Padding::zero;
  Norm norm = Norm::weight;
  int64_t residual_kernel_size = 0;
  Shortcut shortcut = Shortcut::identity;
  int64_t lstm_layers = 0;
  std::vector<int64_t> encoder_channels{};
  std::vector<int64_t> decoder_channels{};
  double residual_width = 0;
  std::vector<int64_t> residual_kernel_sizes{};
  UnitTaps residual_taps = UnitTaps::first;
  ActivationOrder activation_order = ActivationOrder::before;
  int64_t groups = 1;
  int64_t upsampling_strides = 2;
  bool latent_convolutions = true;

  QuantizerKind quantizer = QuantizerKind::factorised;
  int64_t n_codebooks = 12;
  int64_t long_codebooks = 0;
  int64_t long_frames = 1;
  int64_t synthesiser_kernel_size = 0;
  int64_t codebook_size = 1024;
  int64_t codebook_dim = 8;
  VqMetric metric = VqMetric::cosine;
  double quantizer_dropout = 0;
  std::vector<int64_t> codebooks_drawn{};
  double ema_decay = 0.99;
  int64_t ema_rows = 0;
  double dead_below = 0.03;
  int64_t beam = 1;

  /// Samples per frame: a frame is the smallest part of a signal that has codes of its own.
  int64_t hop() const;
  int64_t latent() const;
  /// Whether the quantizer has two cascades: one for what `long_frames` positions of the latent have in common, and one
  /// per position for the rest. A frame then has `long_frames` positions.
  bool two_rates() const { return long_codebooks > 0; }
  int64_t positions_per_frame() const { return long_frames; }
  /// Codes of a frame for the first `codebooks` codebooks: one each, and for two rates one per position of each
  /// codebook behind the long-term ones. In a frame, the codes of the long-term codebooks come first, then those of the
  /// first position, then those of the next one.
  int64_t codes_per_frame(int64_t codebooks) const;
  int64_t codes_per_frame() const { return codes_per_frame(n_codebooks); }
  /// The number of codebooks that gives so many codes per frame; 0 if none does.
  int64_t codebooks_of(int64_t codes_per_frame) const;
  /// The codebook that code number `column` of a frame belongs to, where the first `codebooks` ones are used.
  int64_t codebook_of(int64_t column, int64_t codebooks) const;
  int64_t code_dim() const { return quantizer == QuantizerKind::ema ? latent() : codebook_dim; }
  /// Whether frames depend on all frames before them, by a state along the time axis.
  bool recurrent() const { return lstm_layers > 0; }
  /// Whether every frame depends on the whole signal (of a segmented codec: on its whole segment), so that it cannot be
  /// coded in parts.
  bool needs_whole_signal() const { return norm == Norm::group; }
  /// Whether audio is cut into segments, each of which is coded as a signal by itself.
  bool segmented() const { return segment > 0; }
  /// Whether a signal of any number of samples is coded as it is. Otherwise it is first extended to whole frames.
  bool takes_any_length() const { return needs_whole_signal() || segmented(); }
  /// Frames of `samples` samples.
  int64_t frames_of(int64_t samples) const { return (samples + hop() - 1) / hop(); }
  double frame_rate() const { return static_cast<double>(sample_rate) / static_cast<double>(hop()); }
  /// Decay for a step of `rows` frames (padding included): the larger of ema_decay and 1 - rows / ema_rows.
  double ema_decay_of(int64_t rows) const;
  /// Threshold of dead codes for a step of `rows` frames (padding included): dead_below, but at most half of the
  /// average use of a code, rows / codebook_size / 2. A higher threshold would replace codes that are used as they
  /// should be.
  double dead_below_of(int64_t rows) const;
  int64_t code_bits() const;  ///< bits of one code: ceil(log2(codebook_size))
  /// Bitrate in bit/s of the codes of one signal of audio_channels channels, without entropy coding, the scales of
  /// segments and what their overlap adds. `codebooks`: number of codebooks used.
  double nominal_bitrate(int64_t codebooks) const {
    return frame_rate() * static_cast<double>(codes_per_frame(codebooks)) * static_cast<double>(code_bits());
  }
  double nominal_bitrate() const { return nominal_bitrate(n_codebooks); }
  /// The largest number of codebooks, up to n_codebooks, whose nominal bitrate does not exceed the given one in bit/s;
  /// 0 if that of one codebook does. An argument that is below only by its rounding to double counts as equal.
  int64_t codebooks_within(double bits_per_second) const;
  /// The number of codebooks that a caller asks for: `codebooks`, or n_codebooks if it is 0. Throws Error(usage) for
  /// other numbers than 0 to n_codebooks; `call` is the caller's name in the message.
  int64_t codebooks_used(const char* call, int64_t codebooks) const;
  /// Multiply-adds of the convolutions and the LSTM in one forward pass over `frames` frames. Transposed convolutions
  /// are counted at the rate of their input.
  int64_t encoder_macs(int64_t frames) const;
  int64_t decoder_macs(int64_t frames) const;
  /// The same of the decoder as profilers count: transposed convolutions at the rate of their output, that is, with the
  /// zeros between their inputs.
  int64_t decoder_macs_profiled(int64_t frames) const;
  /// Receptive fields in frames; windows overlap by these. encoder_context(): how far before and after a frame's own
  /// samples other samples can change its codes. decoder_context(): how many frames before and after a frame can change
  /// its samples. If recurrent(), this is what lies outside of the state.
  int64_t encoder_context() const;
  int64_t decoder_context() const;

  /// Throws Error(usage) that names the invalid key.
  void check() const;
  std::string to_json() const;
  /// Throws Error(usage) that names the key for unknown keys, wrong types and invalid values.
  static CodecConfig from_json(const std::string& text);
  /// The codec of a preset (nacre/systems/system.h). Throws Error(usage) that lists the names.
  static CodecConfig named(const std::string& name);
  static std::vector<std::string> names();
};

template <class V>
void fields(V& v, CodecConfig& c) {
  using namespace field;
  v("network", c.network, words(network_names()), "topology of encoder and decoder");
  v("sample_rate", c.sample_rate, range(1000, 768000), "Hz; audio is resampled to it");
  v("audio_channels", c.audio_channels, range(1, 2),
    "channels that are coded together; 2: stereo, and a file of one channel is coded as two equal ones");
  v("segment", c.segment, range(0, 1 << 24).zero("none"),
    "samples of the segments that are coded by themselves; network encodec only");
  v("segment_stride", c.segment_stride, range(0, 1 << 24),
    "samples from one segment to the next, half a segment to a whole one; segments overlap by the rest");
  v("segment_scale", c.segment_scale, flag(),
    "every segment is divided by the RMS of its mean over channels, which its packet then holds");
  v("encoder_dim", c.encoder_dim, range(1, 4096), "width of the first encoder layer; doubles at every stride");
  v("encoder_rates", c.encoder_rates, list(range(2, 64), 1, 8, "strides"),
    "strides of the encoder; their product is the hop, samples per frame");
  v("decoder_dim", c.decoder_dim, range(1, 16384), "width of the first decoder layer; halves at every stride");
  v("decoder_rates", c.decoder_rates, list(range(2, 64), 1, 8, "strides"),
    "strides of the decoder, with the same product");
  v("latent_dim", c.latent_dim, range(0, 65536), "channels of the latent; 0: encoder_dim * 2^(number of strides)");
  v("kernel_size", c.kernel_size, range(1, 63),
    "taps, odd, of the first encoder layer, the first and last decoder layer and the residual units; encodec: also of "
    "the last encoder layer");
  v("dilations", c.dilations, list(range(1, 1024), 1, 8), "dilations of the residual units at every stride");
  v("activation", c.activation, words({"snake", "snake_beta", "elu", "leaky_relu", "tanh"}),
    "nonlinearity between layers");
  v("output_tanh", c.output_tanh, flag(), "the decoder ends in a tanh");
  v("causal", c.causal, flag(), "outputs do not depend on later frames; network encodec only");
  v("padding", c.padding, words({"zero", "reflect"}),
    "what convolutions read beyond the ends of the signal; network encodec only");
  v("norm", c.norm, words({"none", "weight", "group", "layer"}),
    "normalisation of convolutions: of their weights, or of their outputs over an item or a position; network encodec "
    "only");
  v("residual_kernel_size", c.residual_kernel_size, range(0, 63).zero("kernel_size"),
    "taps of the first convolution of a residual unit; network encodec only");
  v("shortcut", c.shortcut, words({"identity", "convolution"}),
    "what a residual unit adds to its branch: its input, or a convolution of it; network encodec only");
  v("lstm_layers", c.lstm_layers, range(0, 8),
    "LSTM layers behind the encoder's strides and in front of the decoder's; network encodec only");
  v("encoder_channels", c.encoder_channels, list(range(1, 65536), 0, 9, "widths"),
    "widths of the encoder, one more than strides; empty: encoder_dim, doubled at every stride; network soundstream "
    "only");
  v("decoder_channels", c.decoder_channels, list(range(1, 65536), 0, 9, "widths"),
    "widths of the decoder, one more than strides; empty: decoder_dim, halved at every stride; networks soundstream "
    "and "
    "ldcodec only");
  v("residual_width", c.residual_width, range(0, 16).zero("the network's own"),
    "channels between the two convolutions of a residual unit, as a multiple of its channels; networks soundstream and "
    "ldcodec only");
  v("residual_kernel_sizes", c.residual_kernel_sizes, list(range(1, 63), 0, 8),
    "taps of the residual units, one number per dilation; empty: all as residual_kernel_size; network soundstream "
    "only");
  v("residual_taps", c.residual_taps, words({"first", "second"}),
    "the convolution of a residual unit that has more than one tap; network ldcodec only");
  v("activation_order", c.activation_order, words({"before", "after"}),
    "before: in front of every convolution; after: behind those of residual units only; network soundstream only");
  v("groups", c.groups, range(1, 4096),
    "groups of the convolutions in the decoder's residual units; network ldcodec only");
  v("upsampling_strides", c.upsampling_strides, range(1, 2),
    "taps of a transposed convolution in strides; 1: neighbours do not overlap; network soundstream only");
  v("latent_convolutions", c.latent_convolutions, flag(),
    "a last convolution of the encoder and a first one of the decoder; false: the strided ones end at the latent; "
    "network soundstream only");
  v("quantizer", c.quantizer, words({"ema", "factorised"}),
    "ema: codes of the latent, moved by averages; factorised: codes of a projection, trained by gradient");
  v("n_codebooks", c.n_codebooks, range(1, 64), "stages of the residual quantizer");
  v("long_codebooks", c.long_codebooks, range(0, 63).zero("one rate"),
    "the first of n_codebooks, which quantise what long_frames positions of the latent have in common; quantizer ema "
    "only");
  v("long_frames", c.long_frames, range(1, 64), "positions of the latent in a frame; above 1 with long_codebooks only");
  v("synthesiser_kernel_size", c.synthesiser_kernel_size, range(0, 63).zero("their sum alone"),
    "taps, odd, of the convolutions that merge both parts of the latent; with long_codebooks only");
  v("codebook_size", c.codebook_size, range(2, 65536), "codes per codebook");
  v("codebook_dim", c.codebook_dim, range(1, 4096), "channels of a code; factorised only");
  v("metric", c.metric, words({"euclidean", "cosine"}), "distance by which the nearest code is chosen");
  v("quantizer_dropout", c.quantizer_dropout, range(0, 1),
    "part of the batch that is trained with a random number of codebooks");
  v("codebooks_drawn", c.codebooks_drawn, list(range(1, 64), 0, 16, "numbers of codebooks"),
    "every batch is trained with one of these numbers of codebooks, drawn at random; empty: all");
  v("ema_decay", c.ema_decay, range(0, below(1)), "decay per step of the codebooks' moving averages; ema only");
  v("ema_rows", c.ema_rows, range(0, 10000000),
    "frames that the averages span at least: steps of few frames decay more slowly; ema only");
  v("dead_below", c.dead_below, at_least(0, below(1e6)),
    "a code used less often per batch than this (moving average) is replaced, or than half of the average use, "
    "whichever "
    "is less; ema only");
  v("beam", c.beam, range(1, max_rvq_beam),
    "code sequences kept per frame in encoding, not in training; above 1 for ema and euclidean only");
}

}  // namespace nacre
