#pragma once
// A codec over whole signals, which windows, streams and batches are compared with.
#include <random>

#include "harness.h"
#include "nacre/codec/codec.h"

namespace nacre::test {

#if defined(NACRE_EMULATED)
inline constexpr bool emulated = true;
#else
inline constexpr bool emulated = false;
#endif

inline std::vector<float> noise(int64_t n, uint64_t salt) {
  std::mt19937_64 random(seed() + salt);
  std::uniform_real_distribution<float> uniform(-0.9f, 0.9f);
  std::vector<float> x(static_cast<size_t>(n));
  for (float& v : x) v = uniform(random);
  return x;
}

template <class T>
struct OnDevice {
  OnDevice(Context& ctx, Shape s)
      : memory(ctx, static_cast<size_t>(s.elements()) * sizeof(T)), view(reinterpret_cast<T*>(memory.data()), s) {}
  Memory memory;
  View<T> view;
};

/// The codes of one pass over the whole signal.
inline std::vector<int32_t> encoded_whole(Codec& codec, std::vector<float> x) {
  if (x.empty()) return {};
  const int64_t hop = codec.config().hop(), frames = (static_cast<int64_t>(x.size()) + hop - 1) / hop;
  x.resize(static_cast<size_t>(frames * hop), 0.0f);
  std::vector<int32_t> codes(static_cast<size_t>(frames * codec.config().codes_per_frame()));
  codec.reserve_inference(1, frames * hop);
  OnDevice<float> audio(codec.context(), {.time = frames * hop});
  OnDevice<int32_t> found(codec.context(), {.time = frames, .channels = codec.config().codes_per_frame()});
  codec.context().write<float>(x, audio.view);
  codec.encode(audio.view, found.view);
  codec.context().read<int32_t>(found.view, codes);
  return codes;
}
inline std::vector<float> decoded_whole(Codec& codec, const std::vector<int32_t>& codes) {
  if (codes.empty()) return {};
  const int64_t stages = codec.config().codes_per_frame(), frames = static_cast<int64_t>(codes.size()) / stages;
  std::vector<float> y(static_cast<size_t>(frames * codec.config().hop()));
  codec.reserve_inference(1, frames * codec.config().hop());
  OnDevice<int32_t> given(codec.context(), {.time = frames, .channels = stages});
  OnDevice<float> audio(codec.context(), {.time = frames * codec.config().hop()});
  codec.context().write<int32_t>(codes, given.view);
  codec.decode(given.view, audio.view);
  codec.context().read<float>(audio.view, y);
  return y;
}

}  // namespace nacre::test
