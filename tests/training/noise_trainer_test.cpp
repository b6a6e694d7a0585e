// Runs with noise in their inputs: what the steps get, resumed with equal bits, and refused if the noise differs.
#include <cmath>

#include "nacre/codec/scaled_start.h"
#include "nacre/data/noise.h"
#include "training/run_by_hand.h"

using namespace nacre;
using namespace nacre::test;

namespace {

RunConfig tiny_noisy(QuantizerKind quantizer = QuantizerKind::ema) {
  RunConfig config = tiny(quantizer);
  config.training.clean_target = 0.5;
  config.training.noise_share = 0.75;
  config.training.noise_gain = {-20, 3};
  return config;
}
/// A codec that is told which targets are clean.
RunConfig tiny_told() {
  RunConfig config = tiny_noisy();
  CodecConfig& codec = config.codec;
  codec = CodecConfig::named("soundstream-24k");
  codec.sample_rate = 16000;
  codec.encoder_dim = 4, codec.decoder_dim = 16, codec.latent_dim = 8;
  codec.encoder_rates = codec.decoder_rates = {2, 2};
  codec.n_codebooks = 3, codec.codebook_size = 16, codec.quantizer_dropout = 0;
  codec.denoise = Denoise::encoder;
  config.training.start = Start::scaled;
  return config;
}
/// Two files, one of them shorter than tiny()'s segment of 400 samples.
void write_noise(const TemporaryFolder& folder) {
  const int64_t lengths[] = {1500, 130};
  for (uint64_t i = 0; i < 2; ++i) {
    const Philox noise{21, i};
    std::vector<float> x;
    for (int64_t t = 0; t < lengths[i]; ++t)
      x.push_back(static_cast<float>(noise.uniform(static_cast<uint64_t>(t)) - 0.5));
    write_wav(folder / ("noise/" + std::to_string(i) + ".wav"), {.samples = x, .sample_rate = 16000, .channels = 1});
  }
}
void write_both(const TemporaryFolder& folder) { write_sounds(folder), write_noise(folder); }

}  // namespace

TEST_CASE("trainer with noise: a run that is stopped and resumed ends with the bits of one that is not", "[noise]") {
  const QuantizerKind kind = GENERATE(QuantizerKind::ema, QuantizerKind::factorised);
  const TemporaryFolder folder;
  write_both(folder);
  RunConfig config = tiny_noisy(kind);
  if (kind == QuantizerKind::factorised) {
    config.loss.adversarial = 1;
    config.discriminator = {.periods = {2}, .period_channels = {4, 5}, .windows = {}};
  }
  Trainer whole(folder, "whole", config), parts(folder, "parts", config), plain(folder, "plain", config);
  for (Trainer* t : {&whole, &parts}) t->options.noise_dir = folder / "noise";
  const Outcome end = whole.run_to(12);
  CHECK(contains(end.text, "noise: 2 files"));
  CHECK(contains(end.text, "in 75 % of the inputs, -20 to 3 dB; 50 % of the targets are clean"));
  CHECK(contains(end.text, "warning: training.clean_target is 0.5, and the codec is not told"));
  CHECK(parts.run_to(5).result.step == 5);
  parts.options.context.threads = 2;
  const Outcome rest = parts.run_to(12);
  CHECK(contains(rest.text, "resumed from"));
  check_same_state(end.result.checkpoint, rest.result.checkpoint);
  CHECK(logged_losses(parts.options.run) == logged_losses(whole.options.run));
  // Noise changes what is learnt.
  const Outcome without = plain.run_to(12);
  CHECK_FALSE(contains(without.text, "noise"));
  CHECK(logged_losses(plain.options.run) != logged_losses(whole.options.run));
}

