#pragma once
// Padding of signals on both sides, and the adjoint: overlap-add of frames, with the padding folded back. Used by stft
// and spectral_loss on the CPU.
#include <algorithm>

#include "nacre/ops/stft.h"

namespace nacre {

/// Samples that frame 0 has before the signal: frame f starts at f hop - stft_lead.
inline int64_t stft_lead(const StftGeometry& g) { return g.inside ? 0 : (g.aligned ? g.window - g.hop : g.window) / 2; }
/// Padding behind the signal. No frame reaches further past its end.
inline int64_t stft_trail(int64_t time, const StftGeometry& g) {
  if (g.inside) return 0;
  if (!g.aligned) return g.window / 2;
  return std::max<int64_t>((stft_frames(time, g) - 1) * g.hop - stft_lead(g) + g.window - time, 0);
}

/// Layout of padded signals, one after the other: `left` samples, the signal, `right` samples.
struct PaddedSignals {
  int64_t batch = 0, time = 0, left = 0, right = 0;
  StftPadding padding = StftPadding::reflect;
  int64_t stride() const { return left + time + right; }
  int64_t elements() const { return batch * stride(); }
};

/// Index of the sample that position i of a reflected signal repeats. Reflections do not repeat the ends; there may be
/// several.
int64_t reflected(int64_t i, int64_t time);

/// Valid samples of item b: all without lengths, else lengths[b] clamped to [0, time].
int64_t valid_samples(View<const int32_t> lengths, int64_t b, int64_t time);

/// to [batch][stride] = x [batch][time] with padding; samples from an item's length on are zero.
void pad_signals(const Context&, const PaddedSignals&, const float* x, View<const int32_t> lengths, float* to);

/// Pads the right side of padded signals again: `trail` samples of padding, then zeros.
void pad_right(const Context&, const PaddedSignals&, int64_t trail, float* padded);

/// sum [batch][stride] += the frames (rows of `window`). Item b has rows first[b] .. first[b + 1] - 1; its frame f
/// starts at f hop - lead. Nothing is added from position `trail` past the signal on. Each sample adds its frames in
/// ascending order.
void overlap_add(const Context&, const PaddedSignals&, const float* frames, const int64_t* first, int64_t window,
                 int64_t hop, int64_t lead, int64_t trail, float* sum);

/// dx [batch][time] = or += sum with its padding folded back; zero from the item's length on.
void fold_padding(const Context&, const PaddedSignals&, const float* sum, View<const int32_t> lengths, float* dx,
                  bool add);

}  // namespace nacre
