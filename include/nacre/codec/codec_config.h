#pragma once
// What a codec is made of, as read from JSON. Key names are those of DAC's configuration files.
#include <cstdint>
#include <string>
#include <vector>

#include "nacre/nn/layers.h"
#include "nacre/ops/vq.h"

namespace nacre {

enum class QuantizerKind : uint8_t {
  ema,        ///< codes live in the latent space; codebooks follow exponential moving averages (EnCodec, SoundStream)
  factorised  ///< codes live in a low-dimensional projection, looked up by cosine; codebooks get gradients (DAC)
};

struct CodecConfig {
  int64_t sample_rate = 16000;
  int64_t encoder_dim = 64;  ///< width of the first encoder layer; doubles at every stride
  std::vector<int64_t> encoder_rates{2, 4, 5, 8};
  int64_t decoder_dim = 1536;  ///< width of the first decoder layer; halves at every stride
  std::vector<int64_t> decoder_rates{8, 5, 4, 2};
  int64_t latent_dim = 0;  ///< 0: encoder_dim * 2^(number of strides)
  int64_t kernel_size = 7;
  std::vector<int64_t> dilations{1, 3, 9};
  ActivationKind activation = ActivationKind::snake;
  bool output_tanh = true;

  QuantizerKind quantizer = QuantizerKind::factorised;
  int64_t n_codebooks = 12;
  int64_t codebook_size = 1024;
  int64_t codebook_dim = 8;  ///< factorised only
  VqMetric metric = VqMetric::cosine;
  double quantizer_dropout = 0;  ///< part of the batch that is trained with a random number of codebooks
  double ema_decay = 0.99;       ///< of the codebooks' moving averages, per step; ema only, as the next two
  int64_t ema_rows = 0;          ///< frames that the averages span at least: steps of few frames decay more slowly
  double dead_below = 0.03;      ///< a code used less often per batch than this (moving average) is replaced
  int64_t beam = 1;              ///< code sequences kept per frame in encoding, not in training; ema and euclidean only

  int64_t hop() const;
  int64_t latent() const;
  int64_t code_dim() const { return quantizer == QuantizerKind::ema ? latent() : codebook_dim; }
  double frame_rate() const { return static_cast<double>(sample_rate) / static_cast<double>(hop()); }
  /// Decay for a step of `rows` frames, padding included: the higher of ema_decay and 1 - rows / ema_rows.
  double ema_decay_of(int64_t rows) const;
  int64_t code_bits() const;  ///< bits of one code: ceil(log2(codebook_size))
  /// Codes times bits per second, in bit/s.
  double nominal_bitrate() const {
    return frame_rate() * static_cast<double>(n_codebooks) * static_cast<double>(code_bits());
  }
  /// Multiply-adds of one forward pass over `frames` frames, convolutions only (transposed ones counted at their
  /// input's rate).
  int64_t encoder_macs(int64_t frames) const;
  int64_t decoder_macs(int64_t frames) const;
  /// How many samples before and after a frame's own can change its codes, and how many frames before and after a
  /// frame's own samples can change them: the receptive fields that windows overlap by, in frames.
  int64_t encoder_context() const;
  int64_t decoder_context() const;

  /// Throws Error(usage) naming the key whose value cannot be used.
  void check() const;
  std::string to_json() const;
  /// Unknown keys, wrong types and values that cannot be used throw Error(usage) naming the key.
  static CodecConfig from_json(const std::string& text);
  /// "speech-16k", "speech-16k-small", "dac-16k", "dac-24k", "dac-44k"; throws Error(usage) listing the names.
  static CodecConfig named(const std::string& name);
  static std::vector<std::string> names();
};

}  // namespace nacre
