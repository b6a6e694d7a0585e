#pragma once
#include "nacre/context.h"
// Vector quantisation: nearest code, gather, and the codebooks' own training (exponential moving averages, k-means
// start).
//
//   euclidean   code = argmin_k |x - c_k|^2
//   cosine      code = argmin_k |x/max(|x|, 1e-12) - c_k/max(|c_k|, 1e-12)|^2     (DAC: L2 normalisation of both)
// Exact ties go to the lower index.
namespace nacre {
enum class VqMetric : uint8_t { euclidean, cosine };

struct VqNearest {
  View<const float> x;         ///< [batch, time, 1, dim]: every row is looked up
  View<const float> codebook;  ///< [1, codes, 1, dim]
  View<int32_t> codes;         ///< [batch, time, 1, 1] =
  View<float> scratch{};
  VqMetric metric = VqMetric::euclidean;
};
Shape vq_nearest_scratch(Context&, Shape x, Shape codebook);
void vq_nearest(Context&, const VqNearest&);

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
///   a code with counts < dead_below becomes a row of this batch, chosen by Philox(seed, stage)(step, code); its count
///   becomes 1
struct VqEma {
  View<const float> x;        ///< [stages, rows, 1, dim]: what each stage quantised
  View<const int32_t> codes;  ///< [rows..., stages]: batch * time rows, stages innermost
  View<const int32_t>
      frames{};  ///< [batch]: valid frames per item; rows beyond are left out. Needs batch * time = rows
  int64_t batch = 1;
  View<float> codebooks;     ///< [stages, codes, 1, dim]
  View<float> counts;        ///< [stages, codes]
  View<float> sums;          ///< [stages, codes, 1, dim]
  View<const int32_t> step;  ///< [1]: device scalar that feeds the random choice
  View<float> scratch{};
  float decay = 0.99f, dead_below = 0.03f, eps = 1e-5f;
  uint64_t seed = 0;
};
Shape vq_ema_scratch(Context&, Shape x, Shape codebooks);
void vq_ema(Context&, const VqEma&);

/// k-means (Lloyd) from rows drawn without replacement by Philox(seed); run eagerly, once, before the first step.
/// Empty clusters take the row farthest from its centre. Fewer rows than codes: rows repeat with a small jitter.
struct VqKmeans {
  View<const float> x;   ///< rows of dim channels
  View<float> codebook;  ///< [1, codes, 1, dim] =
  View<float> counts{};  ///< [codes] = rows per code
  View<float> scratch{};
  int iterations = 10;
  uint64_t seed = 0;
};
Shape vq_kmeans_scratch(Context&, Shape x, Shape codebook);
void vq_kmeans(Context&, const VqKmeans&);
}  // namespace nacre
