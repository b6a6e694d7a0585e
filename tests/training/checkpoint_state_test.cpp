// What a checkpoint restores beside the parameters: parts of the state by their names.
#include "file_tools.h"
#include "nacre/files/safetensors.h"
#include "training/trainer_runs.h"
#include "training/trainer_state.h"

using namespace nacre;
using namespace nacre::test;

namespace {

std::map<std::string, std::vector<float>> balancer_of(TrainingStep& step) {
  std::map<std::string, std::vector<float>> found;
  for (const StateTensor& s : step.state()) {
    if (!s.name.starts_with("balancer.")) continue;
    found[s.name].resize(static_cast<size_t>(s.values.elements()));
    step.context().read<float>(s.values, found[s.name]);
  }
  return found;
}

}  // namespace

TEST_CASE("checkpoint: the balancer's averages are restored by the names of the terms", "[training]") {
  const TemporaryFolder folder;
  const RunConfig config = tiny();
  Context ctx({.threads = 1});
  TrainingStep step(ctx, config.codec, config.loss, config.optimizer, 2, 400, 1);
  const std::vector<float> audio = sine(2 * step.samples(), 300, 16000, 0.4);
  const std::vector<int32_t> lengths(2, static_cast<int32_t>(step.samples()));
  step.load(audio, lengths);
  for (int i = 0; i < 3; ++i) step.run();
  const std::map<std::string, std::vector<float>> trained = balancer_of(step);
  REQUIRE(trained.size() == 6);
  for (const auto& [name, values] : trained) {
    INFO(name);
    REQUIRE(values.size() == 1);
    CHECK(values[0] > 0);
  }

  const RunIdentity identity = identity_of(config, 0, ctx, Storage::float32, RunSchedule(config.training, 10, 0));
  const CheckpointContent content = content_of(step, ctx, identity, 3, 0);
  for (const CheckpointFile& file : content.files) {
    std::string bytes;
    file.write([&](std::span<const std::byte> part) {
      bytes.append(reinterpret_cast<const char*>(part.data()), part.size());
    });
    write_bytes(folder / file.name, bytes);
  }
  const Checkpoint checkpoint{.path = folder.path(), .step = 3, .manifest = content.manifest, .metric = {}};
  const auto restored = [&] {
    TrainingStep other(ctx, config.codec, config.loss, config.optimizer, 2, 400, 2);
    other.load(audio, lengths);
    other.run();  // its state is not zero any more
    CHECK(restore(other, checkpoint) == 3);
    return balancer_of(other);
  };
  CHECK(restored() == trained);

  // Writes the file again with other parts of the balancer's state.
  const auto rewrite = [&](const std::function<bool(const std::string&)>& keep, const std::vector<float>& whole) {
    const Safetensors file = Safetensors::read(folder / "optimizer.safetensors");
    std::vector<StoredTensor> tensors;
    for (const StoredTensor& t : file.tensors())
      if (keep(t.name)) tensors.push_back(t);
    if (!whole.empty())
      tensors.push_back(
          {"balancer", Dtype::f32, {static_cast<int64_t>(whole.size())}, std::as_bytes(std::span(whole))});
    write_safetensors(folder / "new.safetensors", tensors);
    fs::rename(folder / "new.safetensors", folder / "optimizer.safetensors");
  };
  // A term that the run did not have begins at zero; the others keep their values.
  rewrite(
      [](const std::string& name) { return name.find(".stft") == std::string::npos || !name.starts_with("balancer."); },
      {});
  std::map<std::string, std::vector<float>> expected = trained;
  expected["balancer.norms.stft"] = expected["balancer.ones.stft"] = {0};
  CHECK(restored() == expected);
  // Earlier versions wrote one tensor: the norms of waveform, STFT and mel, then the ones.
  rewrite([](const std::string& name) { return !name.starts_with("balancer"); }, {1, 2, 3, 4, 5, 6});
  CHECK(restored() == std::map<std::string, std::vector<float>>{{"balancer.norms.waveform", {1}},
                                                                {"balancer.norms.stft", {2}},
                                                                {"balancer.norms.mel", {3}},
                                                                {"balancer.ones.waveform", {4}},
                                                                {"balancer.ones.stft", {5}},
                                                                {"balancer.ones.mel", {6}}});
}

