// The low-complexity baseline of the LRAC 2025 challenge (track 1, arXiv 2510.00264), on SoundStream's topology.
#include "systems/list.h"

namespace nacre::systems {
namespace {

/// 1 and 6 kbit/s, 100 frames per second. docs/systems.md says what is published.
CodecConfig at_24k() {
  CodecConfig c;
  c.network = "soundstream";
  c.sample_rate = 24000;
  c.encoder_rates = {3, 4, 4, 5}, c.encoder_channels = {8, 16, 32, 64, 160};
  c.decoder_rates = {5, 4, 4, 3}, c.decoder_channels = {160, 48, 24, 16, 8};
  c.latent_dim = 160, c.latent_convolutions = false;
  c.residual_width = 1;
  c.residual_kernel_sizes = {7, 5, 5};
  c.upsampling_strides = 1;
  c.activation = ActivationKind::elu;
  c.output_tanh = false;
  c.causal = true;
  c.quantizer = QuantizerKind::ema, c.metric = VqMetric::euclidean;
  c.n_codebooks = 6, c.codebooks_drawn = {1, 6};
  // A code without use is replaced after 91 steps (docs/decisions/random-start.md).
  c.dead_below = 0.4;
  return c;
}

}  // namespace

SystemFile lrac() {
  // The public recipe's defaults, without its loss on features of a speech model. It compares natural logarithms of mel
  // bands with weight 45. Here they have base 10, so the weight is ln 10 times as large.
  const Preset::Settings settings =
      with_encodec_training({{"loss.balanced", "false"},
                             {"loss.waveform", "1"},
                             {"loss.stft", "0"},
                             {"loss.mel", "103.6"},
                             {"loss.windows", "[64, 128, 256, 512, 1024, 2048]"},
                             {"loss.mels", "[10, 20, 40, 80, 160, 320]"},
                             {"loss.vq", "1"},
                             {"loss.vq_mean", "true"},
                             {"loss.adversarial", "1"},
                             {"loss.feature", "2"},
                             {"discriminator.stft_windows", "[128, 256, 512, 1024, 2048]"},
                             {"discriminator.stft_channels", "16"},
                             {"discriminator.stft_slope", "0.3"},
                             {"optimizer.ema_decay", "0"},
                             {"training.segment_length", "24000"}});
  return {.networks = {}, .presets = {{.name = "lrac-24k", .codec = at_24k(), .settings = settings}}};
}

}  // namespace nacre::systems
