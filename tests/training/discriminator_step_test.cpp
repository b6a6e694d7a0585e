// The training step with discriminators: what reaches the codec, what reaches the discriminators, and when.
#include <array>
#include <cmath>
#include <random>

#include "harness.h"
#include "nacre/training/training_step.h"

using namespace nacre;
using namespace nacre::test;

namespace {

constexpr int64_t batch = 3, samples = 240;

CodecConfig tiny() {
  CodecConfig c;
  c.sample_rate = 8000;
  c.encoder_dim = 4, c.encoder_rates = {2, 3};
  c.decoder_dim = 16, c.decoder_rates = {3, 2};
  c.latent_dim = 8, c.dilations = {1, 3};
  c.n_codebooks = 2, c.codebook_size = 16, c.codebook_dim = 4;
  return c;
}
LossConfig losses(bool balanced, double adversarial, double feature) {
  LossConfig l;
  l.windows = {16, 64}, l.mels = {3, 8};
  l.balanced = balanced, l.adversarial = adversarial, l.feature = feature;
  return l;
}
DiscriminatorConfig judges() {
  return {.periods = {2, 3}, .period_channels = {4, 6, 5}, .windows = {64, 32}, .window_channels = 4};
}

std::unique_ptr<TrainingStep> step_of(Context& ctx, const LossConfig& loss, Storage storage = Storage::float32) {
  return std::make_unique<TrainingStep>(ctx, tiny(), loss, OptimizerConfig{.learning_rate = 1e-3}, batch, samples, 3,
                                        storage, nullptr, judges());
}
void run(TrainingStep& step, int number) {
  std::mt19937_64 rng(17 + static_cast<uint64_t>(number));
  std::normal_distribution<double> noise(0, 0.1);
  std::vector<float> audio(static_cast<size_t>(batch * samples));
  for (size_t k = 0; k < audio.size(); ++k)
    audio[k] =
        static_cast<float>(0.5 * std::sin(0.07 * static_cast<double>(k % samples) * (1 + 0.2 * number)) + noise(rng));
  step.load(audio, std::vector<int32_t>{samples, samples - 37, samples});
  step.run();
}
std::vector<float> values_of(TrainingStep& step, View<const float> v) {
  std::vector<float> values(static_cast<size_t>(v.elements()));
  step.context().read<float>(v, values);
  return values;
}
std::vector<float> codec_of(TrainingStep& step) { return values_of(step, step.parameters().values()); }
std::vector<float> judges_of(TrainingStep& step) { return values_of(step, step.discriminators()->values()); }

}  // namespace

TEST_CASE("discriminators in training: closed gates keep them from the codec, not from training", "[step]") {
  for (const Device device : devices()) {
    CAPTURE(str(device));
    Context ctx({.device = device, .threads = 2});
    const auto plain = step_of(ctx, losses(false, 0, 1)), with = step_of(ctx, losses(false, 2, 1));
    CHECK(plain->discriminators() == nullptr);
    CHECK(plain->metrics().discriminators.empty());
    CHECK_THROWS_AS(plain->discriminator_scalars(), Error);
    REQUIRE(with->discriminators() != nullptr);
    with->set_adversarial(false);
    const std::vector<float> before = judges_of(*with);
    for (int i = 0; i < 2; ++i) run(*plain, i), run(*with, i);
    // A branch whose gate is closed adds nothing at all.
    CHECK(codec_of(*plain) == codec_of(*with));
    CHECK(judges_of(*with) != before);
    const StepMetrics closed = with->metrics();
    CHECK(closed.term("adversarial").share == 0);
    CHECK(closed.term("adversarial").value > 0);
    CHECK(closed.term("feature").value > 0);
    CHECK(closed.loss() == plain->metrics().loss());
    CHECK(with->discriminator_scalars().step == 2);

    with->set_adversarial(true);
    run(*plain, 2), run(*with, 2);
    CHECK(codec_of(*plain) != codec_of(*with));
    CHECK(with->metrics().term("adversarial").share > 0);
  }
}

TEST_CASE("discriminators in training: the codec's losses do not train them", "[step]") {
  for (const Device device : devices()) {
    CAPTURE(str(device));
    Context ctx({.device = device, .threads = 2});
    // In the first step the codec's output is the same, so only the discriminators' own loss could differ.
    const auto light = step_of(ctx, losses(false, 1, 0)), heavy = step_of(ctx, losses(true, 50, 7));
    run(*light, 0), run(*heavy, 0);
    CHECK(judges_of(*light) == judges_of(*heavy));
    CHECK(codec_of(*light) != codec_of(*heavy));
    CHECK(light->metrics().terms.size() == 4);
    CHECK(heavy->metrics().terms.size() == 5);
  }
}

