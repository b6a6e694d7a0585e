// The inputs of the trainer's steps, compared with runs put together by hand (run_by_hand.h): crops and their valid
// lengths, the learning rate, the number of codebooks, and the audio that the codebooks start from.
#include <set>

#include "nacre/files/checkpoint_store.h"
#include "training/run_by_hand.h"

using namespace nacre;
using namespace nacre::test;

namespace {

/// Half of the files are shorter than tiny()'s segment of 400 samples.
void write_short_and_long(const TemporaryFolder& folder) {
  const int64_t lengths[] = {250, 1600, 390, 1200, 130, 399, 900, 310, 220, 700};
  for (size_t i = 0; i < std::size(lengths); ++i) {
    std::vector<float> x = sine(lengths[i], 200.0 + 130.0 * static_cast<double>(i), 16000, 0.4);
    const Philox noise{9, i};
    for (size_t t = 0; t < x.size(); ++t) x[t] += static_cast<float>(0.1 * (noise.uniform(t) - 0.5));
    write_wav(folder / ("data/" + std::to_string(i) + ".wav"), {.samples = x, .sample_rate = 16000, .channels = 1});
  }
}

void check_equal(const Weights& found, const Weights& expected) {
  REQUIRE(found.size() == expected.size());
  for (const auto& [name, values] : expected) {
    INFO(name);
    REQUIRE(found.count(name) == 1);
    CHECK((found.at(name) == values));
  }
}

}  // namespace

TEST_CASE("trainer by hand: every step has the crops, lengths and learning rate that it should have") {
  RunConfig config;
  SECTION("codebooks that follow averages, from a transform, half a cosine to a tenth") {
    config = tiny();
    config.training.codebook_average_rows = 900;
    config.training.schedule = Schedule::cosine, config.training.final_rate = 0.1;
  }
  SECTION("factorised codes, from random weights, a warm-up of five steps") {
    config = tiny(QuantizerKind::factorised);
    config.training.start = Start::random;
    config.training.warmup_steps = 5;
  }
  SECTION("random codebooks, another seed, from scaled weights") {
    config = tiny();
    config.training.start = Start::scaled;
    config.training.codebook_start_rows = 0;
    config.training.seed = 77;
  }
  config.training.num_epochs = 3;
  config.training.batch_size = 3;
  config.optimizer.ema_decay = 0.75;
  const TemporaryFolder folder;
  write_short_and_long(folder);
  Trainer t(folder, "run", config);
  const TrainResult end = t.run().result;

  RunByHand by_hand(config, folder / "data");
  const int64_t steps = 3 * by_hand.crops.steps_per_epoch();
  REQUIRE(steps >= 12);
  REQUIRE(end.step == steps);
  const auto factor = [&](int64_t s) {
    return schedule_factor(config.training, s, steps);
  };  // config_test.cpp tests its values
  if (config.training.schedule == Schedule::cosine) {
    REQUIRE(factor(0) == 1);
    REQUIRE(factor(1) < 0.995);
  }
  by_hand.begin();
  const int64_t short_before = by_hand.short_crops;
  Weights average = by_hand.weights();  // the average starts with the weights of the first step, codebooks included
  std::map<std::string, double> largest;
  std::vector<StepMetrics> metrics;
  for (int64_t s = 0; s < steps; ++s) {
    by_hand.next(config.optimizer.learning_rate * factor(s));
    metrics.push_back(by_hand.step.metrics());
    for (auto& [name, values] : by_hand.weights())
      for (size_t i = 0; i < values.size(); ++i) {
        average[name][i] += 0.25f * (values[i] - average[name][i]);
        largest[name] = std::max(largest[name], static_cast<double>(std::fabs(values[i])));
      }
  }
  REQUIRE(by_hand.short_crops - short_before >= 6);  // the padding behind them must not count
  const Weights trained = stored_weights(end.checkpoint / "optimizer.safetensors", "value.");
  check_equal(trained, by_hand.weights());

  // The model is the average of the trained values, with a quarter of each step's. Codebooks that follow their own
  // averages are copied. Each step rounds in several places, by at most two units of the largest value.
  const Weights model = stored_weights(end.checkpoint / "model.safetensors");
  REQUIRE(model.size() == trained.size());
  bool differs = false;
  for (const auto& [name, values] : model) {
    INFO(name);
    if (config.codec.quantizer == QuantizerKind::ema && contains(name, ".codebook.")) {
      CHECK((values == trained.at(name)));
      continue;
    }
    double worst = 0;
    for (size_t i = 0; i < values.size(); ++i) {
      worst = std::max(worst, std::fabs(static_cast<double>(values[i]) - static_cast<double>(average.at(name)[i])));
      differs = differs || values[i] != trained.at(name)[i];
    }
    CHECK(worst <= static_cast<double>(steps) * 4 * 0x1p-24 * largest[name]);
  }
  CHECK(differs);

  // The log has the rate of each step and its measurements. Each evaluation has the mean norm since the one before.
  double norms = 0;
  int64_t seen = 0, logged = 0;
  for (const nlohmann::json& line : log_lines(t.options.run)) {
    const auto at = line["step"].get<int64_t>();
    INFO("step " << at);
    if (line.contains("valid/grad_norm")) {
      for (norms = 0, seen = 0; seen < at - logged; ++seen)
        norms += static_cast<double>(metrics[static_cast<size_t>(logged + seen)].gradient_norm);
      CHECK(line["valid/grad_norm"].get<double>() == Approx(norms / static_cast<double>(seen)).epsilon(1e-12));
      logged = at;
    }
    if (!line.contains("other/learning_rate")) continue;
    const double rate = config.optimizer.learning_rate * factor(at - 1);
    CHECK(line["other/learning_rate"].get<double>() == Approx(rate).epsilon(0x1p-24));  // a float
    const StepMetrics& m = metrics[static_cast<size_t>(at - 1)];
    for (const auto& [key, value] : std::map<std::string, float>{{"loss", m.loss()},
                                                                 {"waveform/loss", m.term("waveform").value},
                                                                 {"stft/loss", m.term("stft").value},
                                                                 {"mel/loss", m.term("mel").value},
                                                                 {"vq/commitment_loss", m.commitment},
                                                                 {"vq/codebook_loss", m.codebook},
                                                                 {"other/grad_norm", m.gradient_norm}}) {
      INFO(key);
      CHECK(line[key].get<float>() == value);
    }
  }
  CHECK(logged == steps);
}

