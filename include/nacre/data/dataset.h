#pragma once
// A folder of audio as training material: every file is opened, decoded and checked once, before training begins, so
// that a bad one is named at the start and not met at night.
//
// What the model sees of a file: nacre/data/material.h. The gain is per file, whichever part of it is used.
//
// Held out: the files of `held_out` if that is not empty; else the files under folders that are named as held-out ones are:
// valid, validation, val, dev, eval, test, heldout, held_out or held-out, in any case, alone or in front of '-' or '_'
// (dev-clean); else valid_fraction of the files, at least one when there are two or more, picked by a hash of their path
// below the folder, so that neither the seed nor the place of the folder moves a file across. A model is judged while it
// trains by the held-out files; where there are folders for that, those under `test` are left out of both.
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

struct Clip {
  std::string path;      ///< below the folder, '/' between its parts
  uint64_t bytes = 0;    ///< size of the file
  int64_t modified = 0;  ///< its time of modification, nanoseconds
  int64_t frames = 0;    ///< in the file
  int sample_rate = 0;   ///< in the file
  int channels = 0;      ///< in the file
  int64_t samples = 0;   ///< after resampling
  float gain = 1;        ///< of the peak normalisation
  int channel = -1;      ///< that is taken alone; -1: the mean of all
  bool exact_header = false;
  bool held_out = false;
  bool left_out = false;  ///< neither trained on nor judged by
};

struct DatasetOptions {
  int sample_rate = 16000;
  /// Shorter files are bad: one hop of the model. After resampling.
  int64_t min_samples = 1;
  double valid_fraction = 0.05;
  /// Files or folders below the data folder that are the held-out part.
  std::vector<std::string> held_out = {};
  /// False: a folder's name says nothing, all folders are trained on but for valid_fraction.
  bool held_out_folders = true;
  /// Take what is whole of damaged files (nacre/data/audio.h).
  bool salvage = false;
  /// More bad files than both of these stop everything.
  int64_t max_bad_files = 10;
  double max_bad_fraction = 0.01;
  /// Decoded audio is kept in memory up to this; beyond it, files are decoded again when needed (least recently used
  /// leave first).
  uint64_t cache_bytes = uint64_t{4} << 30;
  int threads = 0;  ///< for the scan; 0 takes as many as usable_cores() says
  /// Called from the scan, never twice at the same time: files done, files in all.
  std::function<void(int64_t, int64_t)> progress = {};
};

/// Immutable once made; load() may be called from any number of threads.
class Dataset {
 public:
  /// Throws Error(input) when the folder has no audio, when nothing usable is left, or when too many files are bad.
  Dataset(std::string folder, DatasetOptions);
  Dataset(Dataset&&) noexcept;
  Dataset& operator=(Dataset&&) noexcept;
  ~Dataset();

  const std::string& folder() const;
  /// In order of path.
  const std::vector<Clip>& clips() const;
  /// Indices into clips().
  const std::vector<int64_t>& training() const;
  const std::vector<int64_t>& held_out() const;
  /// In order of path; each file once.
  const std::vector<BadFile>& bad() const;
  /// Files that are used although something is wrong with them, in order of path.
  const std::vector<BadFile>& warned() const;
  /// The folders whose name made them held out, and left out, below the data folder, in order.
  const std::vector<std::string>& held_out_folders() const;
  const std::vector<std::string>& left_out_folders() const;
  /// Files whose name says that they are not audio, and hidden ones.
  int64_t ignored_files() const;
  double training_seconds() const;
  double held_out_seconds() const;
  /// True if all decoded audio fits in cache_bytes.
  bool in_memory() const;
  int sample_rate() const;
  /// Of the list: path, size, frames, rate and part of every file, and the model's rate. Copying a folder keeps it.
  uint64_t fingerprint() const;

  using Samples = std::shared_ptr<const std::vector<float>>;
  /// Mono, resampled, normalised. Throws Error(input) if the file is no longer what it was at the scan.
  Samples load(int64_t clip) const;
  /// Samples [offset, offset + to.size()) of that. Where all fits in memory, from there; else by decoding about as much,
  /// whether the clip is in the cache or not, so that the samples do not depend on what was used before.
  void read(int64_t clip, int64_t offset, std::span<float> to) const;
  /// The same piece by piece, in memory that does not depend on n. `check` is called between pieces of what is decoded, and
  /// may throw.
  void read(int64_t clip, int64_t offset, int64_t n, const SampleSink&, const std::function<void()>& check = {}) const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

/// "60 files, 1 h 2 min to train on; 4 files, 3 min held out (valid/); 10 files left out (test/)"
std::string describe_parts(const Dataset&);

/// "3 of 120 files skipped:\n  a.wav: truncated: ...\n  and 1 more": at most `most` names.
std::string describe_bad(const std::vector<BadFile>&, int64_t files, size_t most = 10);

/// Names that are taken for audio: .wav .flac .ogg .opus .mp3 .aiff ..., and .m4a .aac .wma ..., which libsndfile
/// cannot read and which are therefore reported.
bool has_audio_extension(const std::string& path);

}  // namespace nacre::training