TEST_CASE("discriminators in training: joint and separate branches give the same values, and shares that add up",
          "[step]") {
  for (const Device device : devices()) {
    CAPTURE(str(device));
    Context ctx({.device = device, .threads = 2});
    const auto joint = step_of(ctx, losses(false, 1, 2)), apart = step_of(ctx, losses(true, 1, 2));
    run(*joint, 0), run(*apart, 0);
    const StepMetrics a = joint->metrics(), b = apart->metrics();
    for (const char* name : {"waveform", "stft", "mel", "adversarial", "feature"})
      CHECK(a.term(name).value == b.term(name).value);
    CHECK(std::isnan(a.term("feature").share));
    double of_joint = 0, of_apart = 0;
    for (const TermMetrics& t : a.terms)
      if (!std::isnan(t.share)) of_joint += static_cast<double>(t.share);
    for (const TermMetrics& t : b.terms) of_apart += static_cast<double>(t.share);
    CHECK(std::fabs(of_joint - 1) < 1e-6);
    CHECK(std::fabs(of_apart - 1) < 1e-6);
    // The balancer gives weights 1, 1, 1, 1, 2 in its first step exactly.
    CHECK(std::fabs(static_cast<double>(b.term("feature").share) - 2.0 / 6) < 1e-5);
    CHECK(std::fabs(static_cast<double>(b.term("adversarial").share) - 1.0 / 6) < 1e-5);
    // Losses against discriminators are not part of the loss that is shown.
    CHECK(a.loss() == a.term("waveform").value + a.term("stft").value + a.term("mel").value + a.commitment);

    REQUIRE(a.discriminators.size() == 4);
    const std::array<const char*, 4> names{"period_2", "period_3", "window_64", "window_32"};
    for (size_t i = 0; i < 4; ++i) {
      const DiscriminatorMetrics& d = a.discriminators[i];
      CHECK(d.name == names[i]);
      // Least squares at the start: the logits are near 0, so real audio is off by about 1.
      CHECK(d.loss > 0.1f);
      CHECK(d.loss < 3);
      CHECK((d.real >= 0 && d.real <= 1 && d.fake >= 0 && d.fake <= 1));
    }
    CHECK(a.discriminator_norm > 0);
  }
}

TEST_CASE("discriminators in training: they learn to tell a codec that stands still", "[step]") {
  Context ctx({.threads = 2});
  LossConfig loss = losses(false, 1, 0);
  TrainingStep step(ctx, tiny(), loss, {.learning_rate = 1e-9}, batch, samples, 3, Storage::float32, nullptr, judges());
  step.set_discriminator_learning_rate(3e-3);
  const auto total = [&] {
    float sum = 0;
    for (const DiscriminatorMetrics& d : step.metrics().discriminators) sum += d.loss;
    return sum;
  };
  run(step, 0);
  const float first = total();
  for (int i = 0; i < 60; ++i) run(step, i % 4);
  CHECK(total() < 0.5f * first);
  for (const DiscriminatorMetrics& d : step.metrics().discriminators) {
    CAPTURE(d.name);
    CHECK(d.real + d.fake > 1.2f);
  }
}

TEST_CASE("discriminators in training: a step that is abandoned changes nothing, and equal runs have equal bits",
          "[step]") {
  Context one({.threads = 1}), two({.threads = 2});
  const auto a = step_of(one, losses(true, 1, 1)), b = step_of(two, losses(true, 1, 1));
  for (int i = 0; i < 2; ++i) run(*a, i), run(*b, i);
  CHECK(codec_of(*a) == codec_of(*b));
  CHECK(judges_of(*a) == judges_of(*b));
  const std::vector<float> before = codec_of(*a), judges_before = judges_of(*a);
  int calls = 0;
  CHECK(!a->run([&] { return ++calls > 5; }));
  CHECK(codec_of(*a) == before);
  CHECK(judges_of(*a) == judges_before);
  // Past the discriminators' update a step always completes.
  CHECK(a->run([&, updated = false]() mutable {
    updated = updated || judges_of(*a) != judges_before;
    return updated;
  }));
  CHECK(codec_of(*a) != before);
}

