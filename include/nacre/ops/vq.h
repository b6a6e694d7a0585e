#pragma once
#include "nacre/context.h"
// Vector quantisation: nearest code, gather, and the training of codebooks (k-means, exponential moving averages).
//
//   euclidean   code = argmin_k |x - c_k|^2
//   cosine      code = argmin_k |x/max(|x|, 1e-12) - c_k/max(|c_k|, 1e-12)|^2     (DAC: L2 normalisation of both)
//
//   compares    half distances h_k = |c_k|^2 / 2 - x.c_k in float. h_k starts as |c_k|^2 / 2; then x_d c_kd is
//               subtracted for d = 0, 1, ..., by a fused multiply-add if the instruction set has one. The order is the
//               same for every row and code, so a row's code depends neither on other rows nor on threads, and
//               vq_nearest, vq_kmeans and rvq_forward find the same code
//   ties        the lowest index among equal h_k
//   accuracy    if the code found is not the nearest in exact arithmetic, it is farther by at most the rounding errors
//               of the two h: (2 dim + 2) 2^-24 of the sum of |terms| of each; (3 dim + 9) 2^-24 for cosine
//   NaN         a row gets code 0 if it has a NaN or if all its h_k overflow; a code with NaN is never chosen
//   aliasing    none
//   devices     CUDA always uses fused multiply-adds; its codes equal those of a CPU that has them
//   cost        2 rows codes dim flops; each call packs the codebook, 4 codes dim bytes. CUDA, for at least 32768 rows
//               and 256 codes and at most 128 channels: on tensor cores; rows with several codes at nearly the same
//               distance are searched a second time in float
namespace nacre {
enum class VqMetric : uint8_t { euclidean, cosine };

/// How CUDA searches: chosen by the shape; by sums in float; or by products on tensor cores, which leave few codes to
/// compare in float (up to 128 channels; by sums beyond). The codes are the same; tests and benches choose.
enum class VqMethod : uint8_t { by_shape, sums, products };

struct VqNearest {
  View<const float> x;         ///< [batch, time, 1, dim]: every row is looked up
  View<const float> codebook;  ///< [1, codes, 1, dim]
  View<int32_t> codes;         ///< [batch, time, 1, 1] =
  View<float> scratch{};
  VqMetric metric = VqMetric::euclidean;
  VqMethod method = VqMethod::by_shape;
};
Shape vq_nearest_scratch(Context&, Shape x, Shape codebook);
void vq_nearest(Context&, const VqNearest&);

/// y = rows of the codebook, exactly; += with add_y. Codes are clamped to [0, codes).
struct VqGather {
  View<const float> codebook;
  View<const int32_t> codes;
  View<float> y;
  bool add_y = false;
};
void vq_gather(Context&, const VqGather&);

/// Exponential-moving-average codebooks (VQ-VAE, arXiv 1711.00937, appendix A.1) for all stages of a residual
/// quantizer.
///   counts  = decay counts + (1 - decay) n_k;    sums = decay sums + (1 - decay) sum of the rows that chose k
///   codebook_k = sums_k / (counts_k + eps)
///   a dead code (counts < dead_below) is replaced by a row of this batch: the valid row with index
///   Philox(seed, stage).below(step codes + code, valid rows). Its sums become that row, its count 1
/// n_k is the number of rows that chose code k. Rows are added in double, in their order. Two dead codes may be
/// replaced by the same row.
/// Only valid rows count. Nothing changes if there is none, or if a valid row of the first stage is not finite: one bad
/// batch must not stay in the codebooks.
/// counts and sums must start consistent with the codebook: sums_k = counts_k codebook_k.
struct VqEma {
  View<const float> x;        ///< [stages, rows, 1, dim]: what each stage quantised
  View<const int32_t> codes;  ///< batch * time rows, stages innermost
  View<const int32_t> frames{};  ///< [batch]: valid frames per item; later rows are ignored. Needs batch * time = rows
  int64_t batch = 1;
  View<float> codebooks;     ///< [stages, codes, 1, dim] =
  View<float> counts;        ///< stages * codes elements, in any shape
  View<float> sums;          ///< [stages, codes, 1, dim]
  View<const int32_t> step;  ///< [1]: device scalar, input of the random choice
  View<float> scratch{};
  float decay = 0.99f, dead_below = 0.03f, eps = 1e-5f;
  uint64_t seed = 0;
};
Shape vq_ema_scratch(Context&, Shape x, Shape codebooks);
void vq_ema(Context&, const VqEma&);

/// k-means (Lloyd), started from rows drawn without replacement by Philox(seed). Runs once, before the first step, and
/// is not part of a captured graph. Means are summed in double, in row order. After each iteration every empty cluster
/// takes the row farthest from its centre, each a different row; if all rows lie on their centres, empty clusters do
/// not change. If there are fewer rows than codes, rows repeat with a jitter of 1e-3 of their root mean square, so that
/// no two codes are equal. iterations = 0 returns the start. Throws if x has no rows.
struct VqKmeans {
  View<const float> x;   ///< rows of dim channels
  View<float> codebook;  ///< [1, codes, 1, dim] =
  View<float> counts{};  ///< [codes] = number of rows nearest to each code of the result
  View<float> scratch{};
  int iterations = 10;
  uint64_t seed = 0;
};
Shape vq_kmeans_scratch(Context&, Shape x, Shape codebook);
void vq_kmeans(Context&, const VqKmeans&);
}  // namespace nacre
