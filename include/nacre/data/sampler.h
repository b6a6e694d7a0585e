#pragma once
// Which pieces of audio a training step sees, and threads that fetch them ahead.
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "nacre/data/dataset.h"

namespace nacre::training {

struct Crop {
  int64_t clip = 0;    ///< index into Dataset::clips()
  int64_t offset = 0;  ///< first sample
  int64_t length = 0;  ///< samples taken: the segment, or the whole clip if that is shorter
  bool operator==(const Crop&) const = default;
};

/// Random crops, clips in proportion to their duration, offsets uniform. at() is a pure function of (seed, step,
/// index): neither threads nor where training was resumed can change it.
class CropSampler {
 public:
  /// Draws from the training part of the dataset.
  CropSampler(const Dataset&, int64_t segment, int64_t batch, uint64_t seed);
  /// Draws clip i with weight lengths[i].
  CropSampler(std::vector<int64_t> clips, std::span<const int64_t> lengths, int64_t segment, int64_t batch,
              uint64_t seed);

  /// Another attempt is another draw, for where the file of the one before cannot be read.
  Crop at(int64_t step, int64_t index, int64_t attempt = 0) const;
  int64_t segment() const { return segment_; }
  int64_t batch() const { return batch_; }
  /// ceil(samples / (batch x segment)), at least 1.
  int64_t steps_per_epoch() const;

 private:
  std::vector<int64_t> clips_, ends_;
  int64_t segment_, batch_;
  uint64_t seed_;
};

struct Batch {
  int64_t step = 0;
  std::vector<float> samples;  ///< [batch, segment]; zero behind a clip that is shorter
  std::vector<Crop> crops;     ///< crops[i].length samples of row i are audio
  std::vector<BadFile> lost;   ///< that were drawn and could not be read; others stand in
};

/// Fills one batch: what a prefetched one holds. Where a file cannot be read any more, the crop is drawn again; throws
/// Error(io) when a hundred draws in a row meet such files.
void fill_batch(const Dataset&, const CropSampler&, int64_t step, Batch&);

struct PrefetchOptions {
  int64_t first_step = 0;
  int threads = 2;
  int depth = 4;  ///< batches ahead of the one in use
};

/// Threads that fill batches ahead. Batches come in order of step whatever the number of threads. Dataset and sampler
/// must outlive it.
class Prefetcher {
 public:
  Prefetcher(const Dataset&, const CropSampler&, PrefetchOptions = {});
  ~Prefetcher();
  Prefetcher(const Prefetcher&) = delete;
  Prefetcher& operator=(const Prefetcher&) = delete;

  /// The next step's batch, valid until the next call. What fill_batch throws is thrown here, and again at each later call.
  const Batch& next();

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace nacre::training
