#pragma once
// Frames of signals and their adjoint on the device, for stft.cu and spectral_loss.cu.
#include <vector>

#include "device.cuh"
#include "nacre/ops/stft.h"

namespace nacre::cuda {

struct Framing {
  int64_t batch, time, window, hop, frames;  ///< frames of one item
  bool reflect;
  const float* hann;  ///< [window]
};

/// Valid samples and counted frames of item b; all without lengths.
struct Counted {
  int64_t samples, frames;
};
__device__ __forceinline__ Counted counted(const Framing& g, const int32_t* lengths, int64_t b) {
  if (lengths == nullptr) return {g.time, g.frames};
  const int64_t n = lengths[b], valid = n < 0 ? 0 : n < g.time ? n : g.time;
  return {valid, valid == g.time ? g.frames : (valid + g.hop - 1) / g.hop};
}

/// rows [signals][batch][frames][window] <- hann x the frames of one or two signals (the second may be null); samples
/// behind an item's length and frames that do not count are zero.
void make_frames(Context&, const Framing&, const float* first, const float* second, const int32_t* lengths, float* rows);

/// dx [batch][time] = or += hann x rows [batch][frames][window], added up where they came from, for one or two signals.
struct Overlap {
  const float* rows;
  float* dx;
  bool add;
};
void add_frames(Context&, const Framing&, const Overlap& first, const Overlap& second, const int32_t* lengths);

template <class T>
T* pointer(const Memory& m) {
  return reinterpret_cast<T*>(m.data());
}
/// A table on the device.
template <class T>
Memory table(Context& ctx, const std::vector<T>& content) {
  Memory m(ctx, content.size() * sizeof(T));
  if (!content.empty())
    ctx.write<T>(content, View<T>(pointer<T>(m), {.channels = static_cast<int64_t>(content.size())}));
  return m;
}

}  // namespace nacre::cuda
