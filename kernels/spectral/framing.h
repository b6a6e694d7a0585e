#pragma once
// Signals with their padding on both sides, and the adjoint: frames added up over each other and the padding folded
// back. Used by stft and spectral_loss.
#include "nacre/ops/stft.h"

namespace nacre {

/// One padded signal after another: `pad` samples, the signal, `pad` samples.
struct PaddedSignals {
  int64_t batch = 0, time = 0, pad = 0;
  StftPadding padding = StftPadding::reflect;
  int64_t stride() const { return time + 2 * pad; }
  int64_t elements() const { return batch * stride(); }
};

/// Where sample i of a reflected signal comes from: back and forth over [0, time), the ends not repeated, as often as
/// needed.
int64_t reflected(int64_t i, int64_t time);

/// Valid samples of item b: all without lengths, else lengths[b] brought into [0, time].
int64_t valid_samples(View<const int32_t> lengths, int64_t b, int64_t time);

/// to [batch][stride] <- x [batch][time], zero from the item's length on, with padding.
void pad_signals(const Context&, const PaddedSignals&, const float* x, View<const int32_t> lengths, float* to);

/// sum [batch][stride] += the frames (rows of `window`): item b has rows first[b] .. first[b + 1] - 1, frame f of it
/// starts at f hop - window / 2. Every sample adds its frames in ascending order.
void overlap_add(const Context&, const PaddedSignals&, const float* frames, const int64_t* first, int64_t window,
                 int64_t hop, float* sum);

/// dx [batch][time] = or += sum with its padding folded back; zero from the item's length on.
void fold_padding(const Context&, const PaddedSignals&, const float* sum, View<const int32_t> lengths, float* dx,
                  bool add);

}  // namespace nacre
