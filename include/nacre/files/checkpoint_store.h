#pragma once
// The checkpoints of a run: folders "step-00000080" that appear atomically. Each one is read back before older ones are
// removed, and verified before a run is resumed from it. Only one run at a time may write to a folder; readers need no
// lock.
//
//   RUN/run.lock                         names the writing process; the kernel's lock on it ends with the process
//   RUN/step-00000080/manifest.json      the caller's data about the run, size and CRC-32C of every file, its own CRC
//   RUN/step-00000080/model.safetensors, ...
//   RUN/damaged-step-00000060/           a damaged checkpoint that was set aside
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
  std::function<void(const ByteSink&)> write;  ///< passes the content to the sink; if it throws, nothing is saved
};

struct CheckpointContent {
  std::vector<CheckpointFile> files;
  /// A JSON object: config, epoch, seed, sampler state, versions, metrics, ... It becomes part of manifest.json. The
  /// names crc32c, format, step, selection and files are reserved for the store.
  std::string manifest = "{}";
  std::optional<double> metric;  ///< the best checkpoint is chosen by this; none or NaN: never the best
};

/// A checkpoint that has been verified.
struct Checkpoint {
  std::filesystem::path path;
  int64_t step = 0;
  std::string manifest;  ///< the caller's JSON object
  std::optional<double> metric;

  std::filesystem::path file(const std::string& name) const { return path / name; }
};

struct DamagedCheckpoint {
  std::filesystem::path path;  ///< its present location
  std::string reason;
};

struct CheckpointSearch {
  std::optional<Checkpoint> found;
  std::vector<DamagedCheckpoint> damaged;  ///< damaged checkpoints that precede the one found
};

/// The steps of all checkpoints in a run's folder, in increasing order. Nothing is verified.
std::vector<int64_t> list_checkpoints(const std::filesystem::path& run);
/// Compares all files of a checkpoint's folder with its manifest. Throws Error(input) if it is damaged, Error(io) if it
/// cannot be read.
Checkpoint verify_checkpoint(const std::filesystem::path&);
/// The newest checkpoint that passes verification. Damage is reported in the result and never thrown.
CheckpointSearch newest_checkpoint(const std::filesystem::path& run);
/// The checkpoint with the best metric that passes verification; of equal ones the newest.
CheckpointSearch best_checkpoint(const std::filesystem::path& run);

struct CheckpointStoreOptions {
  int keep_last = 3;              ///< at least 2, since the newest might be damaged
  bool higher_is_better = false;  ///< of CheckpointContent::metric
};

class CheckpointStore {
 public:
  /// Creates the folder if necessary, takes its lock, and removes what a killed run left half-written. Throws
  /// Error(usage), which names the process, if another run is using the folder.
  explicit CheckpointStore(std::filesystem::path run, CheckpointStoreOptions = {});
  ~CheckpointStore();
  CheckpointStore(const CheckpointStore&) = delete;
  CheckpointStore& operator=(const CheckpointStore&) = delete;

  const std::filesystem::path& run() const;
  /// False on file systems without locks, where a second run is not prevented.
  bool locked() const;

  struct Saved {
    std::filesystem::path path;
    std::vector<int64_t> removed;  ///< steps of the checkpoints that were removed
    std::string warning;           ///< why an old checkpoint could not be removed; empty if there was no failure
  };
  /// Saves the checkpoint, reads it back, and then removes checkpoints that are neither among the last ones nor the
  /// best. `step` must be greater than every existing step. If this throws, the existing checkpoints are unchanged.
  Saved save(int64_t step, const CheckpointContent&);
  /// Replaces the manifest (as in CheckpointContent) and the metric of a saved checkpoint, for results that are known
  /// only after saving. The files do not change. Older checkpoints may then be removed. Throws what save() throws, and
  /// then leaves the checkpoint unchanged.
  Saved judge(int64_t step, const std::string& manifest, std::optional<double> metric);

  /// The newest checkpoint that passes verification, from which the run continues. Newer checkpoints are all damaged.
  /// They are renamed, so that the run can save these steps again.
  CheckpointSearch resume();
  /// Renames the checkpoints of later steps, so that the run can continue from `step`. Returns their new paths.
  std::vector<std::filesystem::path> set_aside_after(int64_t step);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace nacre
