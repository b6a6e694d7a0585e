#include "nacre/systems/system.h"

namespace nacre {
namespace {

int64_t strided_padding(int64_t stride) { return (stride + 1) / 2; }  // as in DAC

void add_units(Chain& layers, Parameters& p, const CodecConfig& c, const std::string& name, size_t first,
               int64_t channels) {
  for (size_t i = 0; i < c.dilations.size(); ++i)
    layers << ResidualUnit(p, name + std::to_string(first + i), channels, c.kernel_size, c.dilations[i], c.activation);
}

Conv1dGeometry centred(int64_t taps) { return {.left = (taps - 1) / 2, .right = (taps - 1) / 2}; }

}  // namespace

// ---- Encoder

Encoder::Encoder(Parameters& p, const CodecConfig& c) {
  const size_t per_block = c.dilations.size();
  int64_t channels = c.encoder_dim;
  size_t index = 1;
  layers_ << Conv1d(p, "encoder.block.0", 1, channels, c.kernel_size, centred(c.kernel_size));
  for (const int64_t rate : c.encoder_rates) {
    const std::string name = "encoder.block." + std::to_string(index++) + ".block.";
    add_units(layers_, p, c, name, 0, channels);
    layers_ << ActivatedConv1d(p, name + std::to_string(per_block), name + std::to_string(per_block + 1), channels,
                               2 * channels, 2 * rate, c.activation,
                               {.stride = rate, .left = strided_padding(rate), .right = strided_padding(rate)});
    channels *= 2;
  }
  layers_ << ActivatedConv1d(p, "encoder.block." + std::to_string(index), "encoder.block." + std::to_string(index + 1),
                             channels, c.latent(), 3, c.activation, centred(3));
}

// ---- Decoder

Decoder::Decoder(Parameters& p, const CodecConfig& c) {
  int64_t channels = c.decoder_dim;
  size_t index = 1;
  layers_ << Conv1d(p, "decoder.model.0", c.latent(), channels, c.kernel_size, centred(c.kernel_size));
  for (const int64_t rate : c.decoder_rates) {
    const std::string name = "decoder.model." + std::to_string(index++) + ".block.";
    layers_ << Activation(p, name + "0", channels, c.activation)
            << ConvTranspose1d(p, name + "1", channels, channels / 2, 2 * rate, rate, strided_padding(rate), rate % 2);
    channels /= 2;
    add_units(layers_, p, c, name, 2, channels);
  }
  const std::string name = "decoder.model.";
  layers_ << ActivatedConv1d(p, name + std::to_string(index), name + std::to_string(index + 1), channels, 1,
                             c.kernel_size, c.activation, centred(c.kernel_size));
  if (c.output_tanh) layers_ << Activation(p, name + std::to_string(index + 2), 1, ActivationKind::tanh);
}

}  // namespace nacre
