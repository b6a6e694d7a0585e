#pragma once
// The fastest kernels of spectral_loss, which include the transforms.
#include "spectral/spectral_cells.cuh"
#include "spectral/spectral_frames.cuh"

namespace nacre::cuda {

/// FrameTransform's tables.
struct FusedTables {
  const float *twiddles, *cosine, *sine;
};
/// Number of blocks (and of partial sums) of the fused kernel; 0 if no kernel supports the window, or if the frames of
/// a block and their bands do not fit into shared memory.
int64_t spectral_fused_parts(const DeviceLimits&, const ScaleView&);
/// rows [gradients][rows][window] = the frames of the requested gradients, not windowed. Losses go to the partial sums.
void spectral_fused(Context&, const ScaleView&, const Framing&, const FusedTables&, const float* estimate,
                    const float* target, const int32_t* lengths, float* rows);

/// weights [batch][frames] of the logarithms of frames, from the target alone (spectral_weights.cu).
void spectral_transients(Context&, const Framing&, const float* target, const int32_t* lengths, float transient,
                         float rise, float* weights);
/// MelKind::norms in the plain way: one block, and one partial sum, per frame. `slopes` are overwritten.
void spectral_norms(Context&, const ScaleView&);

}  // namespace nacre::cuda
