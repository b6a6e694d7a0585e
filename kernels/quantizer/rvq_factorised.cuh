#pragma once
// The fast kernels of factorised codes of 8 channels (DAC): how rows and latent channels are assigned to threads.
//
// A group of 256 threads takes 9 rows through all stages. A thread has up to 4 latent channels of each row, and the
// weights of these channels for the current stage in 32 registers. Sums over the latent are added within a warp, then
// over the 8 warps of the group through shared memory. Every warp computes the values of a whole row (e, the chosen
// code, de) itself, so that the only barriers of a stage are those before these sums.
#include <limits>

#include "quantizer/rvq.cuh"

namespace nacre::cuda {

inline constexpr int group_rows = 9, group_threads = 256, group_warps = group_threads / 32;
inline constexpr int max_groups = 2;  ///< groups of a block: 512 threads of at most 128 registers
inline constexpr int code_dim = 8;
inline constexpr int row_values = group_rows * code_dim;         ///< values of a group: 72
inline constexpr int value_iterations = (row_values + 31) / 32;  ///< for a warp to visit all of them
inline constexpr int64_t max_group_latent = 4 * group_threads;

inline bool group_kernel_supports(const RvqSizes& n) {
  return n.factorised && n.dim == code_dim && n.latent <= max_group_latent;
}
/// Groups of a block, each with `group_bytes` of shared memory: as many as fit, but not more than needed to give every
/// multiprocessor a block. DAC's 2376 rows are 132 blocks of 18 rows, one for each multiprocessor of an H200.
inline int groups_for(const DeviceLimits& d, int64_t rows, size_t group_bytes) {
  const int64_t wanted = ceil_div(rows, int64_t{group_rows} * d.multiprocessors);
  const auto fit = static_cast<int64_t>(d.shared_per_block / group_bytes);
  return static_cast<int>(std::min({wanted, fit, int64_t{max_groups}}));
}

/// Latent channels rounded up to 256, 512 or 1024 (1, 2 or 4 per thread), so that strides are constants of the kernel.
inline int64_t group_latent(int64_t latent) {
  return latent <= group_threads ? group_threads : (latent <= 2 * group_threads ? 2 * group_threads : max_group_latent);
}
/// The projections as [stages][8][L] and [stages][L][8], L = group_latent, zeros beyond the latent.
struct Weights {
  const float *in, *in_bias, *out, *out_bias;
};
inline int64_t padded_weights_size(const RvqSizes& n) { return n.stages * group_latent(n.latent) * (2 * code_dim + 1); }
/// The projections themselves if the latent is L and they are aligned, else a padded copy in `to`.
Weights pad_weights(Context&, const RvqProjections&, const RvqSizes&, float* to);

/// Eight floats of one row of a [.., 8] matrix, aligned to 16 bytes.
__device__ __forceinline__ void load_8(const float* p, float (&v)[code_dim]) {
  const Pack<float> a = load_pack(p), b = load_pack(p + 4);
#pragma unroll
  for (int d = 0; d < 4; ++d) v[d] = a.v[d], v[4 + d] = b.v[d];
}

/// Sums each of eight values over the warp. A lane gets the sum of value lane / 4.
__device__ __forceinline__ float warp_sum_8(float (&v)[code_dim]) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  // Each step halves the number of values that a lane carries: it keeps one half and gets the partner's sums of that
  // half. So eight sums need 9 shuffles instead of 40.
  const bool b4 = (lane & 16) != 0, b3 = (lane & 8) != 0, b2 = (lane & 4) != 0;
  float four[4], two[2];
#pragma unroll
  for (int i = 0; i < 4; ++i) four[i] = (b4 ? v[4 + i] : v[i]) + __shfl_xor_sync(full_warp, b4 ? v[i] : v[4 + i], 16);
#pragma unroll
  for (int i = 0; i < 2; ++i)
    two[i] = (b3 ? four[2 + i] : four[i]) + __shfl_xor_sync(full_warp, b3 ? four[i] : four[2 + i], 8);
  float one = (b2 ? two[1] : two[0]) + __shfl_xor_sync(full_warp, b2 ? two[0] : two[1], 4);
  one += __shfl_xor_sync(full_warp, one, 2);
  return one + __shfl_xor_sync(full_warp, one, 1);
}

/// project_out with the weights in registers, in the same order.
__device__ __forceinline__ float project_out_8(const float (&code)[code_dim], const float (&weight)[code_dim],
                                               float bias) {
  float q = bias;
#pragma unroll
  for (int d = 0; d < code_dim; ++d) q = __fmaf_rn(code[d], weight[d], q);
  return q;
}

