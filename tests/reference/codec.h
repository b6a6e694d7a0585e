#pragma once
// Encoder, quantizer and decoder in double, as nacre trains them. DAC's are a composition of layers, and an example for
// other models.
#include "nacre/systems/codec_config.h"
#include "reference/layers.h"
#include "reference/losses.h"
#include "reference/quantizer.h"
#include "reference/seanet.h"

namespace nacre::test {

inline Layer activation(const std::string& name, ActivationKind kind) {
  switch (kind) {
    case ActivationKind::elu:
      return elu;
    case ActivationKind::leaky_relu:
      return leaky_relu(0.1);
    case ActivationKind::tanh:
      return tanh;
    default:
      return snake(name, kind == ActivationKind::snake_beta);
  }
}

inline Layer residual_unit(const CodecConfig& c, const std::string& name, int64_t dilation) {
  const int64_t padding = (c.kernel_size - 1) / 2 * dilation;
  Chain unit;
  unit << activation(name + ".block.0", c.activation)
       << conv1d(name + ".block.1", c.kernel_size, {.dilation = dilation, .left = padding, .right = padding})
       << activation(name + ".block.2", c.activation)  //
       << conv1d(name + ".block.3", 1);
  return residual(unit);
}

/// Maps audio [batch, time, 1, 1] to latents [batch, time / hop, 1, latent]. labels: of the items, for
/// CodecConfig::denoise.
inline Layer encoder(const CodecConfig& c, const std::vector<int32_t>& labels = {}) {
  if (c.network == "soundstream") return SeanetReference(c, "encoder", labels).encoder();
  const auto at = [](size_t i) { return "encoder.block." + std::to_string(i); };
  const int64_t edge = (c.kernel_size - 1) / 2;
  Chain net;
  net << conv1d(at(0), c.kernel_size, {.left = edge, .right = edge});
  size_t i = 1;
  for (const int64_t rate : c.encoder_rates) {
    const auto inner = [block = at(i++)](size_t j) { return block + ".block." + std::to_string(j); };
    const int64_t padding = (rate + 1) / 2;
    size_t j = 0;
    for (const int64_t dilation : c.dilations) net << residual_unit(c, inner(j++), dilation);
    net << activation(inner(j), c.activation);
    net << conv1d(inner(j + 1), 2 * rate, {.stride = rate, .left = padding, .right = padding});
  }
  net << activation(at(i), c.activation) << conv1d(at(i + 1), 3, {.left = 1, .right = 1});
  return net;
}

/// Maps latents [batch, frames, 1, latent] to audio [batch, frames hop, 1, 1].
inline Layer decoder(const CodecConfig& c, const std::vector<int32_t>& labels = {}) {
  if (c.network == "soundstream") return SeanetReference(c, "decoder", labels).decoder();
  const auto at = [](size_t i) { return "decoder.model." + std::to_string(i); };
  const int64_t edge = (c.kernel_size - 1) / 2;
  Chain net;
  net << conv1d(at(0), c.kernel_size, {.left = edge, .right = edge});
  size_t i = 1;
  for (const int64_t rate : c.decoder_rates) {
    const auto inner = [block = at(i++)](size_t j) { return block + ".block." + std::to_string(j); };
    const int64_t padding = (rate + 1) / 2;
    net << activation(inner(0), c.activation);
    net << conv_transpose1d(inner(1), 2 * rate, {.stride = rate, .left = padding, .right = padding}, rate % 2);
    size_t j = 2;
    for (const int64_t dilation : c.dilations) net << residual_unit(c, inner(j++), dilation);
  }
  net << activation(at(i), c.activation) << conv1d(at(i + 1), c.kernel_size, {.left = edge, .right = edge});
  if (c.output_tanh) net << tanh;
  return net;
}

/// One training step: the loss of a batch as a model, and the parts of the loss from the last run.
class CodecReference {
 public:
  CodecConfig config;
  SpectralConfig spectral;
  double waveform_weight = 1, stft_weight = 1, mel_weight = 1, vq_weight = 1, codebook_weight = 1;
  bool orthogonal = false;  ///< removes the part along the quantisation error from the encoder's gradient
  int64_t batch = 1, samples = 1;
  Values audio;
  std::vector<int32_t> labels{};                ///< for CodecConfig::denoise
  std::vector<int32_t> lengths, stages, codes;  ///< codes [batch][frames][stages] are an input

  Quantised quantised;
  SpectralNodes spectra;
  Node* waveform = nullptr;

  Node* operator()(Tape& t) {
    Node* z = encoder(config, labels)(t, t.constant({.batch = batch, .time = samples}, audio));
    quantised = quantise(t, z, "quantizer.quantizers", quantizer(z->shape.time));
    Node* estimate = decoder(config, labels)(t, quantised.y);
    waveform = waveform_loss(t, estimate, audio, lengths);
    spectra = spectral_loss(t, spectral, estimate, audio, lengths);
    return sum(t, {{waveform_weight, waveform},
                   {stft_weight, spectra.stft},
                   {mel_weight, spectra.mel},
                   {vq_weight, quantised.commitment},
                   {config.quantizer == QuantizerKind::factorised ? codebook_weight : 0, quantised.codebook}});
  }

 private:
  RvqReference quantizer(int64_t frames) const {
    RvqReference q;
    q.factorised = config.quantizer == QuantizerKind::factorised;
    q.orthogonal = orthogonal && !q.factorised;
    q.stages = config.n_codebooks, q.codes = config.codebook_size, q.dim = config.code_dim();
    q.chosen.assign(codes.begin(), codes.end());
    for (int64_t row = 0; row < batch * frames; ++row) {
      const size_t item = static_cast<size_t>(row / frames);
      q.valid.push_back(row % frames < (lengths[item] + config.hop() - 1) / config.hop());
      q.used.push_back(stages[item]);
    }
    return q;
  }
};

}  // namespace nacre::test
