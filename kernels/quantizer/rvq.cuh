#pragma once
// Shared by the CUDA files of rvq.
#include "nacre/ops/rvq.h"
#include "quantizer/vq_search.cuh"

namespace nacre::cuda {

struct RvqSizes {
  int64_t rows, stages, codes, dim, latent;
  bool factorised;
};
inline RvqSizes rvq_sizes(Shape z, Shape codebooks, bool factorised) {
  return {z.rows(), codebooks.batch, codebooks.time, codebooks.channels, z.channels, factorised};
}

/// q of one channel: its bias, then the code's channels in order. All kernels use this function or the same order, so
/// that residuals and decoded latents have the same bits everywhere.
__device__ __forceinline__ float project_out(const float* code, const float* weight, float bias, int64_t dim) {
  float q = bias;
  for (int64_t d = 0; d < dim; ++d) q = __fmaf_rn(code[d], weight[d], q);
  return q;
}

/// 2 weight / (valid rows * dim), or 0 without a valid row. All lanes of the warp must call it together.
__device__ __forceinline__ float loss_slope(const RowMask& mask, int64_t dim, float weight) {
  const int64_t elements = mask.loss_elements(dim);
  const double slope = elements > 0 ? 2.0 / static_cast<double>(elements) : 0.0;
  return static_cast<float>(slope * static_cast<double>(weight));
}

/// Fast kernels of factorised codes. The choice of a kernel depends only on latent, dim, codes and the device, never on
/// the number of rows: the codes of a row must not depend on other rows.
void rvq_forward_factorised(Context&, const RvqForward&, const RvqSizes&, const RowMask&, const float* prepared,
                            float* padded_weights, float* losses);
/// Finds a.codes by beam search, for latent codes. rvq_forward computes the other outputs from them.
int64_t rvq_beam_size(const Context&, const RvqSizes&, int64_t beam);
void rvq_beam_codes(Context&, const RvqForward&, const RvqSizes&, const float* prepared, float* scratch);
int64_t rvq_backward_factorised_size(const RvqSizes&);
void rvq_backward_factorised(Context&, const RvqBackward&, const RvqSizes&, const RowMask&, float* scratch);

}  // namespace nacre::cuda
