#pragma once
// Which parts of the held-out audio an evaluation listens to.
//
// Clips are taken in an order that spreads over the list, until `seconds` of audio are full:
//   up to 30 s   whole, so the last one may exceed `seconds`
//   longer       by one excerpt of 10 s. When every clip has been taken and there is still room, the long ones get one more
//                excerpt each, in the same order, again and again, as long as their excerpts do not overlap
// A clip with k excerpts is divided into k equal parts, and each excerpt lies in the middle of its part. The choice depends on
// nothing but paths, lengths and `seconds`. Where nothing is held out, all of this is done with the training clips.
#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "nacre/data/dataset.h"

namespace nacre::training {

inline constexpr double longest_whole_clip = 30;  ///< seconds
inline constexpr double excerpt_seconds = 10;     ///< of a longer one

struct Excerpt {
  int64_t clip = 0;    ///< index into Dataset::clips()
  int64_t offset = 0;  ///< first sample, at the model's rate
  int64_t samples = 0;
  bool operator==(const Excerpt&) const = default;
};

/// Those of one clip are neighbours, in order of time. seconds = 0: every clip, whole, whatever its length.
std::vector<Excerpt> judged_excerpts(const Dataset&, double seconds);
/// Their samples, all together, in seconds.
double total_seconds(const Dataset&, std::span<const Excerpt>);
/// The path for a whole clip, else "path @ 95.0 s".
std::string excerpt_name(const Dataset&, const Excerpt&);

/// The samples of a list of excerpts, again and again: read from their files (Dataset::read) where the data is not in memory,
/// and kept from then on if all of them are few.
class ExcerptReader {
 public:
  /// `between` is called often while a file is read, and may throw. The dataset must outlive the reader.
  ExcerptReader(const Dataset&, std::vector<Excerpt>, std::function<void()> between = {});
  const std::vector<Excerpt>& excerpts() const { return excerpts_; }
  /// Of excerpt i. Throws as Dataset::read().
  std::vector<float> samples(size_t i);

 private:
  const Dataset& data_;
  std::vector<Excerpt> excerpts_;
  std::function<void()> between_;
  std::vector<std::vector<float>> held_;
  bool keeps_all_ = false;
};

}  // namespace nacre::training
