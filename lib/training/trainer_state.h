#pragma once
// What a checkpoint holds besides weights, and what must be the same when a run goes on.
#include <cstdint>
#include <string>
#include <vector>

#include "nacre/files/checkpoint_store.h"
#include "nacre/training/run_config.h"
#include "nacre/training/training_step.h"

namespace nacre::training {

/// Where a run is in its epochs and in its schedule, in steps of the present size. As long as batches and data stay what they
/// are, `shift` is 0.
struct RunSchedule {
  int64_t steps_per_epoch = 1;
  /// step + shift: as many steps of the present size draw the audio that the run has drawn so far.
  int64_t shift = 0;
  int64_t end = 0;   ///< the step at which the epochs end
  int64_t stop = 0;  ///< the step at which the run stops: there, or at max_steps
  RunSchedule() = default;
  RunSchedule(const TrainingConfig&, int64_t steps_per_epoch, int64_t shift);
  int64_t epoch_of(int64_t step) const { return (step + shift + steps_per_epoch - 1) / steps_per_epoch; }
  bool ends_epoch(int64_t step) const { return (step + shift) % steps_per_epoch == 0; }
  /// The learning rate of a step, as a factor of the configured one, and where it stops changing.
  double factor(const TrainingConfig&, int64_t step) const;
  int64_t factor_end(const TrainingConfig&) const;
};

struct RunIdentity {
  RunConfig config;
  uint64_t data = 0;  ///< fingerprint of the file list
  int threads = 0;  ///< for the record: no bit depends on it
  std::string instruction_set, libraries;
  Storage storage = Storage::float32;
  RunSchedule schedule = {};  ///< steps_per_epoch is 0 where a manifest does not know
};
RunIdentity identity_of(const RunConfig&, uint64_t data, const Context&, Storage, const RunSchedule&);
RunIdentity identity_from_manifest(const std::string& manifest);
/// Sentences; empty when the run may simply go on. How long it runs, how it is judged and saved may change.
std::vector<std::string> what_forbids_resume(const RunIdentity& then, const RunIdentity& now);
/// One sentence if the numbers may differ in the last bits, else empty.
std::string what_changes_bits(const RunIdentity& then, const RunIdentity& now);

/// model.safetensors (averaged weights where there are some), optimizer.safetensors (everything else), the manifest.
CheckpointContent content_of(TrainingStep&, Context&, const RunIdentity&, int64_t step, double snr);
/// The manifest alone.
std::string manifest_of(TrainingStep&, const RunIdentity&, int64_t step, double snr);
/// The schedule of a run that goes on at `step` with other epochs, batches or data: the part of its epochs that is behind it
/// stays what it was.
RunSchedule continued(const RunSchedule& then, const TrainingConfig& now, int64_t steps_per_epoch, int64_t step);
/// One line where the learning rate of the next step is not what it would have been, else empty.
std::string what_changes_rate(const RunIdentity& then, const RunIdentity& now, int64_t step);
/// Puts a checkpoint's state back; returns its step.
int64_t restore(TrainingStep&, const Checkpoint&);

}  // namespace nacre::training
