// Which parts of the held-out files are judged, and reading of them. The choice depends on the data set and the time
// limit alone, so all evaluations of a run judge the same audio.
#include "nacre/data/excerpts.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <limits>

namespace nacre::training {
namespace {

constexpr int64_t held_samples = int64_t{1} << 24;  // of all channels, 64 MiB

const Clip& clip_of(const Dataset& data, const Excerpt& e) { return data.clips()[static_cast<size_t>(e.clip)]; }
int64_t samples_of(const Dataset& data, double seconds) { return std::llround(seconds * data.sample_rate()); }

/// An order that spreads over the list, because neighbours often have the same sentence or speaker.
std::vector<int64_t> spread_clips(const Dataset& data) {
  const std::vector<int64_t>& from = data.held_out().empty() ? data.training() : data.held_out();
  // About 17 places over the whole list, then their neighbours. An odd stride does not keep step with lists that
  // alternate.
  const size_t n = from.size(), stride = std::max<size_t>(1, n / 17) | 1;
  std::vector<int64_t> order;
  for (size_t first = 0; first < stride; ++first)
    for (size_t i = first; i < n; i += stride) order.push_back(from[i]);
  return order;
}

bool is_long(const Dataset& data, const Clip& clip) { return clip.samples > samples_of(data, longest_whole_clip); }

}  // namespace

std::vector<Excerpt> judged_excerpts(const Dataset& data, double seconds) {
  const std::vector<int64_t> order = spread_clips(data);
  const int64_t piece = samples_of(data, excerpt_seconds);
  const auto samples = [&](size_t i) { return data.clips()[static_cast<size_t>(order[i])].samples; };
  const auto is_excerpted = [&](size_t i) {
    return seconds > 0 && is_long(data, data.clips()[static_cast<size_t>(order[i])]);
  };
  // First every file gets one part, in spread order, until the time is used up. Then long files get further parts in
  // turn, as long as their parts do not overlap.
  double left = seconds > 0 ? seconds : std::numeric_limits<double>::infinity();
  const auto take = [&](int64_t n) { left -= static_cast<double>(n) / data.sample_rate(); };
  std::vector<int64_t> parts(order.size(), 0);
  size_t taken = 0;
  for (; taken < order.size() && left > 0; ++taken) {
    parts[taken] = 1;
    take(is_excerpted(taken) ? piece : samples(taken));
  }
  for (bool any = true; any && left > 0;) {
    any = false;
    for (size_t i = 0; i < taken && left > 0; ++i)
      if (is_excerpted(i) && (parts[i] + 1) * piece <= samples(i)) {
        ++parts[i];
        take(piece);
        any = true;
      }
  }
  std::vector<Excerpt> list;
  for (size_t i = 0; i < taken; ++i)
    for (int64_t k = 0; k < parts[i]; ++k)
      // The middles of `parts` equal sections of the file.
      list.push_back(is_excerpted(i) ? Excerpt{order[i], (2 * k + 1) * samples(i) / (2 * parts[i]) - piece / 2, piece}
                                     : Excerpt{order[i], 0, samples(i)});
  return list;
}

double total_seconds(const Dataset& data, std::span<const Excerpt> excerpts) {
  int64_t samples = 0;
  for (const Excerpt& e : excerpts) samples += e.samples;
  return static_cast<double>(samples) / data.sample_rate();
}

std::string excerpt_name(const Dataset& data, const Excerpt& e) {
  const Clip& clip = clip_of(data, e);
  if (e.offset == 0 && e.samples == clip.samples) return clip.path;
  char at[48];
  std::snprintf(at, sizeof at, " @ %.1f s", static_cast<double>(e.offset) / data.sample_rate());
  return clip.path + at;
}

ExcerptReader::ExcerptReader(const Dataset& data, std::vector<Excerpt> excerpts, std::function<void()> between)
    : data_(data), excerpts_(std::move(excerpts)), between_(std::move(between)), held_(excerpts_.size()) {
  int64_t samples = 0;
  for (const Excerpt& e : excerpts_) samples += e.samples;
  // All or nothing: a cache of a part would be of little use, since every evaluation reads all excerpts in order.
  keeps_all_ = !data_.in_memory() && samples * data_.channels() <= held_samples;
}

std::vector<float> ExcerptReader::samples(size_t i) {
  const Excerpt& e = excerpts_.at(i);
  if (!held_[i].empty()) return held_[i];
  std::vector<float> samples;
  samples.reserve(static_cast<size_t>(e.samples * data_.channels()));
  data_.read(
      e.clip, e.offset, e.samples, [&](std::span<const float> x) { samples.insert(samples.end(), x.begin(), x.end()); },
      between_);
  if (keeps_all_) held_[i] = samples;
  return samples;
}

}  // namespace nacre::training
