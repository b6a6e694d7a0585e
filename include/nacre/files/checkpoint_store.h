#pragma once
// The checkpoints of a run: folders "step-00000080" that appear whole, are read back before older ones go, and are
// verified before anything is resumed from them. One run at a time writes to a folder; anybody may read meanwhile.
//
//   RUN/run.lock                         who is writing; the lock itself is the kernel's and dies with the process
//   RUN/step-00000080/manifest.json      what the caller says about the run, size and CRC-32C of every file, its own CRC
//   RUN/step-00000080/model.safetensors, ...
//   RUN/damaged-step-00000060/           what was found damaged and set aside
#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "nacre/files/atomic_file.h"

namespace nacre {

struct CheckpointFile {
  std::string name;                            ///< a plain file name, such as "model.safetensors"
  std::function<void(const ByteSink&)> write;  ///< gives the content to the sink; may throw, and then nothing is saved
};

struct CheckpointContent {
  std::vector<CheckpointFile> files;
  /// A JSON object: config, epoch, seed, sampler state, versions, metrics, ... It becomes part of manifest.json, beside
  /// the names the store keeps for itself: crc32c, format, step, selection, files.
  std::string manifest = "{}";
  std::optional<double> metric;  ///< what the best checkpoint is chosen by; none or NaN: this one is never the best
};

/// A verified checkpoint.
struct Checkpoint {
  std::filesystem::path path;
  int64_t step = 0;
  std::string manifest;  ///< the JSON object of the caller
  std::optional<double> metric;

  std::filesystem::path file(const std::string& name) const { return path / name; }
};

struct DamagedCheckpoint {
  std::filesystem::path path;  ///< where it is now
  std::string reason;
};

struct CheckpointSearch {
  std::optional<Checkpoint> found;
  std::vector<DamagedCheckpoint> damaged;  ///< what came before it and was no good
};

/// Steps of all checkpoints in a run's folder, rising. Nothing is verified.
std::vector<int64_t> list_checkpoints(const std::filesystem::path& run);
/// Reads everything in a checkpoint's folder against its manifest. Throws Error(input) if it is damaged, Error(io) if
/// it cannot be read.
Checkpoint verify_checkpoint(const std::filesystem::path&);
/// The newest checkpoint that verifies. Throws nothing for damage: it is in the result.
CheckpointSearch newest_checkpoint(const std::filesystem::path& run);
/// The checkpoint of the best metric that verifies; of equal ones the newest.
CheckpointSearch best_checkpoint(const std::filesystem::path& run);

struct CheckpointStoreOptions {
  int keep_last = 3;              ///< at least 2: the newest might turn out damaged
  bool higher_is_better = false;  ///< of CheckpointContent::metric
};

class CheckpointStore {
 public:
  /// Makes the folder if need be, takes its lock and removes what a killed run left half-written.
  /// Throws Error(usage) naming the process if another run is using the folder.
  explicit CheckpointStore(std::filesystem::path run, CheckpointStoreOptions = {});
  ~CheckpointStore();
  CheckpointStore(const CheckpointStore&) = delete;
  CheckpointStore& operator=(const CheckpointStore&) = delete;

  const std::filesystem::path& run() const;
  /// False on file systems without locks, where nothing stops a second run.
  bool locked() const;

  struct Saved {
    std::filesystem::path path;
    std::vector<int64_t> removed;  ///< steps that were rotated out
    std::string warning;           ///< why an old one could not be removed; empty if all went well
  };
  /// Saves, reads back, and then removes checkpoints that are neither among the last nor the best. `step` must be past
  /// every step already there. If this throws, the checkpoints are what they were before.
  Saved save(int64_t step, const CheckpointContent&);
  /// What was found out about a checkpoint after it was saved: its manifest, as in CheckpointContent, and its metric. The
  /// files stay. Then older ones may go. Throws as save(); the checkpoint is what it was then.
  Saved judge(int64_t step, const std::string& manifest, std::optional<double> metric);

  /// The newest checkpoint that verifies, to go on from. Newer ones, all damaged, are set aside under another name, so
  /// that the run can pass them.
  CheckpointSearch resume();
  /// Checkpoints of later steps get another name, so that the run can go on from this one. Returns where they are now.
  std::vector<std::filesystem::path> set_aside_after(int64_t step);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace nacre
