#pragma once
// Selection of the held-out audio that an evaluation scores.
//
// Clips are taken in an order that spreads over the list, until they hold `seconds` of audio:
//   up to 30 s   the whole clip; the last one may exceed `seconds`
//   longer       one excerpt of 10 s. When every clip has been taken and there is still room, each long clip gets one
//                more excerpt per round, in the same order, as long as its excerpts do not overlap
// A clip with k excerpts is divided into k equal parts, and each excerpt lies in the middle of its part. The choice
// depends only on paths, lengths and `seconds`. Where nothing is held out, the training clips are used instead.
#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "nacre/data/dataset.h"

namespace nacre::training {

inline constexpr double longest_whole_clip = 30;  ///< seconds
inline constexpr double excerpt_seconds = 10;     ///< from each longer clip

struct Excerpt {
  int64_t clip = 0;    ///< index into Dataset::clips()
  int64_t offset = 0;  ///< first sample, at the model's rate
  int64_t samples = 0;  ///< per channel
  bool operator==(const Excerpt&) const = default;
};

/// Excerpts of one clip are adjacent and ordered by time. seconds = 0 selects every clip whole, whatever its length.
std::vector<Excerpt> judged_excerpts(const Dataset&, double seconds);
/// The total duration of the excerpts in seconds.
double total_seconds(const Dataset&, std::span<const Excerpt>);
/// The path for a whole clip, otherwise "path @ 95.0 s".
std::string excerpt_name(const Dataset&, const Excerpt&);

/// Gives the samples of a list of excerpts repeatedly. They are read from their files (Dataset::read) if the data set
/// is not in memory. If all excerpts together are small, they are kept after the first read.
class ExcerptReader {
 public:
  /// `between` is called often while a file is read, and may throw. The dataset must outlive the reader.
  ExcerptReader(const Dataset&, std::vector<Excerpt>, std::function<void()> between = {});
  const std::vector<Excerpt>& excerpts() const { return excerpts_; }
  /// The samples of excerpt i, channels interleaved. Throws what Dataset::read() throws.
  std::vector<float> samples(size_t i);

 private:
  const Dataset& data_;
  std::vector<Excerpt> excerpts_;
  std::function<void()> between_;
  std::vector<std::vector<float>> held_;
  bool keeps_all_ = false;
};

}  // namespace nacre::training
