#pragma once
// vq_nearest on tensor cores (vq_products.cu), for many rows. The codes equal those of the plain kernel.
#include "quantizer/vq_search.cuh"

namespace nacre::cuda {

inline constexpr int64_t max_products_dim = 128;
inline constexpr int group_codes = 64;  ///< codes of a group: sixteen for each of the four lanes that share a row

/// Channels of the products: dim rounded up to 8, 16, 32, 64 or 128; the added channels are zero.
__host__ __device__ inline int64_t products_depth(int64_t dim) {
  int64_t depth = 8;
  while (depth < dim) depth *= 2;
  return depth;
}
/// Floats of a group of codes: tf32 fragments, and each half norm twice.
__host__ __device__ constexpr int64_t group_size(int64_t depth) { return group_codes * (depth + 2); }
/// Floats of a codebook prepared for products: its groups, then four bounds for each group. 0 if dim is not supported.
inline int64_t products_size(int64_t codes, int64_t dim) {
  if (dim > max_products_dim) return 0;
  return padded_codes(codes) / group_codes * (group_size(products_depth(dim)) + 4);
}

/// As the other kernels of vq.cu, but rows with too many near codes, or without an error bound, get code -1. `products`
/// is work space of products_size floats, 16-byte aligned.
void nearest_by_products(Context&, const float* x, int64_t rows, int64_t dim, const float* prepared, int64_t codes,
                         VqMetric, float* products, int32_t* out, float* half_distances);
/// Searches in float for the rows whose code is negative.
void search_marked_rows(Context&, const float* x, int64_t rows, int64_t dim, const float* prepared, int64_t codes,
                        VqMetric, int32_t* out, float* half_distances);

}  // namespace nacre::cuda
