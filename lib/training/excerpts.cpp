#include "nacre/training/excerpts.h"

#include <sys/stat.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <limits>

#include "nacre/training/audio.h"

namespace nacre::training {
namespace {

constexpr int64_t held_samples = int64_t{1} << 24;  // 64 MiB of what was read from long files
constexpr int64_t read_frames = 1 << 15;

const Clip& clip_of(const Dataset& data, const Excerpt& e) { return data.clips()[static_cast<size_t>(e.clip)]; }
int64_t samples_of(const Dataset& data, double seconds) { return std::llround(seconds * data.sample_rate()); }

/// Spread over the list: neighbours are often the same sentence or speaker.
std::vector<int64_t> spread_clips(const Dataset& data) {
  const std::vector<int64_t>& from = data.held_out().empty() ? data.training() : data.held_out();
  const size_t n = from.size(), stride = std::max<size_t>(1, n / 17) | 1;
  std::vector<int64_t> order;
  for (size_t first = 0; first < stride; ++first)
    for (size_t i = first; i < n; i += stride) order.push_back(from[i]);
  return order;
}

/// Mono, resampled and scaled, from the first sample on, until `sink` says that it has enough.
void stream_clip(const Dataset& data, const Clip& clip, const std::function<bool(std::span<const float>)>& sink) {
  const std::string path = data.folder() + "/" + clip.path;
  struct stat status {};
  if (::stat(path.c_str(), &status) == 0 &&
      (static_cast<uint64_t>(status.st_size) != clip.bytes ||
       static_cast<int64_t>(status.st_mtim.tv_sec) * 1000000000 + status.st_mtim.tv_nsec != clip.modified))
    throw Error(ErrorKind::input, path + ": changed since training began");
  AudioReader reader(path);
  const int channels = reader.info().channels;
  Resampler resampler(reader.info().sample_rate, data.sample_rate());
  std::vector<float> piece, ready;
  const auto give = [&] {
    for (float& v : ready) v *= clip.gain;
    const bool more = sink(ready);
    ready.clear();
    return more;
  };
  while (reader.read(read_frames, piece) > 0) {
    resampler.process(channels == 1 ? piece : to_mono(piece, channels), ready);
    if (!give()) return;
  }
  resampler.finish(ready);
  if (give()) throw Error(ErrorKind::input, path + ": changed since training began");  // it is shorter than it was
}

/// The part of `piece`, whose first sample is number `at` of the clip, that belongs to the excerpt.
std::span<const float> common(std::span<const float> piece, int64_t at, const Excerpt& e) {
  const int64_t from = std::clamp<int64_t>(e.offset - at, 0, static_cast<int64_t>(piece.size()));
  const int64_t to = std::clamp<int64_t>(e.offset + e.samples - at, from, static_cast<int64_t>(piece.size()));
  return piece.subspan(static_cast<size_t>(from), static_cast<size_t>(to - from));
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

void read_excerpt(const Dataset& data, const Excerpt& e, const std::function<void(std::span<const float>)>& sink) {
  const Clip& clip = clip_of(data, e);
  if (data.in_memory() || !is_long(data, clip)) {
    const Dataset::Samples all = data.load(e.clip);
    for (int64_t at = 0; at < e.samples; at += read_frames)
      sink(std::span(*all).subspan(static_cast<size_t>(e.offset + at),
                                   static_cast<size_t>(std::min(read_frames, e.samples - at))));
    return;
  }
  int64_t at = 0;
  stream_clip(data, clip, [&](std::span<const float> piece) {
    if (const auto part = common(piece, at, e); !part.empty()) sink(part);
    at += static_cast<int64_t>(piece.size());
    return at < e.offset + e.samples;
  });
}

ExcerptReader::ExcerptReader(const Dataset& data, std::vector<Excerpt> excerpts, std::function<void()> between)
    : data_(data), excerpts_(std::move(excerpts)), between_(std::move(between)), held_(excerpts_.size()) {
  int64_t samples = 0;
  for (const Excerpt& e : excerpts_)
    if (streamed(e)) samples += e.samples;
  keeps_all_ = samples <= held_samples;
}

bool ExcerptReader::streamed(const Excerpt& e) const { return !data_.in_memory() && is_long(data_, clip_of(data_, e)); }

std::vector<float> ExcerptReader::samples(size_t i) {
  const Excerpt& e = excerpts_.at(i);
  if (!streamed(e)) {
    const Dataset::Samples all = data_.load(e.clip);
    const auto from = all->begin() + e.offset;
    return {from, from + e.samples};
  }
  if (held_[i].empty()) read_from(i);
  return keeps_all_ ? held_[i] : std::move(held_[i]);
}

/// Excerpt `first`, and with it later ones of the same clip, as many as may be held.
void ExcerptReader::read_from(size_t first) {
  std::vector<size_t> wanted;
  int64_t samples = 0, end = 0;
  for (size_t i = first; i < excerpts_.size(); ++i) {
    const Excerpt& e = excerpts_[i];
    if (e.clip != excerpts_[first].clip || !held_[i].empty()) continue;
    if (i > first && samples + e.samples > held_samples) break;
    wanted.push_back(i);
    samples += e.samples;
    end = std::max(end, e.offset + e.samples);
  }
  std::vector<std::vector<float>> found(wanted.size());
  int64_t at = 0;
  stream_clip(data_, clip_of(data_, excerpts_[first]), [&](std::span<const float> piece) {
    if (between_) between_();
    for (size_t k = 0; k < wanted.size(); ++k) {
      const auto part = common(piece, at, excerpts_[wanted[k]]);
      found[k].insert(found[k].end(), part.begin(), part.end());
    }
    at += static_cast<int64_t>(piece.size());
    return at < end;
  });
  for (size_t k = 0; k < wanted.size(); ++k) held_[wanted[k]] = std::move(found[k]);
}

}  // namespace nacre::training
