#pragma once
// The rung of vq_nearest on tensor cores (vq_products.cu): many rows against a codebook, the codes those of the first
// rung, bit for bit.
#include "quantizer/vq_search.cuh"

namespace nacre::cuda {

inline constexpr int64_t max_products_dim = 128;
inline constexpr int group_codes = 64;  ///< sixteen for each of the four lanes that share a row

/// Channels as the products see them: 8, 16, 32, 64 or 128, those beyond dim zero.
__host__ __device__ inline int64_t products_depth(int64_t dim) {
  int64_t depth = 8;
  while (depth < dim) depth *= 2;
  return depth;
}
/// Floats of a group of codes: fragments of tf32, half norms twice.
__host__ __device__ constexpr int64_t group_size(int64_t depth) { return group_codes * (depth + 2); }
/// Floats of a codebook ready for products: its groups, then four bounds for each. 0 where there is no such rung.
inline int64_t products_size(int64_t codes, int64_t dim) {
  if (dim > max_products_dim) return 0;
  return padded_codes(codes) / group_codes * (group_size(products_depth(dim)) + 4);
}

/// As vq.cu's other rungs, but rows with too many near codes, or without a bound, get code -1. `products` has
/// products_size floats, 16-byte aligned, and is written; `prepared` is read.
void nearest_by_products(Context&, const float* x, int64_t rows, int64_t dim, const float* prepared, int64_t codes,
                         VqMetric, float* products, int32_t* out, float* half);
/// Searches for the rows with a negative code.
void nearest_of_marked(Context&, const float* x, int64_t rows, int64_t dim, const float* prepared, int64_t codes,
                       VqMetric, int32_t* out, float* half);

}  // namespace nacre::cuda
