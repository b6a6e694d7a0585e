// A training step whose output is compared with a target of its own. stereo_step_test.cpp checks its gradients.
#include <algorithm>
#include <cmath>

#include "harness.h"
#include "nacre/training/training_step.h"

using namespace nacre;
using namespace nacre::test;

namespace {

constexpr int64_t batch = 3, samples = 240;
const std::vector<int32_t> lengths{240, 203, 240};

CodecConfig tiny() {
  CodecConfig c;
  c.sample_rate = 8000;
  c.encoder_dim = 4, c.encoder_rates = {2, 3};
  c.decoder_dim = 16, c.decoder_rates = {3, 2};
  c.latent_dim = 8, c.dilations = {1, 3};
  c.n_codebooks = 2, c.codebook_size = 16, c.codebook_dim = 4;
  return c;
}
LossConfig losses(bool adversarial) {
  LossConfig l;
  l.windows = {16, 64}, l.mels = {3, 8};
  l.adversarial = adversarial ? 1 : 0, l.feature = 2;
  return l;
}
std::unique_ptr<TrainingStep> step_of(Context& ctx, bool adversarial, bool own_target) {
  const DiscriminatorConfig judges{
      .periods = {2, 3}, .period_channels = {4, 6, 5}, .windows = {64}, .window_channels = 4};
  return std::make_unique<TrainingStep>(ctx, tiny(), losses(adversarial), OptimizerConfig{.learning_rate = 1e-3}, batch,
                                        samples, 3, Storage::float32, nullptr, judges, own_target);
}
/// Zeros behind the lengths.
std::vector<float> audio_of(uint64_t number) {
  std::mt19937_64 rng(number);
  std::uniform_real_distribution<float> draw(-0.5f, 0.5f);
  std::vector<float> audio;
  for (const int32_t n : lengths)
    for (int64_t t = 0; t < samples; ++t) audio.push_back(t < n ? draw(rng) : 0.0f);
  return audio;
}
std::vector<float> state_of(TrainingStep& step) {
  std::vector<float> all;
  for (Parameters* p : {&step.parameters(), step.discriminators()}) {
    if (p == nullptr) continue;
    std::vector<float> v(static_cast<size_t>(p->values().elements()));
    step.context().read<float>(p->values(), v);
    all.insert(all.end(), v.begin(), v.end());
  }
  return all;
}
std::vector<int32_t> codes_of(TrainingStep& step) {
  std::vector<int32_t> codes(static_cast<size_t>(step.codes().elements()));
  step.context().read<int32_t>(step.codes(), codes);
  return codes;
}

}  // namespace

TEST_CASE("own target: a target that is the input gives the bits of a step without one", "[step]") {
  for (const Device device : devices())
    for (const bool adversarial : {false, true}) {
      CAPTURE(str(device), adversarial);
      Context ctx({.device = device, .threads = 2});
      const auto plain = step_of(ctx, adversarial, false), given = step_of(ctx, adversarial, true),
                 left_out = step_of(ctx, adversarial, true);
      for (uint64_t i = 0; i < 4; ++i) {
        const std::vector<float> audio = audio_of(i);
        plain->load(audio, lengths), given->load(audio, lengths, {}, audio), left_out->load(audio, lengths);
        for (TrainingStep* step : {plain.get(), given.get(), left_out.get()}) step->run();
      }
      CHECK(state_of(*plain) == state_of(*given));
      CHECK(state_of(*plain) == state_of(*left_out));
      // One buffer more, and only with a target: 4 bytes per sample, at most 256 with alignment.
      const size_t audio_bytes = static_cast<size_t>(batch * samples) * sizeof(float);
      CHECK(given->unshared_bytes() >= plain->unshared_bytes() + audio_bytes);
      CHECK(given->unshared_bytes() <= plain->unshared_bytes() + audio_bytes + 256);
    }
}

TEST_CASE("own target: the codec hears the input, and losses and discriminators see the target", "[step]") {
  for (const Device device : devices()) {
    CAPTURE(str(device));
    Context ctx({.device = device, .threads = 2});
    const std::vector<float> noisy = audio_of(1), clean = audio_of(2), other = audio_of(3);
    const auto measured = [&](const std::vector<float>& input, const std::vector<float>& target) {
      const auto step = step_of(ctx, true, true);
      step->load(input, lengths, {}, target);
      step->run();
      return std::pair{codes_of(*step), step->metrics()};
    };
    const auto [codes, m] = measured(noisy, clean);
    const auto [same_codes, against_other] = measured(noisy, other);
    const auto [other_codes, of_other] = measured(other, clean);
    CHECK(codes == same_codes);
    CHECK(codes != other_codes);
    CHECK(m.commitment == against_other.commitment);
    CHECK(m.commitment != of_other.commitment);
    // The feature loss compares discriminators' activations for the target with those for the output.
    for (const char* term : {"waveform", "stft", "mel", "feature"})
      CHECK(m.term(term).value != against_other.term(term).value);
    REQUIRE(m.discriminators.size() == 3);
    for (size_t i = 0; i < 3; ++i) CHECK(m.discriminators[i].loss != against_other.discriminators[i].loss);
    // Samples behind an item's length count in neither.
    std::vector<float> padded = clean;
    for (int64_t t = lengths[1]; t < samples; ++t) padded[static_cast<size_t>(samples + t)] = 0.25f;
    const auto [padded_codes, of_padded] = measured(noisy, padded);
    for (const char* term : {"waveform", "stft", "mel"}) CHECK(m.term(term).value == of_padded.term(term).value);
  }
}

TEST_CASE("own target: a captured graph reads the new target, and a step learns to give it", "[step]") {
  for (const Device device : devices()) {
    CAPTURE(str(device));
    Context ctx({.device = device, .threads = 2});
    const auto captured = step_of(ctx, true, true), eager = step_of(ctx, true, true);
    eager->set_capture(false), captured->set_capture(true);
    for (uint64_t i = 0; i < 4; ++i)
      for (TrainingStep* step : {captured.get(), eager.get()}) {
        step->load(audio_of(i), lengths, {}, audio_of(100 + i));
        step->run();
      }
    CHECK(state_of(*captured) == state_of(*eager));
    {
      const std::vector<float> input = audio_of(5), target = audio_of(6);
      const AllocationCounter counter;
      captured->load(input, lengths, {}, target);
      captured->run();
      CHECK(counter.count() == 0);
    }
    const auto step = step_of(ctx, false, true);
    const std::vector<float> input = audio_of(7);
    std::vector<float> quiet = input;
    for (float& x : quiet) x *= 0.125f;
    step->set_learning_rate(3e-3);
    const auto distance = [&] {
      step->load(input, lengths, {}, quiet);
      step->measure();
      return step->metrics().term("waveform").value;
    };
    const float before = distance();
    for (int i = 0; i < 60; ++i) step->run();
    CHECK(distance() < 0.9f * before);
  }
}

TEST_CASE("own target: a step without one refuses it, and a target of another length is refused", "[step]") {
  Context ctx({.threads = 1});
  const std::vector<float> audio = audio_of(1);
  const auto plain = step_of(ctx, false, false), with = step_of(ctx, false, true);
  CHECK_THROWS_WITH(plain->load(audio, lengths, {}, audio), Catch::Contains("target has 720 samples, expected none"));
  CHECK_THROWS_AS(with->load(audio, lengths, {}, std::vector<float>(719)), Error);
  CHECK_NOTHROW(with->load(audio, lengths, {}, audio));
}
