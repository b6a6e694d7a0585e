#pragma once
// Joins decoded segments that overlap, as EnCodec does (Defossez et al. 2022, arXiv 2210.13438, published code;
// nacre/codec/windowed.h has the formula).
#include <cstdint>
#include <span>
#include <vector>

namespace nacre {

class OverlapAdd {
 public:
  /// stride: samples from one segment to the next.
  OverlapAdd(int64_t stride, int64_t channels) : stride_(stride), channels_(channels) {}
  /// Adds the next segment. Returns the samples in front of the one after it, which are complete; valid until the next
  /// call. A segment of fewer than `stride` samples can only be the last one.
  std::span<const float> add(std::span<const float> samples);
  /// The samples behind these, once the last segment has been added.
  std::span<const float> finish();

 private:
  std::span<const float> take(int64_t samples);

  int64_t stride_, channels_;
  std::vector<float> weights_;             // of the first segment's samples
  std::vector<float> sums_, sums_weight_;  // from the first sample that was not returned: per channel, per sample
  std::vector<float> complete_;
};

}  // namespace nacre
