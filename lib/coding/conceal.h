#pragma once
// Concealment of lost frames in decoded audio, and the account of what was lost.
#include <cstdint>
#include <deque>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "nacre/files/stream.h"

namespace nacre::training {

/// The gain of audio around lost frames: 1, falling to 0 within 60 ms of a loss, 0 until the loss ends, rising to 1
/// within 20 ms behind it. Both ways are half a period of a cosine, from the gain that was reached. Before the first
/// frame that is there, the gain is 0.
class LossEnvelope {
 public:
  explicit LossEnvelope(int rate);
  /// Says for the next samples of the signal whether they are lost.
  void add(int64_t samples, bool lost);
  /// Passes the next samples, which add() knows, without their audio.
  void skip(int64_t samples);
  /// Multiplies the next samples by the gain. A gain of 1 changes no bit.
  void apply(std::span<float> interleaved, size_t channels = 1);

 private:
  struct Run {
    int64_t samples;
    bool lost;
  };
  float gain_at(int64_t elapsed) const;
  template <class F>
  void pass(int64_t samples, F&& each);

  int64_t fall_, rise_;              // samples
  std::deque<Run> runs_;             // added and not yet passed
  bool lost_ = false, any_ = false;  // of the run that is being passed; whether any was
  float start_ = 1;                  // the gain when that run began
  int64_t elapsed_ = 0;              // of that run
};

/// Collects lost packets. Times are those of the whole stream.
class LossAccount {
 public:
  void add(const StreamPacket&);
  /// Lost times that meet [from, to), in frames, joined over packets and channels. The time of a segment ends where the
  /// next one begins.
  struct Lost {
    int64_t frames = 0;
    std::vector<std::pair<double, double>> seconds = {};
  };
  Lost within(double from, double to, const StreamHeader&) const;

 private:
  std::vector<std::pair<uint64_t, uint64_t>> ranges_;  // of frames
};

/// One line each for what was lost, for a stream without a closing packet and for bytes behind it.
std::vector<std::string> loss_warnings(const LossAccount::Lost&, const StreamReader&);

}  // namespace nacre::training
