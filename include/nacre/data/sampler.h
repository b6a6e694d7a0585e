#pragma once
// Selection of the audio crops of a training step, and threads that read them in advance.
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "nacre/data/dataset.h"

namespace nacre::training {

struct Crop {
  int64_t clip = 0;    ///< index into Dataset::clips()
  int64_t offset = 0;  ///< first sample
  int64_t length = 0;  ///< number of samples: the segment, or the whole clip if that is shorter
  bool operator==(const Crop&) const = default;
};

/// Random crops. Clips are drawn in proportion to their duration, offsets uniformly. at() is a pure function of (seed,
/// step, index, attempt), so that the crops do not depend on the number of threads or on where training was resumed.
class CropSampler {
 public:
  /// Draws from the training part of the dataset.
  CropSampler(const Dataset&, int64_t segment, int64_t batch, uint64_t seed);
  /// Draws clip i with weight lengths[i].
  CropSampler(std::vector<int64_t> clips, std::span<const int64_t> lengths, int64_t segment, int64_t batch,
              uint64_t seed);

  /// A higher `attempt` gives another draw, for use when the file of the previous one cannot be read.
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

class NoiseMixer;  // nacre/data/noise.h

struct Batch {
  int64_t step = 0;
  std::vector<float> samples;  ///< [batch, segment, channels]; zero after the end of a shorter clip
  std::vector<Crop> crops;     ///< the first crops[i].length samples of row i are audio
  std::vector<BadFile> lost;   ///< files that were drawn and could not be read; other draws replace them
  std::vector<float> targets;  ///< as samples: what the output is compared with; empty without noise
  /// 1 for an item whose target is the clean speech, 0 for one whose target is its input; empty without noise.
  std::vector<int32_t> clean_target;
};

/// Fills one batch; a Prefetcher gives the same batch. If a file can no longer be read, the crop is drawn again. Throws
/// Error(io) if a hundred draws in a row meet such files. A mixer adds noise and sets the targets; the crops of speech
/// are the same with and without it.
void fill_batch(const Dataset&, const CropSampler&, int64_t step, Batch&, const NoiseMixer* = nullptr);

struct PrefetchOptions {
  int64_t first_step = 0;
  int threads = 2;
  int depth = 4;  ///< batches filled ahead of the one in use
};

/// Threads that fill batches in advance. Batches are delivered in order of step, whatever the number of threads.
/// Dataset, sampler and mixer must outlive the Prefetcher.
class Prefetcher {
 public:
  Prefetcher(const Dataset&, const CropSampler&, PrefetchOptions = {}, const NoiseMixer* = nullptr);
  ~Prefetcher();
  Prefetcher(const Prefetcher&) = delete;
  Prefetcher& operator=(const Prefetcher&) = delete;

  /// The batch of the next step, valid until the next call. An error of fill_batch is thrown here, and again by each
  /// later call.
  const Batch& next();

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace nacre::training
