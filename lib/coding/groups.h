#pragma once
// Channels of a file and the groups of them that a codec codes together (CodecConfig::audio_channels).
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "nacre/files/stream.h"

namespace nacre::training {

/// Channels of a file: as many as the codec takes, or fewer in the last group.
struct ChannelGroup {
  size_t first = 0, count = 0;
};
ChannelGroup group_of(const StreamHeader&, uint32_t group);

/// Signals of `joint` channels for the codec, from the samples of all channels of a file. Of a group with fewer
/// channels, the last channel is there several times.
std::vector<float> signals_of(std::span<const float> interleaved, size_t channels, ChannelGroup, size_t joint,
                              float gain);
/// The way back: the mean of the signals that stand for one channel. Returns the argument itself if all have one each.
std::span<const float> channels_of(std::span<const float> signals, size_t joint, size_t count, std::vector<float>& out);

/// Interleaves the channels of groups that arrive one after the other, and scales them.
class Interleaver {
 public:
  explicit Interleaver(const StreamHeader&);
  /// Samples of one group that wait, with its channels interleaved.
  std::vector<float>& group(uint32_t g) { return waiting_[g].samples; }
  /// The samples that all channels have, except the last `keep_back` ones, and none past `end`. Valid until the next
  /// call.
  std::span<const float> take(int64_t keep_back, int64_t end);
  /// The rest. Missing samples are silence.
  std::span<const float> finish(int64_t end);
  int64_t taken() const { return taken_; }

 private:
  struct Waiting {
    ChannelGroup channels;
    std::vector<float> samples = {};
  };
  std::vector<Waiting> waiting_;
  std::vector<float> piece_;
  size_t channels_;
  float gain_;
  int64_t taken_ = 0;
};

}  // namespace nacre::training
