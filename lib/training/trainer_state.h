#pragma once
// What a checkpoint holds besides weights, and what must be the same when a run goes on.
#include <cstdint>
#include <string>
#include <vector>

#include "nacre/training/checkpoint_store.h"
#include "nacre/training/run_config.h"
#include "nacre/training_step.h"

namespace nacre::training {

struct RunIdentity {
  RunConfig config;
  uint64_t data = 0;  ///< fingerprint of the file list
  int threads = 0;  ///< for the record: no bit depends on it
  std::string instruction_set, libraries;
  Storage storage = Storage::float32;
};
RunIdentity identity_of(const RunConfig&, uint64_t data, const Context&, Storage);
RunIdentity identity_from_manifest(const std::string& manifest);
/// Sentences; empty when the run may simply go on. How long it runs, how it is judged and saved may change.
std::vector<std::string> what_forbids_resume(const RunIdentity& then, const RunIdentity& now);
/// One sentence if the numbers may differ in the last bits, else empty.
std::string what_changes_bits(const RunIdentity& then, const RunIdentity& now);

/// model.safetensors (averaged weights where there are some), optimizer.safetensors (everything else), the manifest.
CheckpointContent content_of(TrainingStep&, Context&, const RunIdentity&, int64_t step, int64_t epoch, double snr);
/// Puts a checkpoint's state back; returns its step.
int64_t restore(TrainingStep&, const Checkpoint&);

}  // namespace nacre::training
