#pragma once
// The training loop: data in, checkpoints and logs out. What `nacre train` is a command line for.
//
//   RUN/config.json           the resolved configuration
//   RUN/start/                model.safetensors before the first step, as the first evaluation judged it; not where a run was
//                             given weights
//   RUN/step-00000080/        checkpoints: model.safetensors, optimizer.safetensors, manifest.json
//   RUN/log.jsonl, RUN/events.out.tfevents.*
//   RUN/run.lock, RUN/bad_files.txt (where more files are bad than the screen is told of)
#include <atomic>
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <limits>
#include <optional>
#include <functional>
#include <string>
#include <vector>

#include "nacre/data/dataset.h"
#include "nacre/data/excerpts.h"
#include "nacre/training/evaluation.h"
#include "nacre/training/run_config.h"

namespace nacre::training {

struct TrainerOptions {
  RunConfig config;
  std::string data_dir;
  std::filesystem::path run;
  ContextOptions context;
  Storage storage = Storage::float32;  ///< of activations and effective weights in training
  std::string resume = "auto";    ///< "auto", "never", or a checkpoint's folder
  std::string init;               ///< weights to begin with: a safetensors file or a checkpoint's folder
  bool init_partial = false;      ///< also where they are not those of the whole model
  bool allow_change = false;      ///< resume although configuration or data changed
  int64_t max_bad = 10;           ///< files; more than this and more than 1 % stop the run before it begins
  std::string experiment_name;
  std::FILE* out = stdout;        ///< reports
  std::FILE* progress = stderr;
  /// Set by a signal handler to the signal's number: the step in hand is finished, the state saved, and train() returns.
  const std::atomic<int>* stop = nullptr;
  /// Set to true while nothing would be lost by leaving at once, without train() returning: before training begins. A signal
  /// handler may do that, so that no long file or clustering has to be waited for.
  std::atomic<bool>* may_leave = nullptr;
};

struct TrainResult {
  int64_t step = 0, steps = 0;
  bool finished = false;
  int signal = 0;                 ///< what stopped it early, or 0
  std::filesystem::path checkpoint;
  double snr = std::numeric_limits<double>::quiet_NaN();  ///< of the last evaluation; NaN if there was none
};

/// Runs, or goes on with, a training run. Throws Error; see ErrorKind for what each means.
TrainResult train(const TrainerOptions&);

/// What a newcomer should be told about an evaluation: sentences, empty when all is well. Pure function of the figures.
struct HealthFigures {
  double snr = 0, input_mean = 0, input_std = 0, output_mean = 0, output_std = 0;
  std::vector<double> usage, perplexity;
  int64_t codes_seen = 0, codebook_size = 1;
  int64_t step = 0;
  /// Of the configuration: advice is about what can still be changed.
  bool balanced = true, codebooks_from_data = true, ema = true;
};
std::vector<std::string> warnings(const HealthFigures&);

/// The learning rate of a step (0-based), as a factor of the configured one, where the schedule ends at step `end`. `shift`:
/// the steps so far count as `step + shift` of those that are made now (RunSchedule, trainer_state.h).
double schedule_factor(const TrainingConfig&, int64_t step, int64_t end, int64_t shift = 0);

/// For DatasetOptions::progress: the scan of a large folder takes minutes; its progress shows once it has taken a second.
std::function<void(int64_t, int64_t)> scan_progress(std::FILE* to);
/// What the trainer asks of the data.
DatasetOptions dataset_options(const RunConfig&);

/// The fingerprint of the data that a model was trained on (Dataset::fingerprint), where its checkpoint says so.
std::optional<uint64_t> trained_on(const std::filesystem::path& model);

/// The weights a path stands for: a safetensors file, a checkpoint's folder, or a run's folder (its best checkpoint, else its
/// newest). Throws Error(io) where nothing can be opened, Error(input) saying what is there instead of a model.
std::filesystem::path find_model(const std::filesystem::path&);
/// A sentence if the model file is part of a checkpoint that its run, which is not finished, is going to remove; else empty.
std::string going_to_be_removed(const std::filesystem::path& model);

}  // namespace nacre::training
