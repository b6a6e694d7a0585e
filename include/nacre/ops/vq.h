#pragma once
#include "nacre/context.h"
// Vector quantisation: nearest code, gather, and the codebooks' own training (exponential moving averages, k-means
// start).
//
//   euclidean   code = argmin_k |x - c_k|^2
//   cosine      code = argmin_k |x/max(|x|, 1e-12) - c_k/max(|c_k|, 1e-12)|^2     (DAC: L2 normalisation of both)
//
//   compares    half distances h_k = |c_k|^2 / 2 - x.c_k in float: |c_k|^2 / 2 first, then minus x_d c_kd for d = 0, 1,
//               ..., each product fused with its subtraction where the instruction set can. The order is the same for
//               every row and every code, so a row's code depends neither on its neighbours nor on threads, and
//               vq_nearest, vq_kmeans and rvq_forward find the same one
//   ties        the lowest index among equal h_k
//   accuracy    a code that is not the nearest in exact arithmetic is farther by at most the rounding of the two h:
//               (2 dim + 2) 2^-24 of the sum of |terms| of each; (3 dim + 9) 2^-24 for cosine
//   NaN         a row with NaN gets code 0, and so does one whose every h_k overflows; a code with NaN is never chosen
//   aliasing    none
//   devices     CUDA always fuses: its codes are those of a CPU that has fused multiply-adds
//   cost        2 rows codes dim flops; the codebook is packed on each call, 4 codes dim bytes. CUDA, from 32768 rows and
//               256 codes on, to 128 channels: on tensor cores, except for rows with several codes at nearly the same
//               distance, whose share is searched a second time
namespace nacre {
enum class VqMetric : uint8_t { euclidean, cosine };

/// How CUDA searches: as the shape asks for; by sums in float; or by products on tensor cores that leave few codes to
/// compare (to 128 channels, by sums beyond). For tests and benches: the codes are the same.
enum class VqRung : uint8_t { by_shape, sums, products };

struct VqNearest {
  View<const float> x;         ///< [batch, time, 1, dim]: every row is looked up
  View<const float> codebook;  ///< [1, codes, 1, dim]
  View<int32_t> codes;         ///< [batch, time, 1, 1] =
  View<float> scratch{};
  VqMetric metric = VqMetric::euclidean;
  VqRung rung = VqRung::by_shape;
};
Shape vq_nearest_scratch(Context&, Shape x, Shape codebook);
void vq_nearest(Context&, const VqNearest&);

/// y = the rows of the codebook, exactly; += with add_y. A code outside [0, codes) counts as the nearest inside.
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
///   a code with counts < dead_below becomes a row of this batch: the valid row numbered
///   Philox(seed, stage).below(step codes + code, valid rows). Its sums become that row, its count 1
/// Rows are added in double, in their order. Codes that share a replacement row part when they are next found dead.
/// Only valid rows count, n_k included; without any, nothing changes at all. Nor does anything when a valid row of the
/// first stage is not finite: one bad batch must not end up in the codebooks for ever.
/// counts and sums must start consistent with the codebook: sums_k = counts_k codebook_k.
struct VqEma {
  View<const float> x;        ///< [stages, rows, 1, dim]: what each stage quantised
  View<const int32_t> codes;  ///< [rows..., stages]: batch * time rows, stages innermost
  View<const int32_t>
      frames{};  ///< [batch]: valid frames per item; rows beyond are left out. Needs batch * time = rows
  int64_t batch = 1;
  View<float> codebooks;     ///< [stages, codes, 1, dim] =
  View<float> counts;        ///< stages * codes elements, in whatever shape
  View<float> sums;          ///< [stages, codes, 1, dim]
  View<const int32_t> step;  ///< [1]: device scalar that feeds the random choice
  View<float> scratch{};
  float decay = 0.99f, dead_below = 0.03f, eps = 1e-5f;
  uint64_t seed = 0;
};
Shape vq_ema_scratch(Context&, Shape x, Shape codebooks);
void vq_ema(Context&, const VqEma&);

/// k-means (Lloyd) from rows drawn without replacement by Philox(seed); run eagerly, once, before the first step.
/// Means are added in double, in row order. After each step, an empty cluster takes the row farthest from the centre it
/// had, a different one each; where every row lies on its centre, the empty cluster keeps its own. Fewer rows than
/// codes: rows repeat with a jitter of 1e-3 of their root mean square, so that no two codes are the same.
/// iterations = 0 gives the start itself. Throws where x has no rows.
struct VqKmeans {
  View<const float> x;   ///< rows of dim channels
  View<float> codebook;  ///< [1, codes, 1, dim] =
  View<float> counts{};  ///< [codes] = rows that the codebook returned gives to each code
  View<float> scratch{};
  int iterations = 10;
  uint64_t seed = 0;
};
Shape vq_kmeans_scratch(Context&, Shape x, Shape codebook);
void vq_kmeans(Context&, const VqKmeans&);
}  // namespace nacre
