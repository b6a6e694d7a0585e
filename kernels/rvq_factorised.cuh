#pragma once
// The fast rung of factorised codes of 8 channels (DAC): how rows and latent channels lie on threads.
//
// A group of 256 threads takes 6 rows through all stages. A thread owns up to 4 latent channels, tid + 256 j, of each of
// its rows, and keeps them in registers; a stage's weights of these channels are 32 more. Sums over the latent go
// through the warp, then over the 8 warps of the group by way of shared memory; what is known for all of a row (e, the
// chosen code, de) every warp works out for itself, so that a stage needs no barrier but those before these sums.
#include "rvq.cuh"

namespace nacre::cuda {

inline constexpr int group_rows = 6, group_threads = 256, group_warps = group_threads / 32;
inline constexpr int max_groups = 3;      ///< of a block: 768 threads of at most 80 registers
inline constexpr int code_dim = 8;
inline constexpr int row_values = group_rows * code_dim;  ///< of a group: 48
inline constexpr int64_t max_group_latent = 4 * group_threads;

inline bool fits_groups(const RvqSizes& n) { return n.factorised && n.dim == code_dim && n.latent <= max_group_latent; }
/// Few rows: one group per block, so that more multiprocessors share them; DAC's 2376 rows are 132 blocks of 18.
inline int groups_for(int64_t rows) {
  const int64_t groups = ceil_div(rows, int64_t{group_rows} * 132);
  return static_cast<int>(groups < max_groups ? groups : max_groups);
}

/// Eight floats of one row of a [.., 8] matrix.
__device__ __forceinline__ void load_8(const float* p, bool aligned, float (&v)[code_dim]) {
  if (aligned) {
    const Pack<float> a = load_pack(p), b = load_pack(p + 4);
#pragma unroll
    for (int d = 0; d < 4; ++d) v[d] = a.v[d], v[4 + d] = b.v[d];
  } else {
#pragma unroll
    for (int d = 0; d < code_dim; ++d) v[d] = p[d];
  }
}

/// Sums eight values over the warp; the lane gets that of value lane / 4.
__device__ __forceinline__ float warp_sum_8(float (&v)[code_dim]) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const bool b4 = (lane & 16) != 0, b3 = (lane & 8) != 0, b2 = (lane & 4) != 0;
  float four[4], two[2];
#pragma unroll
  for (int i = 0; i < 4; ++i) four[i] = (b4 ? v[4 + i] : v[i]) + __shfl_xor_sync(full_warp, b4 ? v[i] : v[4 + i], 16);
#pragma unroll
  for (int i = 0; i < 2; ++i) two[i] = (b3 ? four[2 + i] : four[i]) + __shfl_xor_sync(full_warp, b3 ? four[i] : four[2 + i], 8);
  float one = (b2 ? two[1] : two[0]) + __shfl_xor_sync(full_warp, b2 ? two[0] : two[1], 4);
  one += __shfl_xor_sync(full_warp, one, 2);
  return one + __shfl_xor_sync(full_warp, one, 1);
}

/// q of one channel from its weights in registers; the order is that of project_out.
__device__ __forceinline__ float project_out_8(const float (&code)[code_dim], const float (&weight)[code_dim], float bias) {
  float q = bias;
#pragma unroll
  for (int d = 0; d < code_dim; ++d) q = __fmaf_rn(code[d], weight[d], q);
  return q;
}

}  // namespace nacre::cuda
