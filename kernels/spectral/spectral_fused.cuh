#pragma once
// The fastest rung of spectral_loss: transforms included.
#include "spectral/spectral_cells.cuh"
#include "spectral/spectral_frames.cuh"

namespace nacre::cuda {

/// FrameTransform's tables.
struct FusedTables {
  const float *twiddles, *cosine, *sine;
};
/// Blocks (and partial sums) of the fused kernel; 0 where there is none for the window, or where the device has no room
/// for the frames of a block and their bands.
int64_t spectral_fused_parts(const DeviceLimits&, const ScaleView&);
/// rows [gradients][rows][window] <- the frames of the wanted gradients, not windowed; losses into the partial sums.
void spectral_fused(Context&, const ScaleView&, const Framing&, const FusedTables&, const float* estimate,
                    const float* target, const int32_t* lengths, float* rows);

}  // namespace nacre::cuda
