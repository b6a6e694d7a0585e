#pragma once
// The state of a training run. trainer.cpp begins, steps and saves; trainer_start.cpp sets the first
// weights; trainer_report.cpp evaluates.
#include <chrono>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>
#include <string>

#include "nacre/data/dataset.h"
#include "nacre/data/noise.h"
#include "nacre/data/sampler.h"
#include "nacre/files/checkpoint_store.h"
#include "nacre/log/json_log.h"
#include "nacre/log/progress.h"
#include "nacre/log/tensorboard.h"
#include "nacre/training/trainer.h"
#include "training/trainer_state.h"

namespace nacre::training {

/// One run of `nacre train` in one process. Its position is done_, the number of steps done since the run began, in
/// whichever process. Three states of it matter for what may be saved:
///
///   done_ == saved_at_   the state is in the checkpoint of this step
///   in_step_             a step is running or has failed, and the state belongs to no number of steps
///   snr_ is a number     the state has been scored; one_step() resets it to NaN
///
/// Everything random is a function of the seed and the number of the step, so a process that resumes draws what an
/// uninterrupted one would have drawn.
class Run {
 public:
  /// Locks the run's folder, scans the data and plans the step. Throws StoppedAtStart (trainer.cpp) if a signal arrives
  /// during the scan.
  explicit Run(const TrainerOptions&);
  /// The whole run, once: begin(), loop(), and what is said at the end.
  TrainResult go();

 private:
  using Clock = std::chrono::steady_clock;
  static double since(Clock::time_point t) { return std::chrono::duration<double>(Clock::now() - t).count(); }

  void say(const std::string& line);
  /// Steps until the schedule's end or a signal. Saves and evaluates at the ends of epochs, and saves at the end.
  void loop(TrainResult&);
  void begin();
  /// The checkpoint that --resume asks for; none for a new run. Throws if the folder and the option contradict each
  /// other.
  std::optional<Checkpoint> find_checkpoint();
  /// Takes schedule, state and position from a checkpoint. If it refuses, the run's folder is unchanged.
  void resume(const Checkpoint&);
  /// Returns true if the codebooks still have to be started from data.
  bool init();
  void start_as_transform();
  void start_scaled();
  void start_codebooks();
  void keep_start();
  /// list_name: the file in the run's folder that lists all of them, if there are too many for the screen.
  void say_bad(const Dataset&, const char* list_name);
  void say_noise();
  void load(const Batch&, std::span<const int32_t> stages = {});
  bool one_step();
  /// Reports the first of several updates in a row that were skipped. Throws Error(diverged) after too many.
  void skipped_update(const Batch&, int64_t updates);
  void log_step(const StepMetrics&);
  /// The number of codebooks that each item of the next step trains with.
  std::vector<int32_t> drop_codebooks() const;
  /// Saves the state unless this step is saved already. A full disk or a lack of memory is a warning; `why` and
  /// `goes_on` are words for it.
  void save(const std::string& why, bool goes_on = true);
  /// Records the score of the last checkpoint. Called after a save and an evaluation at the same step.
  void judge_checkpoint();
  /// Called before an error leaves the run: saves the trained state and reports it.
  void rescue();
  bool stopped() const { return options_.stop != nullptr && options_.stop->load() != 0; }
  RunIdentity identity() const {
    return identity_of(config_, data_.fingerprint(), ctx_, options_.storage, schedule_,
                       noise_data_ ? noise_data_->fingerprint() : 0);
  }
  std::string newest_checkpoint_name() const {
    return last_checkpoint_.empty() ? std::string("none") : last_checkpoint_.string();
  }

  // Implemented in trainer_report.cpp. Epoch 0 is before training.
  /// Returns false if the evaluation failed or a signal stopped it. The reason has been printed; training can continue.
  bool evaluate(int64_t epoch);
  /// One evaluation: scores the model, measures the losses, then prints and logs both. Sets snr_.
  void report(int64_t epoch);
  void judge(Evaluation&, int64_t epoch);
  StepMetrics measure_held_out();
  /// Means over the epoch's steps, which begin anew.
  std::vector<DiscriminatorMetrics> take_discriminators();

  // The order is that of construction: the lock comes before the scan, and the step needs to know whether there is
  // noise. Those behind `sampler_` that are optional are made by begin(), or when they are first used.
  TrainerOptions options_;
  RunConfig config_;
  Context ctx_;
  CheckpointStore store_;  // holds the lock of the run's folder
  Dataset data_;
  std::optional<Dataset> noise_data_;  // with --noise-dir
  TrainingStep step_;
  Codec judged_;         // a second model of the same shape, for evaluations with the averaged weights
  CropSampler sampler_;  // which crops each step draws
  std::optional<NoiseMixer> noise_;
  std::optional<JsonLog> log_;
  std::optional<EventWriter> events_;
  std::optional<Prefetcher> batches_;  // reads the batches of the next steps in a thread of its own
  std::optional<Progress> progress_;
  // Held-out audio that judge() and measure_held_out() use, the same in every evaluation.
  std::optional<ExcerptReader> judged_parts_, measured_parts_;
  RunSchedule schedule_;
  int64_t done_ = 0, saved_at_ = -1;  // steps done, and the step of the last checkpoint; -1: none yet
  bool judges_start_ = false;         // the start has yet to be scored; false for a run from given weights
  bool judges_first_ = false;         // the resumed checkpoint ends an epoch that has not been scored
  bool unjudged_ = false;             // a signal stopped the run before its last evaluation
  bool in_step_ = false;              // the state is between that before a step and that after it
  std::set<std::string> lost_;        // files that became unreadable and have been reported
  // Skipped updates: in a row, and in all, as of the last look at the device's counter. Steps since that look.
  int64_t skipped_in_a_row_ = 0, skipped_seen_ = 0, unseen_steps_ = 0;
  double trained_seconds_ = 0, trained_audio_ = 0;          // in this process: time in steps, and seconds of audio
  double waited_seconds_ = 0;                               // waiting for batches; included in trained_seconds_
  double epoch_gradient_norm_ = 0;                          // sum over epoch_steps_
  std::vector<DiscriminatorMetrics> epoch_discriminators_;  // sums over epoch_judged_
  int64_t epoch_steps_ = 0, epoch_judged_ = 0;  // steps with a finite gradient, and those that train discriminators
  Clock::time_point last_save_ = Clock::now();
  double snr_;  // of an evaluation at the current step, else NaN
  std::filesystem::path last_checkpoint_;
  ErrorKind save_failure_ = ErrorKind::io;  // kind of the last error while saving
};

/// Removes figures that are not finite, because JSON has no NaN.
void drop_missing(nlohmann::ordered_json& line);

/// Formats one number as printf does.
std::string number(double x, const char* format = "%.3f");
/// Format of a loss: small losses need a fourth digit.
inline const char* loss_format(double loss) { return loss < 0.1 ? "%.4f" : "%.3f"; }

}  // namespace nacre::training
