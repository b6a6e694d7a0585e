#pragma once
// A folder of audio as training material. Every file is opened, decoded and checked once before training begins, so
// that a bad file is reported at the start and does not stop training later.
//
// nacre/data/material.h defines the samples that the model gets from a file. The gain is computed per file, whichever
// part of the file is used.
//
// The held-out files are chosen by the first rule that applies:
// 1. `held_out`, if it is not empty.
// 2. Files below folders with a name for held-out data: valid, validation, val, dev, eval, test, heldout, held_out or
//    held-out, in any case, alone or followed by '-' or '_' (dev-clean).
// 3. valid_fraction of the files, at least one if there are two or more. A hash of the path below the folder selects
//    them, so that neither the seed nor the folder's location moves a file to the other part.
// The model is evaluated on the held-out files during training. Where other folders are held out by name, files below
// `test` are left out of both parts.
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "nacre/data/material.h"
#include "nacre/error.h"

namespace nacre::training {

struct BadFile {
  std::string path;
  std::string reason;
};

/// One audio file of the folder.
struct Clip {
  std::string path;      ///< relative to the folder, parts separated by '/'
  uint64_t bytes = 0;    ///< size of the file
  int64_t modified = 0;  ///< modification time in nanoseconds
  int64_t frames = 0;    ///< in the file
  int sample_rate = 0;   ///< in the file
  int channels = 0;      ///< in the file
  int64_t samples = 0;   ///< per channel, after resampling
  float gain = 1;        ///< gain of the peak normalisation
  int channel = -1;      ///< as in Material
  bool exact_header = false;
  bool held_out = false;
  bool left_out = false;  ///< used neither for training nor for evaluation
};

struct DatasetOptions {
  int sample_rate = 16000;
  int channels = 1;  ///< of the model, 1 or 2; samples are interleaved
  /// Shorter files are bad. In samples after resampling; usually one hop of the model.
  int64_t min_samples = 1;
  double valid_fraction = 0.05;
  /// Files or folders below the data folder that form the held-out part.
  std::vector<std::string> held_out = {};
  /// False: folder names are ignored, and valid_fraction of all files is held out.
  bool held_out_folders = true;
  /// Use the intact parts of damaged files (nacre/data/audio.h).
  bool salvage = false;
  /// The constructor throws if the bad files exceed both of these limits.
  int64_t max_bad_files = 10;
  double max_bad_fraction = 0.01;
  /// Up to this many bytes of decoded audio stay in memory. Beyond that, the least recently used clips are dropped and
  /// decoded again when they are needed.
  uint64_t cache_bytes = uint64_t{4} << 30;
  int threads = 0;  ///< for the scan; 0: usable_cores() threads
  /// Called during the scan with the number of finished files and of all files; calls never overlap.
  std::function<void(int64_t, int64_t)> progress = {};
};

/// Immutable after construction. load() may be called from any number of threads.
class Dataset {
 public:
  /// Throws Error(input) if the folder has no audio, if no usable file is left, or if too many files are bad.
  Dataset(std::string folder, DatasetOptions);
  Dataset(Dataset&&) noexcept;
  Dataset& operator=(Dataset&&) noexcept;
  ~Dataset();

  const std::string& folder() const;
  /// Ordered by path.
  const std::vector<Clip>& clips() const;
  /// Indices into clips().
  const std::vector<int64_t>& training() const;
  const std::vector<int64_t>& held_out() const;
  /// Ordered by path; each file appears once.
  const std::vector<BadFile>& bad() const;
  /// Files that are used in spite of a defect, ordered by path.
  const std::vector<BadFile>& warned() const;
  /// The folders that were held out or left out because of their names, relative to the data folder, in order.
  const std::vector<std::string>& held_out_folders() const;
  const std::vector<std::string>& left_out_folders() const;
  /// The number of hidden files and of files whose names do not have an audio extension.
  int64_t ignored_files() const;
  /// Durations of the two parts after resampling, in seconds.
  double training_seconds() const;
  double held_out_seconds() const;
  /// True if all decoded audio fits in cache_bytes.
  bool in_memory() const;
  int sample_rate() const;
  int channels() const;
  /// Hash of the path, size, frames, rate and part of every file, and of the model's rate and channels. A copy of the
  /// folder has the same fingerprint.
  uint64_t fingerprint() const;

  using Samples = std::shared_ptr<const std::vector<float>>;
  /// Resampled and normalised samples, the model's channels interleaved. Throws Error(input) if the file has changed
  /// since the scan.
  Samples load(int64_t clip) const;
  /// Samples [offset, offset + to.size() / channels()) of load(clip), of every channel. If all audio fits in memory,
  /// they are copied from there. Otherwise about as many samples are decoded, even if the clip is in the cache, so that
  /// the samples do not depend on earlier calls.
  void read(int64_t clip, int64_t offset, std::span<float> to) const;
  /// Delivers n samples of every channel piece by piece, in memory that does not depend on n. `check` is called between
  /// decoded pieces and may throw.
  void read(int64_t clip, int64_t offset, int64_t n, const SampleSink&, const std::function<void()>& check = {}) const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

/// "60 files, 1 h 2 min to train on; 4 files, 3 min held out (valid/); 10 files left out (test/)"
std::string describe_parts(const Dataset&);

/// "3 of 120 files skipped:\n  a.wav: truncated: ...\n  and 1 more". Lists at most `most` files.
std::string describe_bad(const std::vector<BadFile>&, int64_t files, size_t most = 10);

/// True for names with an audio extension: .wav .flac .ogg .opus .mp3 .aiff ..., and also .m4a .aac .wma ..., which
/// libsndfile cannot read. Files of the latter kinds are reported as bad.
bool has_audio_extension(const std::string& path);

}  // namespace nacre::training
