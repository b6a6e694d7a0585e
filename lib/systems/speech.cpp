// Presets for speech on DAC's topology. Their codes are vectors of the latent space. The aim is to match the waveform
// (SNR) and not only the spectrum, so frames are short and codes are many.
#include "systems/list.h"

namespace nacre::systems {
namespace {

/// What both have in common: 400 frames per second.
CodecConfig short_frames() {
  CodecConfig c;
  c.network = "dac";
  c.encoder_rates = {2, 4, 5}, c.decoder_rates = {5, 4, 2};
  c.latent_dim = 64;
  c.quantizer = QuantizerKind::ema, c.metric = VqMetric::euclidean;
  c.beam = 8;
  c.ema_rows = 320000;
  return c;
}

/// 16 x 10 bits at 400 frames per second = 64 kbit/s, four bits per sample.
CodecConfig large() {
  CodecConfig c = short_frames();
  c.encoder_dim = 32, c.decoder_dim = 512;
  c.n_codebooks = 16;
  return c;
}

/// Trains in minutes on two cores: 1.29 M parameters, 8 x 10 bits at 400 frames per second = 32 kbit/s.
CodecConfig small() {
  CodecConfig c = short_frames();
  c.encoder_dim = 16, c.decoder_dim = 256;
  c.n_codebooks = 8;
  return c;
}

}  // namespace

SystemFile speech() {
  const Preset::Settings settings{
      // Small batches give noisy gradients, which disturb the filter bank at higher learning rates
      // (docs/decisions/learning-rate.md).
      {"optimizer.learning_rate", "1e-4"},
      {"loss.orthogonal", "true"},
      // Codebooks improve with the number of frames that they see. Without backward passes, frames are cheap.
      {"training.codebook_start_rows", "60000"},
      {"training.codebook_average_rows", "320000"},
  };
  Preset::Settings settings_of_small = settings;
  settings_of_small.emplace_back("training.batch_size", "8");
  settings_of_small.emplace_back("training.segment_length", "4000");
  // For loss.adversarial: a quarter of the published widths, so that two cores can train them, too.
  settings_of_small.emplace_back("discriminator.period_channels", "[8, 32, 128, 256, 256]");
  settings_of_small.emplace_back("discriminator.window_channels", "8");
  return {.networks = {},
          .presets = {{.name = "speech-16k", .codec = large(), .settings = settings},
                      {.name = "speech-16k-small", .codec = small(), .settings = settings_of_small}}};
}

}  // namespace nacre::systems
