#pragma once
// The state that a checkpoint holds besides weights, and the conditions for resuming a run.
#include <cstdint>
#include <string>
#include <vector>

#include "nacre/files/checkpoint_store.h"
#include "nacre/training/run_config.h"
#include "nacre/training/training_step.h"

namespace nacre::training {

/// The position of a run in its epochs and in its schedule, in steps of the current size. `shift` is 0 as long as the
/// batch size and the data stay the same.
struct RunSchedule {
  int64_t steps_per_epoch = 1;
  /// The audio that the run has drawn so far corresponds to step + shift steps of the current size.
  int64_t shift = 0;
  int64_t end = 0;   ///< the step at which the epochs end
  int64_t stop = 0;  ///< the step at which the run stops: end, or max_steps if that is smaller
  RunSchedule() = default;
  RunSchedule(const TrainingConfig&, int64_t steps_per_epoch, int64_t shift);
  int64_t epoch_of(int64_t step) const { return (step + shift + steps_per_epoch - 1) / steps_per_epoch; }
  bool ends_epoch(int64_t step) const { return (step + shift) % steps_per_epoch == 0; }
  /// factor(): the learning rate of a step relative to the configured one. factor_end(): the step where it stops
  /// changing.
  double factor(const TrainingConfig&, int64_t step) const;
  int64_t factor_end(const TrainingConfig&) const;
};

struct RunIdentity {
  RunConfig config;
  uint64_t data = 0;  ///< fingerprint of the file list
  int threads = 0;    ///< for information; no bit depends on it
  std::string instruction_set, libraries;
  Storage storage = Storage::float32;
  RunSchedule schedule = {};  ///< steps_per_epoch is 0 if a manifest does not record it
  uint64_t noise = 0;         ///< fingerprint of the list of noise files; 0: none
};
RunIdentity identity_of(const RunConfig&, uint64_t data, const Context&, Storage, const RunSchedule&,
                        uint64_t noise = 0);
RunIdentity identity_from_manifest(const std::string& manifest);
/// Reasons against resuming, as sentences; empty if there are none. Duration, evaluation and saving of a run may
/// change.
std::vector<std::string> what_forbids_resume(const RunIdentity& then, const RunIdentity& now);
/// One sentence if results may differ in the last bits; otherwise empty.
std::string what_changes_bits(const RunIdentity& then, const RunIdentity& now);

/// The file of a checkpoint that holds the weights of discriminators.
inline constexpr const char* discriminator_file = "discriminator.safetensors";

/// model.safetensors (averaged weights if there are any), discriminator.safetensors if there are discriminators,
/// optimizer.safetensors (all other state) and the manifest.
CheckpointContent content_of(TrainingStep&, Context&, const RunIdentity&, int64_t step, double snr);
/// Only the manifest.
std::string manifest_of(TrainingStep&, const RunIdentity&, int64_t step, double snr);
/// The schedule of a run that resumes at `step` with other epochs, batches or data. The fraction of the epochs that is
/// already done stays the same.
RunSchedule continued(const RunSchedule& then, const TrainingConfig& now, int64_t steps_per_epoch, int64_t step);
/// One line if the learning rate of the next step differs from what it would have been; otherwise empty.
std::string what_changes_rate(const RunIdentity& then, const RunIdentity& now, int64_t step);
/// Whether the checkpoint has discriminators that are the networks of a configuration.
bool has_discriminators(const Checkpoint&, const DiscriminatorConfig& then, const DiscriminatorConfig& now);
/// Restores a checkpoint's state and returns its step. Without `with_discriminators`, these stay as they are.
int64_t restore(TrainingStep&, const Checkpoint&, bool with_discriminators = true);

}  // namespace nacre::training
