#pragma once
// vq_nearest on tensor cores (vq_products.cu), for many rows. The codes equal those of the plain kernel.
// vq_products_prepare.cu prepares the codebook, vq_products_rest.cu finds the codes of rows that are left.
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

/// What the error bound needs to know of one or more codes c, of which c^ is rounded to tf32.
struct CodeBounds {
  float norm, error, half_norm;  ///< the largest |c|, |c - c^| and half norm
};
__device__ __forceinline__ CodeBounds largest_of_warp(CodeBounds b) {
#pragma unroll
  for (int lanes = 16; lanes > 0; lanes /= 2) {
    b.norm = fmaxf(b.norm, __shfl_xor_sync(full_warp, b.norm, lanes));
    b.error = fmaxf(b.error, __shfl_xor_sync(full_warp, b.error, lanes));
    b.half_norm = fmaxf(b.half_norm, __shfl_xor_sync(full_warp, b.half_norm, lanes));
  }
  return b;
}
/// An upper bound of a norm, from its square as added in float.
__device__ __forceinline__ float norm_bound(float square) {
  constexpr float smallest = 0x1p-67f;  // more than a norm loses when its squares underflow
  return __fsqrt_rn(square) * 1.0001f + smallest;
}

/// The nearest codes of rows, by the kernel that `method` or the shape says. `products`: as nearest_by_products().
void nearest_codes(Context&, const float* x, int64_t rows, int64_t dim, const float* prepared, int64_t codes, VqMetric,
                   VqMethod, float* products, int32_t* out, float* half_distances);
/// Writes `products` of a codebook that prepare_codebooks has prepared.
void prepare_products(Context&, const float* prepared, int64_t codes, int64_t dim, float* products);
/// As the other kernels of vq.cu, but rows with too many near codes, or without an error bound, get code -1. `products`
/// is work space of products_size floats, 16-byte aligned.
void nearest_by_products(Context&, const float* x, int64_t rows, int64_t dim, const float* prepared, int64_t codes,
                         VqMetric, float* products, int32_t* out, float* half_distances);
/// Searches in float for the rows whose code is negative.
void search_marked_rows(Context&, const float* x, int64_t rows, int64_t dim, const float* prepared, int64_t codes,
                        VqMetric, int32_t* out, float* half_distances);

}  // namespace nacre::cuda
