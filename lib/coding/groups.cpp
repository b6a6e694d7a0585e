// From channels of a file to the signals that the codec takes, and back. A group with `count` channels and a codec of
// `joint` signals: signal j is channel min(j, count - 1), and the last channel is the mean of signals count - 1 to
// joint - 1. The way there and back gives every channel itself if the codec changes nothing.
#include "coding/groups.h"

#include <algorithm>

namespace nacre::training {

ChannelGroup group_of(const StreamHeader& h, uint32_t group) {
  const size_t first = size_t{group} * h.joint;
  return {.first = first, .count = std::min<size_t>(h.joint, h.channels - first)};
}

std::vector<float> signals_of(std::span<const float> interleaved, size_t channels, ChannelGroup group, size_t joint,
                              float gain) {
  const size_t frames = interleaved.size() / channels;
  std::vector<float> out(frames * joint);
  for (size_t t = 0; t < frames; ++t)
    for (size_t j = 0; j < joint; ++j)
      out[t * joint + j] = gain * interleaved[t * channels + group.first + std::min(j, group.count - 1)];
  return out;
}

std::span<const float> channels_of(std::span<const float> signals, size_t joint, size_t count,
                                   std::vector<float>& out) {
  if (count == joint) return signals;
  // The first `alone` channels have one signal each, the last one has the others.
  const size_t frames = signals.size() / joint, alone = count - 1;
  const float part = 1.0f / static_cast<float>(joint - alone);
  out.resize(frames * count);
  for (size_t t = 0; t < frames; ++t) {
    std::copy_n(signals.begin() + static_cast<std::ptrdiff_t>(t * joint), alone,
                out.begin() + static_cast<std::ptrdiff_t>(t * count));
    float sum = 0;
    for (size_t j = alone; j < joint; ++j) sum += signals[t * joint + j];
    out[t * count + alone] = part * sum;
  }
  return out;
}

Interleaver::Interleaver(const StreamHeader& h) : channels_(h.channels), gain_(h.gain) {
  for (uint32_t g = 0; g < h.groups(); ++g) waiting_.push_back({.channels = group_of(h, g)});
}

std::span<const float> Interleaver::take(int64_t keep_back, int64_t end) {
  // Groups arrive packet by packet, so some are ahead of others.
  size_t ready = waiting_[0].samples.size() / waiting_[0].channels.count;
  for (const Waiting& w : waiting_) ready = std::min(ready, w.samples.size() / w.channels.count);
  const auto n =
      static_cast<size_t>(std::max<int64_t>(0, std::min(static_cast<int64_t>(ready) - keep_back, end - taken_)));
  piece_.resize(n * channels_);
  if (n == 0) return {};
  for (Waiting& w : waiting_) {
    const size_t count = w.channels.count;
    for (size_t t = 0; t < n; ++t)
      for (size_t c = 0; c < count; ++c)
        piece_[t * channels_ + w.channels.first + c] = gain_ * w.samples[t * count + c];
    // What is kept back, and what other groups do not have yet, stays.
    w.samples.erase(w.samples.begin(), w.samples.begin() + static_cast<std::ptrdiff_t>(n * count));
  }
  taken_ += static_cast<int64_t>(n);
  return piece_;
}

// A stream may lack two samples that the length has, because of rounding in the resampler (docs/format.md).
std::span<const float> Interleaver::finish(int64_t end) {
  for (Waiting& w : waiting_) {
    const size_t lacking = static_cast<size_t>(std::max<int64_t>(0, end - taken_)) * w.channels.count;
    if (w.samples.size() < lacking) w.samples.resize(lacking, 0.0f);
  }
  return take(0, end);
}

}  // namespace nacre::training