// ---- the search of a stage, by a group

inline constexpr int codes_at_once = group_threads * 4;  ///< codes that a group scores at once: four per thread
inline constexpr float infinity = std::numeric_limits<float>::infinity();

/// The half distances of a warp are compared as unsigned integers of the same order, as in warp_ordered_best(). This is
/// that of +inf: a row whose half distances are all +inf or NaN takes code 0.
inline constexpr uint32_t ordered_infinity = 0xff800000u;

/// Each warp writes its best code of every row to `candidates` [row][warp][2]. A thread has four adjacent codes in
/// registers and compares them with all rows; `x` has the rows, read by broadcast.
__device__ __forceinline__ void search_rows(const float* x, const float* prepared, int padded, uint32_t* candidates) {
  const int tid = static_cast<int>(threadIdx.x) % group_threads, lane = tid % 32, warp = tid / 32;
  uint32_t* slots = candidates + warp * 2;
#pragma unroll 1
  for (int begin = 0; begin < padded; begin += codes_at_once) {
    const int k = begin + tid * 4;
    // Threads beyond the codes have zeros at an infinite distance, like codes that only pad.
    float codes[code_dim][4] = {};
    Pack<float> norms{{infinity, infinity, infinity, infinity}};
    if (k < padded) {
#pragma unroll
      for (int d = 0; d < code_dim; ++d) {
        const Pack<float> v = load_pack(prepared + int64_t{d} * padded + k);
#pragma unroll
        for (int t = 0; t < 4; ++t) codes[d][t] = v.v[t];
      }
      norms = load_pack(prepared + int64_t{code_dim} * padded + k);
    }
#pragma unroll 3
    for (int row = 0; row < group_rows; ++row) {
      float v[code_dim], h[4];
      load_8(x + row * code_dim, v);
#pragma unroll
      for (int t = 0; t < 4; ++t) {
        h[t] = norms.v[t];
#pragma unroll
        for (int d = 0; d < code_dim; ++d) h[t] = __fmaf_rn(-v[d], codes[d][t], h[t]);
      }
      // fminf takes the number of a number and a NaN.
      const float least = fminf(fminf(h[0], h[1]), fminf(h[2], h[3]));
      const int t = h[0] == least ? 0 : (h[1] == least ? 1 : (h[2] == least ? 2 : 3));
      const OrderedBest best_of_warp = warp_ordered_best({least, k + t});
      uint32_t* slot = slots + row * group_warps * 2;
      // Later codes have higher indices, so they win only if they are strictly nearer.
      if (lane == 0 && (begin == 0 || best_of_warp.h < slot[0])) slot[0] = best_of_warp.h, slot[1] = best_of_warp.k;
    }
  }
}

/// Eight lanes per row find the best of the warps' candidates, four rows at once. `chosen` [row][8] gets the codes'
/// channels, of which lane l writes the elements l, l + 32 and l + 64. Lane `row` returns that row's code.
__device__ __forceinline__ int32_t choose_codes(const uint32_t* candidates, const float* codebook, float* chosen) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  int32_t my_code = 0;
#pragma unroll
  for (int iteration = 0; iteration < value_iterations; ++iteration) {
    const int v = lane + iteration * 32, slot = v < row_values ? v : 0;
    OrderedBest best{candidates[2 * slot], candidates[2 * slot + 1]};
#pragma unroll
    for (int lanes = 4; lanes > 0; lanes /= 2) {
      const uint32_t h = __shfl_xor_sync(full_warp, best.h, lanes), k = __shfl_xor_sync(full_warp, best.k, lanes);
      if (h < best.h || (h == best.h && k < best.k)) best.h = h, best.k = k;
    }
    if (best.h >= ordered_infinity) best.k = 0;
    const int row_of_four = lane - iteration * 4;  // this lane's row among the four rows of the iteration
    const bool mine = row_of_four >= 0 && row_of_four < 4;
    const uint32_t k = __shfl_sync(full_warp, best.k, mine ? row_of_four * 8 : 0);
    if (mine) my_code = static_cast<int32_t>(k);
    if (v < row_values) chosen[v] = codebook[int64_t{best.k} * code_dim + v % code_dim];
  }
  return my_code;
}

__device__ __forceinline__ float squared_distance(const float* a, const float* b) {
  float sum = 0;
#pragma unroll
  for (int d = 0; d < code_dim; ++d) {
    const float difference = a[d] - b[d];
    sum = __fmaf_rn(difference, difference, sum);
  }
  return sum;
}

}  // namespace nacre::cuda
