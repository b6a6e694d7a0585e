#pragma once
// The complete configuration of a training run, in five sections: codec, loss, discriminator, optimizer, training. The
// run's folder keeps a copy.
#include <cstdint>
#include <string>
#include <vector>

#include "nacre/losses/loss.h"
#include "nacre/systems/codec_config.h"
#include "nacre/training/training_step.h"

namespace nacre::training {

enum class Schedule : uint8_t { constant, cosine, exponential };
enum class Start : uint8_t {
  transform,  ///< start as a lapped-transform codec (codec/transform_start.h) if the codec can carry one; else random
  random,
  scaled  ///< random, with weights that keep the variance of the signal (codec/scaled_start.h)
};

struct TrainingConfig {
  int64_t batch_size = 16;
  int64_t num_epochs = 100;
  int64_t segment_length = 16000;
  int64_t max_steps = 0;
  uint64_t seed = 1;
  Start start = Start::transform;
  Schedule schedule = Schedule::cosine;
  int64_t schedule_steps = 0;
  int64_t warmup_steps = 0;
  double final_rate = 0.01;
  double rate_decay = 0.999996;
  // Only in runs with noise (TrainerOptions::noise_dir).
  double noise_share = 0.5;
  std::vector<int64_t> noise_gain = {-30, 0};
  double clean_target = 1;
  bool salvage = false;
  bool held_out_folders = true;
  double valid_fraction = 0.05;
  double valid_seconds = 60;
  double checkpoint_minutes = 10;
  int64_t codebook_start_rows = 20000;
  int64_t codebook_average_rows = 0;
};

template <class V>
void fields(V& v, TrainingConfig& c) {
  using namespace field;
  v("batch_size", c.batch_size, range(1, 65536), "segments per step");
  v("num_epochs", c.num_epochs, range(1, 100000000), "passes over the data");
  v("segment_length", c.segment_length, described("one hop of the codec to 1073741824"), "samples per segment");
  v("max_steps", c.max_steps, at_least(0).zero("no limit"), "stop after this many steps");
  v("seed", c.seed, at_least(0), "seed of random weights, crops and all other random choices");
  v("start", c.start, words({"transform", "random", "scaled"}),
    "weights before the first step; transform: those of a lapped transform, if the shape of the codec allows it; "
    "scaled: random, with weights that keep the variance of the signal");
  v("schedule", c.schedule, words({"constant", "cosine", "exponential"}),
    "how the learning rate changes over the steps");
  v("schedule_steps", c.schedule_steps, at_least(0).zero("as many as the epochs have"),
    "steps that the schedule spans, independent of max_steps");
  v("warmup_steps", c.warmup_steps, at_least(0), "steps over which the learning rate first rises linearly");
  v("final_rate", c.final_rate, range(0, 1), "cosine: fraction of the learning rate at the end");
  v("rate_decay", c.rate_decay, range(above(0), 1), "exponential: factor of the learning rate per step");
  v("noise_share", c.noise_share, range(0, 1), "with --noise-dir: share of the segments whose input has noise");
  v("noise_gain", c.noise_gain, list(range(-120, 60), 2, 2, "gains"),
    "lowest and highest peak of the noise, in dB of the speech's peak; drawn uniformly");
  v("clean_target", c.clean_target, range(0, 1),
    "with --noise-dir: share of the segments that are compared with the clean speech; the others with their input");
  v("salvage", c.salvage, flag(), "use the intact part of truncated or damaged files");
  v("held_out_folders", c.held_out_folders, flag(),
    "folders named valid, dev, test, ... are held out (data/dataset.h)");
  v("valid_fraction", c.valid_fraction, range(0, below(1)),
    "fraction of the files that is held out, if there is no folder valid, dev, test, ... to hold out");
  v("valid_seconds", c.valid_seconds, at_least(above(0)),
    "approximate seconds of held-out audio that each epoch is evaluated on");
  v("checkpoint_minutes", c.checkpoint_minutes, at_least(above(0)), "minutes between checkpoints within an epoch");
  v("codebook_start_rows", c.codebook_start_rows, range(0, 10000000).zero("codebooks start from random numbers"),
    "frames from which the initial codebooks are clustered");
  v("codebook_average_rows", c.codebook_average_rows, range(0, 1000000000),
    "further frames that then update these codebooks by moving averages, as in training; ema only");
}

/// A value for one key, and its source as messages name it, such as "--batch-size 0".
struct Setting {
  std::string key;    ///< section.key
  std::string value;  ///< JSON, or an unquoted word for strings
  std::string source;
};
/// Parses "section.key=value", the syntax of --set. Throws Error(usage).
Setting setting(const std::string& assignment);

struct RunConfig {
  CodecConfig codec;
  LossConfig loss;
  DiscriminatorConfig discriminator;
  OptimizerConfig optimizer;
  TrainingConfig training;

  /// Throws Error(usage) that names section and key.
  void check() const;
  std::string to_json() const;
  /// Reads a JSON object with any of the five sections; `base` gives all other values. Throws Error(usage) that names
  /// unknown keys.
  static RunConfig from_json(const std::string& text, const RunConfig& base);
  static RunConfig from_json(const std::string& text);
  /// One of CodecConfig::names() with its training settings, or a path to a JSON file. Throws Error(usage) for an
  /// unknown name and for an invalid file (with line and column if it is not JSON), and Error(io) for a file that
  /// cannot be opened.
  static RunConfig named(const std::string& name_or_path);
  /// "section.key=value"; value is JSON, or an unquoted word for strings.
  void set(const std::string& assignment);
  /// Applies all settings in order and then checks the result. Errors name the source.
  void set(const std::vector<Setting>&);
};

/// One key, as `nacre info --keys` lists it.
struct KeyRow {
  std::string name;           ///< section.key
  std::string type;           ///< integer, number, boolean, word, list of integers
  std::string default_value;  ///< value in RunConfig{}, as JSON
  std::string range, help;
};
/// All keys, section by section.
std::vector<KeyRow> configuration_keys();

/// "loss.mel: 1 -> 2" for every key that differs.
std::vector<std::string> differences(const RunConfig& before, const RunConfig& after);

}  // namespace nacre::training
