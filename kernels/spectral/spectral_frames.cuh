#pragma once
// Framing of signals and its adjoint on the device, for stft.cu and spectral_loss.cu.
#include <vector>

#include "runtime/device.cuh"
#include "spectral/spectral_plans.h"

namespace nacre::cuda {

/// Positions within an item, and its frames, fit 32 bits (the plans check longest_signal); everything else uses 64.
struct Framing {
  int64_t batch;
  int time, window, hop, frames;  ///< frames of one item
  int lead, trail;                ///< frame f starts at f hop - lead; samples from time + trail on are zero
  bool reflect;
  const float* hann;  ///< [window]
};
inline Framing framing(Shape signal, const StftGeometry& g, const float* hann) {
  const int64_t hop = g.hop < longest_signal ? g.hop : longest_signal;  // one frame if the hop exceeds the signal
  return {signal.batch,
          static_cast<int>(signal.time),
          static_cast<int>(g.window),
          static_cast<int>(hop),
          static_cast<int>(stft_frames(signal.time, g)),
          static_cast<int>(stft_lead(g)),
          static_cast<int>(stft_trail(signal.time, g)),
          g.padding == StftPadding::reflect && !g.inside,
          hann};
}

/// Valid samples and counted frames of an item; without lengths, all.
struct CountedPart {
  int samples, frames;
};
__device__ __forceinline__ CountedPart counted_part(const Framing& g, const int32_t* lengths, int64_t b) {
  if (lengths == nullptr) return {g.time, g.frames};
  const int n = lengths[b], valid = n < 0 ? 0 : n < g.time ? n : g.time;
  return {valid, valid == g.time ? g.frames : (valid + g.hop - 1) / g.hop};
}

/// As nacre::reflected. The first reflection avoids the division; more occur only in signals shorter than what
/// frames reach past their ends.
__device__ __forceinline__ int reflected(int i, int time) {
  if (i < 0) i = -i;
  if (i < time) return i;
  if (time == 1) return 0;
  const int period = 2 * (time - 1);
  if (i >= period) i %= period;
  return i < time ? i : period - i;
}
/// Sample t of an item; t may be in the padding. `limited`: t may be beyond the trail, where all is zero.
template <bool limited = false>
__device__ __forceinline__ float sample(const Framing& g, const CountedPart& c, const float* x, int t) {
  if constexpr (limited)
    if (t >= g.time + g.trail) return 0.0f;
  if (g.reflect) t = reflected(t, g.time);
  return t >= 0 && t < c.samples ? x[t] : 0.0f;
}

/// rows [signals][batch][frames][window] = hann x the frames of one or two signals (the second may be null). Samples
/// from an item's length on, and frames that do not count, are zero.
void make_frames(Context&, const Framing&, const float* first, const float* second, const int32_t* lengths,
                 float* rows);

/// Overlap-add for one or two signals, the adjoint of make_frames: dx [batch][time] = or += hann x rows
/// [batch][frames][window].
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