TEST_CASE("trainer with noise: the steps and the codebooks' start get the mixtures, and the losses the targets",
          "[noise]") {
  const TemporaryFolder folder;
  write_both(folder);
  const bool told = GENERATE(false, true);  // which targets are clean
  const RunConfig config = told ? tiny_told() : tiny_noisy();
  Trainer t(folder, "run", config);
  t.options.noise_dir = folder / "noise";
  const Outcome run = t.run_to(6);
  CHECK(contains(run.text, "warning: training.clean_target") == !told);
  const TrainResult& end = run.result;

  Context ctx({.threads = 1});
  const Dataset data(folder / "data", dataset_options(config)), noise(folder / "noise", noise_options(config));
  CHECK(noise.held_out().empty());
  TrainingStep step(ctx, config.codec, config.loss, config.optimizer, 2, 400, config.training.seed, Storage::float32,
                    nullptr, {}, true);
  const CropSampler crops(data, 400, 2, config.training.seed);
  const NoiseMixer mixer(noise, 400, 2, config.training.seed,
                         {.share = 0.75, .clean_target = 0.5, .lowest_gain = -20, .highest_gain = 3});
  Batch batch;
  const auto load = [&](int64_t number) {
    fill_batch(data, crops, number, batch, &mixer);
    std::vector<int32_t> lengths;
    for (const Crop& c : batch.crops) lengths.push_back(static_cast<int32_t>(c.length));
    step.load(batch.samples, lengths, {}, batch.targets);
    if (told) step.set_labels(batch.clean_target);
  };
  if (told)
    scaled_start(ctx, step.parameters());
  else
    transform_start(ctx, step.parameters(), config.codec);
  step.reset_average();
  int64_t before = 0;
  step.start_codebooks([&] { load(--before); }, config.training.codebook_start_rows);
  step.set_learning_rate(config.optimizer.learning_rate);
  for (int64_t s = 0; s < 6; ++s) load(s), step.run();
  const Weights trained = trained_weights(end.checkpoint);
  step.parameters().each_tensor(ctx,
                                [&](const std::string& name, const std::vector<int64_t>&, std::span<const float> v) {
                                  INFO(name);
                                  REQUIRE(trained.count(name) == 1);
                                  CHECK((trained.at(name) == std::vector<float>(v.begin(), v.end())));
                                });
}

TEST_CASE("trainer with noise: settings with which a codec does not learn to denoise on request are told", "[noise]") {
  const TemporaryFolder folder;
  write_both(folder);
  RunConfig config = tiny_told();
  Trainer quiet(folder, "quiet", config);
  CHECK(contains(quiet.run_to(1).text, "warning: codec.denoise is set, and without --noise-dir"));
  config.training.clean_target = 1;
  Trainer clean(folder, "clean", config);
  clean.options.noise_dir = folder / "noise";
  CHECK(contains(clean.run_to(1).text, "warning: training.clean_target is 1, and the codec is to denoise on request"));
}

TEST_CASE("trainer with noise: other noise, no noise or other shares are refused by name", "[noise]") {
  const TemporaryFolder folder;
  write_both(folder);
  Trainer t(folder, "run", tiny_noisy());
  t.options.noise_dir = folder / "noise";
  t.run_to(2);
  std::string part;
  SECTION("no noise") {
    t.options.noise_dir.clear();
    part = "noise: a folder, now none (--noise-dir)";
  }
  SECTION("another file") {
    write_sine(folder / "noise/new.wav", 900);
    part = "noise: the list of noise files changed";
  }
  SECTION("another gain") {
    t.options.config.training.noise_gain = {-20, 0};
    part = "training.noise_gain: [-20,3] -> [-20,0]";
  }
  SECTION("other targets") {
    t.options.config.training.clean_target = 1;
    part = "training.clean_target: 0.5 -> 1.0";
  }
  std::string text;
  CHECK(t.error_of_run(text) == ErrorKind::usage);
  CHECK(contains(text, part));
  t.options.allow_change = true;
  CHECK(t.run_to(3).result.step == 3);
}

TEST_CASE("trainer with noise: a run without noise does not depend on its keys, and noise can join with a word",
          "[noise]") {
  const TemporaryFolder folder;
  write_both(folder);
  Trainer t(folder, "run", tiny()), whole(folder, "whole", tiny());
  t.run_to(2);
  t.options.config = tiny_noisy();
  check_same_state(t.run_to(4).result.checkpoint, whole.run_to(4).result.checkpoint);
  t.options.noise_dir = folder / "noise";
  t.options.config.training.max_steps = 5;
  std::string text;
  CHECK(t.error_of_run(text) == ErrorKind::usage);
  CHECK(contains(text, "noise: none, now a folder (--noise-dir)"));
}

TEST_CASE("trainer with noise: folders that cannot be used are refused before the run's folder is made", "[noise]") {
  const TemporaryFolder folder;
  write_both(folder);
  fs::create_directories(folder / "empty");
  Trainer t(folder, "run", tiny());
  std::string text;
  t.options.noise_dir = folder.path() + "/nothing";
  CHECK(t.error_of_run(text) == ErrorKind::io);
  CHECK(contains(text, "nothing: no such folder"));
  CHECK_FALSE(fs::exists(folder.path() + "/run"));
  t.options.noise_dir = folder.path() + "/empty";
  CHECK(t.error_of_run(text) == ErrorKind::input);
  CHECK(contains(text, "empty: no audio files in this folder"));
  t.options.noise_dir = folder.path() + "/noise";
  for (const std::vector<int64_t>& bad : std::vector<std::vector<int64_t>>{{}, {3}, {0, -30}, {-30, 0, 1}, {-121, 0}}) {
    t.options.config.training.noise_gain = bad;
    CHECK(t.error_of_run(text) == ErrorKind::usage);
    CHECK(contains(text, "training.noise_gain"));
  }
}