TEST_CASE("discriminators in training: bf16 and CUDA's captured graph", "[step]") {
  for (const Device device : devices())
    for (const Storage storage : {Storage::float32, Storage::bfloat16}) {
      CAPTURE(str(device), storage == Storage::bfloat16);
      Context ctx({.device = device, .threads = 2});
      const auto captured = step_of(ctx, losses(false, 1, 2), storage),
                 eager = step_of(ctx, losses(false, 1, 2), storage);
      eager->set_capture(false);
      for (int i = 0; i < 3; ++i) run(*captured, i), run(*eager, i);
      CHECK(codec_of(*captured) == codec_of(*eager));
      CHECK(judges_of(*captured) == judges_of(*eager));
      for (const float v : codec_of(*captured)) REQUIRE(std::isfinite(v));
      for (const float v : judges_of(*captured)) REQUIRE(std::isfinite(v));
    }
}

TEST_CASE("discriminators in training: a step without them trains the codec alone, captured or not", "[step]") {
  for (const Device device : devices()) {
    CAPTURE(str(device));
    Context ctx({.device = device, .threads = 2});
    const auto captured = step_of(ctx, losses(false, 1, 2)), eager = step_of(ctx, losses(false, 1, 2));
    eager->set_capture(false);
    // On CUDA: without and with discriminators kernel by kernel, then both captured and replayed.
    int trained = 0;
    for (const bool with : {false, true, false, true}) {
      const std::vector<float> judges_before = judges_of(*captured), codec_before = codec_of(*captured);
      for (TrainingStep* step : {captured.get(), eager.get()}) {
        step->set_discriminators(with);
        run(*step, trained);
      }
      trained += with ? 1 : 0;
      CHECK((judges_of(*captured) == judges_before) == !with);
      CHECK(codec_of(*captured) != codec_before);
      CHECK(codec_of(*captured) == codec_of(*eager));
      CHECK(judges_of(*captured) == judges_of(*eager));
      CHECK(captured->metrics().discriminators.size() == (with ? 4 : 0));
      CHECK(captured->discriminator_scalars().step == trained);
    }
    // A run that is given up leaves everything as it was, also without discriminators.
    captured->set_discriminators(false);
    const std::vector<float> codec_before = codec_of(*captured);
    CHECK_FALSE(captured->run([] { return true; }));
    CHECK(codec_of(*captured) == codec_before);
  }
}

TEST_CASE("discriminators in training: scales, residual units and all bands, in float and bf16", "[step]") {
  DiscriminatorConfig all{.periods = {},
                          .windows = {32},
                          .window_channels = 4,
                          .window_full_layers = 2,
                          .residual_windows = {128},
                          .residual_channels = 2,
                          .residual_norm = Norm::layer};
  for (const Device device : devices())
    for (const Storage storage : {Storage::float32, Storage::bfloat16}) {
      CAPTURE(str(device), storage == Storage::bfloat16);
      // Layers of the published width are slow when emulated.
      if (device == Device{})
        all.scales = {2};
      else
        all.scales.clear();
      Context ctx({.device = device, .threads = 2});
      const auto made = [&] {
        return std::make_unique<TrainingStep>(ctx, tiny(), losses(false, 1, 2), OptimizerConfig{.learning_rate = 1e-3},
                                              batch, samples, 3, storage, nullptr, all);
      };
      const auto captured = made(), eager = made();
      eager->set_capture(false);
      const std::vector<float> before = judges_of(*captured);
      for (int i = 0; i < 3; ++i) run(*captured, i), run(*eager, i);
      CHECK(codec_of(*captured) == codec_of(*eager));
      CHECK(judges_of(*captured) == judges_of(*eager));
      CHECK(judges_of(*captured) != before);
      const StepMetrics metrics = captured->metrics();
      std::vector<std::string> names{"window_32", "residual_128"};
      if (!all.scales.empty()) names.insert(names.begin() + 1, "scale_2");
      REQUIRE(metrics.discriminators.size() == names.size());
      for (size_t i = 0; i < names.size(); ++i) {
        CHECK(metrics.discriminators[i].name == names[i]);
        CHECK(std::isfinite(metrics.discriminators[i].loss));
      }
      CHECK(metrics.term("adversarial").share > 0);
    }
}
