#pragma once
// The training loop: reads data, writes checkpoints and logs. `nacre train` is its command line.
//
//   RUN/config.json           the resolved configuration
//   RUN/start/                model.safetensors before the first step, as scored by the first evaluation; absent if the
//                             run started from given weights
//   RUN/step-00000080/        checkpoints: model.safetensors, optimizer.safetensors, manifest.json
//   RUN/log.jsonl, RUN/events.out.tfevents.*
//   RUN/run.lock, RUN/bad_files.txt, RUN/bad_noise_files.txt (if more files are unreadable than the screen lists)
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
  /// A folder of noise that is mixed into the inputs (TrainingConfig::noise_share); empty: none. A resumed run needs a
  /// folder with the same files.
  std::string noise_dir{};
  std::filesystem::path run;
  ContextOptions context;
  Storage storage = Storage::float32;  ///< storage of activations and effective weights in training
  std::string resume = "auto";    ///< "auto", "never", or a checkpoint's folder
  std::string init;               ///< initial weights: a safetensors file or a checkpoint's folder
  bool init_partial = false;      ///< accept initial weights that do not cover the whole model
  bool allow_change = false;      ///< resume although configuration or data have changed
  int64_t max_bad = 10;           ///< files; more than this and more than 1 % stop the run before it begins
  std::string experiment_name;
  std::FILE* out = stdout;  ///< receives reports
  std::FILE* progress = stderr;
  /// A signal handler sets it to the signal's number. The state is saved, and train() returns. The step that runs at
  /// that time counts if the device completes it; on the CPU it is abandoned, and the state is that before it.
  const std::atomic<int>* stop = nullptr;
  /// train() keeps it true while the process could exit at once without losing anything, that is before training
  /// begins. A signal handler may then exit, so that the user need not wait for a long file or for clustering.
  std::atomic<bool>* may_leave = nullptr;
};

struct TrainResult {
  int64_t step = 0, steps = 0;
  bool finished = false;
  int signal = 0;  ///< the signal that stopped the run early, or 0
  std::filesystem::path checkpoint;
  double snr = std::numeric_limits<double>::quiet_NaN();  ///< SNR of the last evaluation; NaN if there was none
};

/// Starts or resumes a training run. Throws Error; see ErrorKind for the kinds.
TrainResult train(const TrainerOptions&);

/// Warnings about an evaluation for inexperienced users, as sentences; empty if there are none. A pure function of the
/// figures.
struct HealthFigures {
  double snr = 0, input_mean = 0, input_std = 0, output_mean = 0, output_std = 0;
  std::vector<double> usage, perplexity;
  int64_t codes_seen = 0, codebook_size = 1;
  int64_t step = 0;
  /// From the configuration: advice concerns settings that can still be changed.
  bool balanced = true, codebooks_from_data = true, ema = true;
  std::vector<DiscriminatorMetrics> discriminators{};  ///< means over the epoch; empty without adversarial training
  double adversarial_share = 0;                        ///< of their losses in the gradient at the waveform
  double adversarial_share_set = 0;                    ///< the share that the configuration gives them; 0: none
};
std::vector<std::string> warnings(const HealthFigures&);

/// The learning rate of a step (0-based) relative to the configured one. The schedule ends at step `end`. With `shift`,
/// the steps made so far count as `step + shift` steps of the current size (RunSchedule, trainer_state.h).
double schedule_factor(const TrainingConfig&, int64_t step, int64_t end, int64_t shift = 0);

/// For DatasetOptions::progress. Scanning a large folder takes minutes; the progress appears after one second.
std::function<void(int64_t, int64_t)> scan_progress(std::FILE* to);
/// The dataset options that the trainer uses.
DatasetOptions dataset_options(const RunConfig&);
/// The same for noise: no file is held out but those below folders with a name for that.
DatasetOptions noise_options(const RunConfig&);

/// The fingerprint of the data that a model was trained on (Dataset::fingerprint), if its checkpoint records it.
std::optional<uint64_t> trained_on(const std::filesystem::path& model);

/// Resolves a path to model weights: a safetensors file, a checkpoint's folder, or a run's folder (its best checkpoint,
/// otherwise its newest). Throws Error(io) if nothing can be opened, and Error(input) that says what was found instead
/// of a model.
std::filesystem::path find_model(const std::filesystem::path&);
/// A sentence if the model file belongs to a checkpoint that its unfinished run will remove; otherwise empty.
std::string going_to_be_removed(const std::filesystem::path& model);

}  // namespace nacre::training
