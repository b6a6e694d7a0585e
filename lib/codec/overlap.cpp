// Weighted overlap-add. With w[n] = 1/2 - |t - 1/2|, t = (n + 1) / (L + 1), and a_i the segments, sample n of the
// output is
//
//   sum over i of w[n - i stride] a_i[n - i stride]  /  sum over i of w[n - i stride]
//
// over the segments i that contain n. Both sums are kept from the first sample that has not been returned; the next
// segment begins there, so its sample 0 is element 0 of both. A shorter segment uses the first of the L weights.
#include "codec/overlap.h"

#include <algorithm>
#include <cmath>

namespace nacre {

std::span<const float> OverlapAdd::add(std::span<const float> samples) {
  const int64_t count = static_cast<int64_t>(samples.size()) / channels_;
  // L is the length of the first segment. A signal of one short segment is divided by its own weights, which cancel.
  if (weights_.empty()) {
    weights_.resize(static_cast<size_t>(count));
    for (int64_t n = 0; n < count; ++n) {
      const double t = static_cast<double>(n + 1) / static_cast<double>(count + 1);
      weights_[static_cast<size_t>(n)] = static_cast<float>(0.5 - std::fabs(t - 0.5));
    }
  }
  const auto longest = std::max(sums_weight_.size(), static_cast<size_t>(count));
  sums_weight_.resize(longest, 0.0f);
  sums_.resize(longest * static_cast<size_t>(channels_), 0.0f);
  for (int64_t n = 0; n < count; ++n) {
    const float weight = weights_[static_cast<size_t>(n)];
    sums_weight_[static_cast<size_t>(n)] += weight;
    for (int64_t c = 0; c < channels_; ++c) {
      const auto at = static_cast<size_t>(n * channels_ + c);
      sums_[at] += weight * samples[at];
    }
  }
  // No later segment begins before sample `stride` of this one. At the end of the signal a segment may be shorter.
  return take(std::min(stride_, count));
}

std::span<const float> OverlapAdd::finish() { return take(static_cast<int64_t>(sums_weight_.size())); }

/// Divides the first samples by their weights, moves them out of the sums, and returns them. All weights are positive.
std::span<const float> OverlapAdd::take(int64_t samples) {
  complete_.resize(static_cast<size_t>(samples * channels_));
  for (int64_t n = 0; n < samples; ++n)
    for (int64_t c = 0; c < channels_; ++c) {
      const auto at = static_cast<size_t>(n * channels_ + c);
      complete_[at] = sums_[at] / sums_weight_[static_cast<size_t>(n)];
    }
  sums_weight_.erase(sums_weight_.begin(), sums_weight_.begin() + samples);
  sums_.erase(sums_.begin(), sums_.begin() + samples * channels_);
  return complete_;
}

}  // namespace nacre
