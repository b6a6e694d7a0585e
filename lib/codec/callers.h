#pragma once
// Checks of public calls: one object used by two threads at once, values that no model accepts, failed allocations.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <new>
#include <span>
#include <string>

#include "nacre/error.h"
#include "nacre/systems/codec_config.h"

namespace nacre {

/// Marks an object as in use. Throws Error(usage) if another thread is inside a call on the same object, and for a call
/// from within a call, such as one by a sink. It detects misuse and does not wait. Acquire and release let a thread see
/// what the call before it wrote, if callers take turns.
class InUse {
 public:
  InUse(std::atomic<bool>& flag, const char* call, const char* object) : flag_(flag) {
    if (flag_.exchange(true, std::memory_order_acquire))
      throw Error(ErrorKind::usage, std::string(call) + ": another call is using this " + object +
                                        "; expected one call at a time, or one " + object +
                                        " per thread (they may share a Context)");
  }
  ~InUse() { flag_.store(false, std::memory_order_release); }
  InUse(const InUse&) = delete;
  InUse& operator=(const InUse&) = delete;

 private:
  std::atomic<bool>& flag_;
};

/// Calls f() and turns its failed allocations on the host into Error(memory). Those of a device throw it themselves.
template <class F>
auto within_memory(const char* call, F&& f) {
  try {
    return f();
  } catch (const std::bad_alloc&) {
    throw Error(ErrorKind::memory,
                std::string(call) + ": out of memory; use shorter windows, a smaller batch or model");
  }
}

/// `first`: number of the first sample in the message.
inline void expect_finite(const char* call, std::span<const float> samples, int64_t first = 0) {
  const auto bad = std::find_if(samples.begin(), samples.end(), [](float s) { return !std::isfinite(s); });
  if (bad != samples.end())
    throw Error(ErrorKind::usage, std::string(call) + ": sample " + std::to_string(first + (bad - samples.begin())) +
                                      " is " + std::to_string(*bad) + ", expected finite values");
}

/// Samples of `channels` interleaved channels: finite ones, and as many of every channel.
inline void expect_samples(const char* call, std::span<const float> samples, int64_t channels) {
  if (static_cast<int64_t>(samples.size()) % channels != 0)
    throw Error(ErrorKind::usage, std::string(call) + ": " + std::to_string(samples.size()) +
                                      " values are not whole samples of " + std::to_string(channels) + " channels");
  expect_finite(call, samples);
}

/// Marks an object as broken while a call changes it, and for good if the call throws: only done() clears the mark, and
/// there is no destructor that would. Throws Error(usage) for an object that is broken. `instead`: what the message
/// advises.
class Changing {
 public:
  Changing(bool& broken, const char* call, const char* instead) : broken_(broken) {
    if (broken_)
      throw Error(ErrorKind::usage, std::string(call) + ": an earlier call failed, and the signal is incomplete; " +
                                        "expected " + instead);
    broken_ = true;
  }
  void done() { broken_ = false; }

 private:
  bool& broken_;
};

/// The scale of a segment. NaN is not above 0 either.
inline void expect_scale(const char* call, float scale) {
  if (!(scale > 0) || !std::isfinite(scale))
    throw Error(ErrorKind::usage,
                std::string(call) + ": a scale of " + std::to_string(scale) + ", expected a positive, finite number");
}

/// Codes in 0 ... codebook_size - 1. The message has the index of the first one that is not.
inline void expect_codes(const char* call, std::span<const int32_t> codes, const CodecConfig& config) {
  const auto bad = std::find_if(codes.begin(), codes.end(),
                                [&](int32_t c) { return c < 0 || static_cast<int64_t>(c) >= config.codebook_size; });
  if (bad != codes.end())
    throw Error(ErrorKind::usage, std::string(call) + ": code " + std::to_string(bad - codes.begin()) + " is " +
                                      std::to_string(*bad) + ", expected 0 to " +
                                      std::to_string(config.codebook_size - 1));
}

}  // namespace nacre
