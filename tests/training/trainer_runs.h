#pragma once
// Training runs of a fraction of a second, and readers of their files, for the tests of the trainer.
#include <nlohmann/json.hpp>

#include "catch.h"
#include "data/files.h"
#include "nacre/random.h"
#include "nacre/training/trainer.h"

namespace nacre::test {

using namespace nacre::training;
namespace fs = std::filesystem;

/// A model of a few hundred weights on a second of sound, so that a run takes a fraction of a second.
inline RunConfig tiny(QuantizerKind quantizer = QuantizerKind::ema) {
  RunConfig c;
  c.codec.encoder_dim = 4;
  c.codec.encoder_rates = c.codec.decoder_rates = {2, 2};
  c.codec.decoder_dim = 16;
  c.codec.latent_dim = 8;
  c.codec.quantizer = quantizer;
  c.codec.n_codebooks = 2;
  c.codec.codebook_size = 16;
  c.codec.codebook_dim = 4;
  c.codec.metric = quantizer == QuantizerKind::ema ? VqMetric::euclidean : VqMetric::cosine;
  c.loss.windows = {16, 64};
  c.loss.mels = {5, 10};
  c.optimizer.learning_rate = 1e-3;
  c.training.batch_size = 2;
  c.training.segment_length = 400;
  c.training.num_epochs = 3;
  c.training.codebook_start_rows = 300;
  c.training.schedule = Schedule::constant;  // so that max_steps may end a run early without changing a step
  return c;
}

/// Sines with a little noise, of different lengths. One is shorter than a segment.
inline void write_sounds(const TemporaryFolder& folder) {
  const int64_t lengths[] = {2400, 1600, 3000, 250, 2000, 1200};
  for (size_t i = 0; i < std::size(lengths); ++i) {
    std::vector<float> x = sine(lengths[i], 200.0 + 170.0 * static_cast<double>(i), 16000, 0.4);
    const Philox noise{7, i};
    for (size_t t = 0; t < x.size(); ++t) x[t] += static_cast<float>(0.05 * (noise.uniform(t) - 0.5));
    write_wav(folder / ("data/" + std::to_string(i) + ".wav"), {.samples = x, .sample_rate = 16000, .channels = 1});
  }
}

struct Outcome {
  TrainResult result;
  std::string text;
};

/// Options of a run in folder/NAME on folder/data, without output on the screen.
class Trainer {
 public:
  Trainer(const TemporaryFolder& folder, const std::string& name, const RunConfig& config)
      : silent_(std::fopen("/dev/null", "w")) {
    options.config = config;
    options.data_dir = folder / "data";
    options.run = folder / name;
    options.context.threads = 1;
    options.progress = silent_;
  }
  Trainer(const Trainer&) = delete;
  Trainer& operator=(const Trainer&) = delete;
  ~Trainer() { std::fclose(silent_); }

  /// The output until a failure is kept in `said`.
  Outcome run() {
    char* text = nullptr;
    size_t bytes = 0;
    options.out = ::open_memstream(&text, &bytes);
    const auto close = [&] {
      std::fclose(options.out);
      said.assign(text, bytes);
      std::free(text);
    };
    try {
      const TrainResult r = train(options);
      close();
      return {r, said};
    } catch (...) {
      close();
      throw;
    }
  }
  Outcome run_to(int64_t step) {
    options.config.training.max_steps = step;
    return run();
  }
  ErrorKind error_of_run(std::string& text) {
    try {
      run();
    } catch (const Error& e) {
      text = e.what();
      return e.kind();
    }
    FAIL("the run did not fail; it said\n" << said);
    return {};
  }

  TrainerOptions options;
  std::string said;

 private:
  std::FILE* silent_;
};

inline void check_same_state(const fs::path& a, const fs::path& b) {
  for (const char* name : {"model.safetensors", "optimizer.safetensors"}) {
    INFO(a << " and " << b << ": " << name);
    const std::string first = read_bytes(a / name), second = read_bytes(b / name);
    CHECK(first.size() > 1000);
    CHECK(first == second);
  }
}

inline std::vector<nlohmann::json> log_lines(const fs::path& run) {
  std::vector<nlohmann::json> lines;
  std::ifstream in(run / "log.jsonl");
  for (std::string line; std::getline(in, line);) lines.push_back(nlohmann::json::parse(line));
  return lines;
}

/// Maps the step to the loss, for the lines of training steps.
inline std::vector<std::pair<int64_t, double>> logged_losses(const fs::path& run) {
  std::vector<std::pair<int64_t, double>> losses;
  for (const nlohmann::json& line : log_lines(run))
    if (line.contains("loss")) losses.emplace_back(line["step"].get<int64_t>(), line["loss"].get<double>());
  return losses;
}

inline bool contains(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

}  // namespace nacre::test
