#pragma once
// Factorised codes in numbers of stages x dim (RvqProjections::products), and the sum over stages for codes of 8
// channels.
#include "quantizer/rvq_factorised.cuh"

namespace nacre::cuda {

/// Floats of rvq_forward's scratch beside the prepared codebooks and the losses: e of all stages.
inline int64_t projected_size(const RvqSizes& n) { return n.rows * n.stages * n.dim; }
/// Codes, and, if they are given, quantised, losses and y. `projected` has projected_size() floats.
void rvq_forward_products(Context&, const RvqForward&, const RvqSizes&, const RowMask&, const float* prepared,
                          float* projected, float* losses);

/// The same for any shape, with a warp per row.
void rvq_forward_small(Context&, const RvqForward&, const RvqSizes&, const RowMask&, const float* prepared,
                       float* projected, float* losses);

/// Whether sum_codes() takes the shape: the chosen codes of its rows must fit into shared memory.
bool sum_codes_supports(int64_t stages, int64_t dim);
inline constexpr int64_t least_sum_rows = 8;  ///< for fewer rows a thread per element is faster
/// y = the sum over stages of W_out E[c] + b_out for the stages that the mask allows. n.stages is the stride of
/// `codes`.
void sum_codes(Context&, const int32_t* codes, const float* codebooks, const RvqProjections&, const RvqSizes&,
               const RowMask&, float* y);

}  // namespace nacre::cuda