TEST_CASE("trainer by hand: given weights keep their codebooks") {
  const TemporaryFolder folder;
  write_short_and_long(folder);
  const RunConfig config = tiny();
  Trainer first(folder, "first", config);
  const fs::path from = first.run_to(4).result.checkpoint / "model.safetensors";
  Trainer second(folder, "second", config);
  second.options.init = from;
  const fs::path after = second.run_to(1).result.checkpoint;

  RunByHand by_hand(config, folder / "data");
  load_parameters(by_hand.ctx, by_hand.step.parameters(), from, false);
  by_hand.next(config.optimizer.learning_rate);
  check_equal(trained_weights(after), by_hand.weights());
}

TEST_CASE("trainer by hand: quantizer dropout draws anew at every step, from one codebook to all") {
  constexpr int64_t steps = 10;
  constexpr int32_t n = 3;
  RunConfig config = tiny(QuantizerKind::factorised);
  config.codec.n_codebooks = n;
  config.codec.quantizer_dropout = 0.5;
  config.training.batch_size = 4;
  config.training.num_epochs = 100;
  config.training.codebook_start_rows = 0;
  config.training.start = Start::random;
  config.optimizer.ema_decay = 0;
  const TemporaryFolder folder;
  write_short_and_long(folder);
  Trainer t(folder, "run", config);
  // The first half of the batch drops codebooks, and the other half uses all. Exactly one choice of all possible ones
  // for two items gives the weights of the trainer's step.
  std::vector<std::vector<int32_t>> drawn;
  for (int64_t s = 1; s <= steps; ++s) {
    const Weights expected = trained_weights(t.run_to(s).result.checkpoint);
    std::vector<std::vector<int32_t>> fits;
    for (int32_t a = 0; a <= n; ++a)
      for (int32_t b = 0; b <= n; ++b) {
        RunByHand by_hand(config, folder / "data");
        by_hand.begin();
        for (const std::vector<int32_t>& before : drawn) by_hand.next(config.optimizer.learning_rate, before);
        by_hand.next(config.optimizer.learning_rate, {a, b, n, n});
        if (by_hand.weights() == expected) fits.push_back({a, b, n, n});
      }
    INFO("step " << s);
    REQUIRE(fits.size() == 1);
    drawn.push_back(fits[0]);
  }
  std::set<std::vector<int32_t>> different(drawn.begin(), drawn.end());
  std::set<int32_t> first, second;
  for (const std::vector<int32_t>& stages : drawn) first.insert(stages[0]), second.insert(stages[1]);
  // If one of nine pairs is drawn ten times, three or fewer different ones have a probability of 84 / 3^10, 1 in 700.
  // One of three values is missing among twenty draws with a probability of 3 (2/3)^20, 1 in 1100.
  CHECK(different.size() >= 4);
  first.insert(second.begin(), second.end());
  CHECK((first == std::set<int32_t>{1, 2, 3}));
  CHECK(second.size() > 1);
  CHECK(std::any_of(drawn.begin(), drawn.end(), [](const std::vector<int32_t>& s) { return s[0] != s[1]; }));
}
