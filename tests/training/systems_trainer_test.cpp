// Every preset trains as its settings say, at a fraction of its size, and a run that was stopped ends with equal bits.
#include "nacre/systems/system.h"
#include "training/trainer_runs.h"

using namespace nacre;
using namespace nacre::test;

namespace {

/// A preset's layers, losses and discriminators in small: kinds and settings stay, and sizes shrink.
RunConfig narrow(const std::string& preset) {
  RunConfig c = RunConfig::named(preset);
  CodecConfig& codec = c.codec;
  codec.sample_rate = 16000;
  codec.encoder_dim = 4, codec.decoder_dim = 16, codec.latent_dim = 8;
  codec.encoder_rates = codec.decoder_rates = {2, 2};
  if (!codec.encoder_channels.empty()) codec.encoder_channels = {4, 6, 8};
  if (!codec.decoder_channels.empty()) codec.decoder_channels = {8, 6, 4};
  codec.groups = std::min<int64_t>(codec.groups, 2);
  codec.n_codebooks = 3, codec.codebook_size = 16, codec.codebook_dim = 4;
  if (codec.two_rates()) codec.long_codebooks = 1, codec.long_frames = 2;
  if (!codec.codebooks_drawn.empty()) codec.codebooks_drawn = {1, 3};
  if (codec.segmented()) codec.segment = 400, codec.segment_stride = 360;
  c.loss.windows = {16, 64}, c.loss.mels = {5, 10}, c.loss.mel_fmin = 0;
  const auto smaller = [](std::vector<int64_t>& sizes, const std::vector<int64_t>& to) {
    if (!sizes.empty()) sizes = to;
  };
  smaller(c.discriminator.periods, {2, 3});
  c.discriminator.period_channels = {2, 3};
  smaller(c.discriminator.windows, {64});
  smaller(c.discriminator.stft_windows, {64});
  c.discriminator.window_channels = c.discriminator.stft_channels = 2;
  c.training.batch_size = 2, c.training.segment_length = 400, c.training.num_epochs = 3;
  c.training.codebook_start_rows = std::min<int64_t>(c.training.codebook_start_rows, 300);
  c.training.codebook_average_rows = std::min<int64_t>(c.training.codebook_average_rows, 300);
  // So that max_steps may end a run early without changing a step.
  if (c.training.schedule == Schedule::cosine) c.training.schedule = Schedule::constant;
  return c;
}

}  // namespace

TEST_CASE("systems: a run of any preset that is stopped and resumed ends with the bits of one that is not",
          "[systems][trainer]") {
  const TemporaryFolder folder;
  write_sounds(folder);
  for (const std::string& name : CodecConfig::names()) {
    CAPTURE(name);
    const RunConfig config = narrow(name);
    Trainer whole(folder, name + "-whole", config), parts(folder, name + "-parts", config);
    const Outcome end = whole.run_to(5);
    CHECK(parts.run_to(2).result.step == 2);
    const Outcome rest = parts.run_to(5);
    CHECK(contains(rest.text, "resumed from"));
    check_same_state(end.result.checkpoint, rest.result.checkpoint);
    CHECK(logged_losses(parts.options.run) == logged_losses(whole.options.run));
  }
}
