// Prepares a codebook for the search by tensor cores (vq_products.cu): fragments of the codes, half norms, and what the
// error bound needs of each group of codes.
#include "quantizer/vq_products.cuh"

namespace nacre::cuda {
namespace {

constexpr int prepare_threads = 256;
constexpr float absent_norm = 3e38f;  ///< half norm of a padding code; stays finite whatever its last four bits are

/// A block per group of 64 codes: fragments, half norms and bounds. Fragment f = tile * depth / 8 + step has b0, b1 of
/// lane l: channels 8 step + 2 (l % 4) and the next one of code 16 (l / 8) + 2 tile + l / 4 % 2. Two fragments are
/// stored interleaved, for loads of 16 bytes. Half norms: per tile and lane of a row, those of its two codes, twice, as
/// the start of the sums of two rows. Bytes: the prepared codes once, the fragments once.
__global__ void __launch_bounds__(prepare_threads)
    vq_prepare_products_kernel(const float* prepared, int64_t codes, int dim, int depth, float* products) {
  NACRE_SHARED(float, largest, 3 * 2);
  const int64_t padded = padded_codes(codes), base = int64_t{blockIdx.x} * group_codes;
  const float* norms = prepared + padded * dim;
  float* group = products + int64_t{blockIdx.x} * group_size(depth);
  const int steps = depth / 8;
  // Element i of a group: i % 2 is the channel of the pair, i / 2 % 2 the fragment of the pair, i / 4 % 32 the lane.
  // Codes are stored negated, because the products start from the norms and subtract.
  for (int i = static_cast<int>(threadIdx.x); i < group_codes * depth; i += prepare_threads) {
    const int lane = i / 4 % 32, f = i / 128 * 2 + i / 2 % 2, tile = f / steps;
    const int64_t k = base + lane / 8 * 16 + tile * 2 + lane / 4 % 2;
    const int channel = f % steps * 8 + lane % 4 * 2 + i % 2;
    const bool exists = channel < dim && norms[k] < no_code().h;
    group[i] = exists ? -__uint_as_float(to_tf32(prepared[int64_t{channel} * padded + k])) : 0.0f;
  }
  // Two warps, one code per thread: the norms of the 64 codes, and the largest |c|, |c - c^| and half norm for E.
  if (threadIdx.x < group_codes) {
    const int i = static_cast<int>(threadIdx.x);
    const float n = norms[base + i];
    const bool exists = n < no_code().h;
    CodeBounds bounds{0, 0, 0};
    // Norms: [tile of eight codes][lane of a row][row of the fragment][code of the pair], the same for both rows.
    float* slot = group + group_codes * depth + i % 16 / 2 * 16 + i / 16 * 4 + i % 2;
    slot[0] = slot[2] = exists ? n : absent_norm;
    if (exists) {
      float square = 0, error_square = 0;
      for (int d = 0; d < dim; ++d) {
        const float v = prepared[int64_t{d} * padded + base + i], r = v - __uint_as_float(to_tf32(v));
        square += v * v, error_square += r * r;
      }
      bounds = {norm_bound(square), norm_bound(error_square), n};
    }
    bounds = largest_of_warp(bounds);
    if (i % 32 == 0)
      largest[i / 32] = bounds.norm, largest[2 + i / 32] = bounds.error, largest[4 + i / 32] = bounds.half_norm;
  }
  __syncthreads();
  if (threadIdx.x < 4) {
    const int i = static_cast<int>(threadIdx.x);
    float* to = products + int64_t{gridDim.x} * group_size(depth) + int64_t{blockIdx.x} * 4;
    to[i] = i < 3 ? fmaxf(largest[2 * i], largest[2 * i + 1]) : 0.0f;
  }
}

}  // namespace

void prepare_products(Context& ctx, const float* prepared, int64_t codes, int64_t dim, float* products) {
  launch(ctx,
         {.name = "vq_prepare_products",
          .grid = static_cast<unsigned>(padded_codes(codes) / group_codes),
          .block = prepare_threads},
         vq_prepare_products_kernel, prepared, codes, static_cast<int>(dim), static_cast<int>(products_depth(dim)),
         products);
}

}  // namespace nacre::cuda