TEST_CASE("checkpoint: a run with discriminators goes on with equal bits", "[training]") {
  const TemporaryFolder folder;
  RunConfig config = tiny();
  config.loss.adversarial = 1;
  config.discriminator = {.periods = {2, 3}, .period_channels = {4, 6}, .windows = {64}, .window_channels = 4};
  Context ctx({.threads = 1});
  const auto made = [&](uint64_t seed) {
    return std::make_unique<TrainingStep>(ctx, config.codec, config.loss, config.optimizer, 2, 400, seed,
                                          Storage::float32, nullptr, config.discriminator);
  };
  const auto run = [](TrainingStep& step, int steps) {
    const std::vector<int32_t> lengths(2, static_cast<int32_t>(step.samples()));
    for (int i = 0; i < steps; ++i) {
      step.load(sine(2 * step.samples(), 300, 16000, 0.4), lengths);
      step.run();
    }
  };
  const auto all_of = [&](TrainingStep& step) {
    std::map<std::string, std::vector<float>> all;
    const auto add = [&](const std::string& name, View<const float> v) {
      all[name].resize(static_cast<size_t>(v.elements()));
      ctx.read<float>(v, all[name]);
    };
    add("codec", step.parameters().values());
    add("discriminators", step.discriminators()->values());
    for (const StateTensor& s : step.state()) add(s.name, s.values);
    for (const StateTensor& s : step.discriminator_state()) add(s.name, s.values);
    return all;
  };
  const auto step = made(1);
  run(*step, 3);
  const RunIdentity identity = identity_of(config, 0, ctx, Storage::float32, RunSchedule(config.training, 10, 0));
  const CheckpointContent content = content_of(*step, ctx, identity, 3, 0);
  REQUIRE(content.files.size() == 3);
  for (const CheckpointFile& file : content.files) {
    std::string bytes;
    file.write([&](std::span<const std::byte> part) {
      bytes.append(reinterpret_cast<const char*>(part.data()), part.size());
    });
    write_bytes(folder / file.name, bytes);
  }
  const Checkpoint checkpoint{.path = folder.path(), .step = 3, .manifest = content.manifest, .metric = {}};
  const auto resumed = made(2);
  run(*resumed, 1);
  CHECK(all_of(*resumed) != all_of(*step));
  restore(*resumed, checkpoint);
  CHECK(all_of(*resumed) == all_of(*step));
  CHECK(resumed->discriminator_scalars().step == 3);
  run(*step, 2), run(*resumed, 2);
  CHECK(all_of(*resumed) == all_of(*step));

  // The names are those of DAC's checkpoints.
  const Safetensors weights = Safetensors::read(folder / "discriminator.safetensors");
  for (const char* name : {"discriminators.0.convs.1.0.weight_v", "discriminators.1.conv_post.bias",
                           "discriminators.2.band_convs.4.3.0.weight_g", "discriminators.2.conv_post.weight_v"})
    CHECK(weights.find(name) != nullptr);

  // A checkpoint of a run without discriminators leaves those of this run as they are.
  fs::remove(folder / "discriminator.safetensors");
  const auto later = made(2);
  const std::vector<float> start = all_of(*later)["discriminators"];
  restore(*later, checkpoint);
  CHECK(all_of(*later)["discriminators"] == start);
  CHECK(later->scalars().step == 3);
}

TEST_CASE("checkpoint: discriminators are restored into the same networks only", "[training]") {
  const TemporaryFolder folder;
  const Checkpoint checkpoint{.path = folder.path(), .step = 1, .manifest = "", .metric = {}};
  const DiscriminatorConfig then{.periods = {2, 3}, .windows = {64, 128}};
  CHECK_FALSE(has_discriminators(checkpoint, then, then));
  write_bytes(folder / "discriminator.safetensors", "x");
  CHECK(has_discriminators(checkpoint, then, then));
  DiscriminatorConfig now = then;
  now.learning_rate = 1, now.clip = 0, now.loss = AdversarialKind::hinge;
  CHECK(has_discriminators(checkpoint, then, now));
  now.windows = {128, 64};
  CHECK_FALSE(has_discriminators(checkpoint, then, now));
  now = then, now.periods = {2};
  CHECK_FALSE(has_discriminators(checkpoint, then, now));
  now = then, now.window_channels = 8;
  CHECK_FALSE(has_discriminators(checkpoint, then, now));
  now = then, now.stft_windows = {64};
  CHECK_FALSE(has_discriminators(checkpoint, then, now));
  now = then, now.stft_channels = 8;
  CHECK_FALSE(has_discriminators(checkpoint, then, now));
  now = then, now.stft_slope = 0.3;
  CHECK_FALSE(has_discriminators(checkpoint, then, now));
  now = then, now.level = false;
  CHECK_FALSE(has_discriminators(checkpoint, then, now));
  now = then, now.window_full_layers = 1;
  CHECK_FALSE(has_discriminators(checkpoint, then, now));
  now = then, now.scales = {1, 2};
  CHECK_FALSE(has_discriminators(checkpoint, then, now));
  now = then, now.scale_slope = 0.1;
  CHECK_FALSE(has_discriminators(checkpoint, then, now));
  now = then, now.scale_norm = Norm::none;
  CHECK_FALSE(has_discriminators(checkpoint, then, now));
  now = then, now.residual_windows = {256};
  CHECK_FALSE(has_discriminators(checkpoint, then, now));
  now = then, now.residual_channels = 8;
  CHECK_FALSE(has_discriminators(checkpoint, then, now));
  now = then, now.residual_slope = 0.1;
  CHECK_FALSE(has_discriminators(checkpoint, then, now));
  now = then, now.residual_norm = Norm::layer;
  CHECK_FALSE(has_discriminators(checkpoint, then, now));
}

TEST_CASE("checkpoint: settings of discriminators forbid a resume only if there are any", "[training]") {
  RunIdentity then;
  then.config = tiny();
  RunIdentity now = then;
  now.config.discriminator.windows = {64};
  now.config.loss.feature = 3, now.config.loss.adversarial_start = 5, now.config.loss.feature_relative = true;
  CHECK(what_forbids_resume(then, now).empty());
  now.config.loss.adversarial = 1;
  CHECK(what_forbids_resume(then, now).size() == 5);
  then.config.loss.adversarial = 1;
  CHECK(what_forbids_resume(then, now).size() == 4);
}
