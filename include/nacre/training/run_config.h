#pragma once
// Everything that decides a training run, in four sections: codec, loss, optimizer, training. Written back beside the run.
#include <cstdint>
#include <string>
#include <vector>

#include "nacre/codec/codec_config.h"
#include "nacre/nn/loss.h"
#include "nacre/training/training_step.h"

namespace nacre::training {

enum class Schedule : uint8_t { constant, cosine };
enum class Start : uint8_t {
  transform,  ///< as a lapped-transform codec (codec/transform_start.h), where the codec can carry one; else random
  random
};

struct TrainingConfig {
  int64_t batch_size = 16;
  int64_t num_epochs = 100;
  int64_t segment_length = 16000;  ///< samples
  int64_t max_steps = 0;           ///< the run stops there; 0: it goes on to the end of its epochs
  uint64_t seed = 1;
  Start start = Start::transform;
  Schedule schedule = Schedule::cosine;
  int64_t schedule_steps = 0;  ///< steps that the schedule spans; 0: as many as the epochs have, whatever max_steps is
  int64_t warmup_steps = 0;      ///< the learning rate rises linearly over these
  double final_rate = 0.01;      ///< cosine: part of the learning rate that is left at the end
  bool salvage = false;          ///< take what is whole of damaged files
  bool held_out_folders = true;  ///< folders named valid, dev, test, ... are held out (nacre/data/dataset.h)
  double valid_fraction = 0.05;  ///< of the files, where no folder says which are held out
  double valid_seconds = 60;     ///< of held-out audio, about: what each epoch is judged on
  double checkpoint_minutes = 10;
  int64_t codebook_start_rows = 20000;  ///< frames that the first codebooks are clustered from; 0: random ones
  int64_t codebook_average_rows = 0;    ///< frames that then move them as in training; ema only
};

/// A value for one key, and where it came from, as messages call it: "--batch-size 0".
struct Setting {
  std::string key;    ///< section.key
  std::string value;  ///< JSON, or a plain word for strings
  std::string source;
};
/// Of "section.key=value", as --set has it. Throws Error(usage).
Setting setting(const std::string& assignment);

struct RunConfig {
  CodecConfig codec;
  LossConfig loss;
  OptimizerConfig optimizer;
  TrainingConfig training;

  /// Throws Error(usage) naming section and key.
  void check() const;
  std::string to_json() const;
  /// A JSON object with any of the four sections, on top of what `base` says. Unknown keys throw Error(usage) naming them.
  static RunConfig from_json(const std::string& text, const RunConfig& base);
  static RunConfig from_json(const std::string& text);
  /// One of CodecConfig::names(), with the training settings that go with it; or a path to a JSON file. Throws Error(usage)
  /// for a name that nobody has and for a file that cannot be used (with line and column where it is not JSON), Error(io)
  /// for one that cannot be opened.
  static RunConfig named(const std::string& name_or_path);
  /// "section.key=value"; value is JSON, or a plain word for strings.
  void set(const std::string& assignment);
  /// All of them, in order; what they make together is checked at the end. Errors name the source.
  void set(const std::vector<Setting>&);
};

/// "loss.mel: 1 -> 2" for every key that differs.
std::vector<std::string> differences(const RunConfig& before, const RunConfig& after);

}  // namespace nacre::training
