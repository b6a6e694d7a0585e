#pragma once
// Rows of weights, shared by weight_norm.cu and weight_norm_adamw.cu: a block handles a long row, a warp a short one.
#include <algorithm>

#include "runtime/device.cuh"
#include "nacre/ops/weight_norm.h"

namespace nacre::cuda {

inline constexpr int row_threads = 256;
/// Rows up to this length are handled by a warp, because the barriers of a block would take longer than the row. DAC
/// has 18 thousand of them, of which 9 thousand have eight weights.
inline constexpr int64_t warp_row = 896;

/// The threads that work on a row: a block or a warp. The order of sums depends only on the row's length.
template <int count>
struct RowTeam {
  static constexpr int threads = count;
  static_assert(count == 32 || count == row_threads);
  int thread = static_cast<int>(threadIdx.x) % count;
  double* buffer;       ///< of a block: one double of shared memory per warp
  float* shared_value;  ///< of a block: one float of shared memory

  /// Sum over the team, valid in every thread. It is also a barrier: accesses before it precede all accesses after it.
  __device__ __forceinline__ double sum(double v) const {
    if constexpr (count == 32) {
      __syncwarp();
      return warp_sum(v);
    } else {
      return block_sum<count>(v, buffer);
    }
  }
  /// Thread 0's value, in all threads. A block needs a sum() between two calls.
  __device__ __forceinline__ float shared(float v) const {
    if constexpr (count == 32) {
      return __shfl_sync(full_warp, v, 0);
    } else {
      if (thread == 0) *shared_value = v;
      __syncthreads();
      return *shared_value;
    }
  }
};

/// Rows per block: as many as it has warps, or fewer if multiprocessors would be idle.
inline int rows_per_block(const Context& ctx, int64_t rows) {
  return static_cast<int>(std::clamp<int64_t>(rows / two_blocks_each(limits(ctx)), 1, row_threads / 32));
}
/// Calls work(team, index, row) for this block's long rows, by the whole block.
template <class F>
__device__ __forceinline__ void each_long_row(View<const WeightRow> rows, int per_block, F&& work) {
  NACRE_SHARED(double, buffer, row_threads / 32);
  NACRE_SHARED(float, value, 1);
  const int64_t first = int64_t{blockIdx.x} * per_block, remaining = rows.elements() - first;
  const int count = remaining < per_block ? static_cast<int>(remaining) : per_block;
  for (int k = 0; k < count; ++k) {
    const WeightRow row = rows.data[first + k];
    if (row.length > warp_row) work(RowTeam<row_threads>{.buffer = buffer, .shared_value = value}, first + k, row);
  }
}
/// Calls work(team, index, row) for this block's short rows, a warp each.
template <class F>
__device__ __forceinline__ void each_short_row(View<const WeightRow> rows, int per_block, F&& work) {
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int64_t index = int64_t{blockIdx.x} * per_block + warp;
  if (warp >= per_block || index >= rows.elements()) return;
  const WeightRow row = rows.data[index];
  if (row.length <= warp_row) work(RowTeam<32>{.buffer = nullptr, .shared_value = nullptr}, index, row);
}
/// Calls work(team, index, row) for all rows of this block: the long ones by the whole block, one after the other, then
/// the short ones by a warp each.
template <class F>
__device__ __forceinline__ void each_row(View<const WeightRow> rows, int per_block, F&& work) {
  each_long_row(rows, per_block, work);
  each_short_row(rows, per_block, work);
}

/// Whether a row can be accessed four elements at a time. The same for all threads of the team.
template <class T>
__device__ __forceinline__ bool row_vectorizable(int64_t length, const T* at) {
  return length % 4 == 0 && reinterpret_cast<uintptr_t>(at) % (4 * sizeof(T)) == 0;
}

/// sum + the products of a pack, with explicit rounding. Every kernel must round the same way: the weights after an
/// update must equal those that weight_norm_forward computes from the directions, or a resumed run would differ from
/// one that was not interrupted.
__device__ __forceinline__ float add_products(float sum, const Pack<float>& x, const Pack<float>& y) {
  return __fadd_rn(sum, __fadd_rn(__fmaf_rn(x.v[1], y.v[1], __fmul_rn(x.v[0], y.v[0])),
                                  __fmaf_rn(x.v[3], y.v[3], __fmul_rn(x.v[2], y.v[2]))));
}

/// Sum of a[i] b[i], valid in every thread: in float within a thread, in double over threads, in a fixed order.
template <class Team>
__device__ __forceinline__ double row_dot(const Team& team, const float* a, const float* b, int64_t length) {
  float sum = 0;
  if (row_vectorizable(length, a) && row_vectorizable(length, b)) {
    for (int64_t i = int64_t{team.thread} * 4; i < length; i += Team::threads * 4) {
      sum = add_products(sum, load_pack(a + i), load_pack(b + i));
    }
  } else {
    for (int64_t i = team.thread; i < length; i += Team::threads) sum = __fmaf_rn(a[i], b[i], sum);
  }
  return team.sum(static_cast<double>(sum));
}

/// 1 / |v|, or 0 for a row without a direction.
__device__ __forceinline__ double inverse_norm(double square) { return square < 0x1p-126 ? 0.0 : 1.0 / sqrt(square); }

/// w = factor v.
template <class Team, class T>
__device__ __forceinline__ void scale_row(const Team& team, const float* v, float factor, int64_t length, T* w) {
  if (row_vectorizable(length, v) && row_vectorizable(length, w)) {
    for (int64_t i = int64_t{team.thread} * 4; i < length; i += Team::threads * 4) {
      Pack<float> x = load_pack(v + i);
#pragma unroll
      for (int k = 0; k < 4; ++k) x.v[k] *= factor;
      if constexpr (sizeof(T) == 4)
        store_pack(w + i, x);
      else
        *reinterpret_cast<uint2*>(w + i) = make_uint2(pack_bf16(x.v[0], x.v[1]), pack_bf16(x.v[2], x.v[3]));
    }
  } else {
    for (int64_t i = team.thread; i < length; i += Team::threads) w[i] = store<T>(factor * v[i]);
  }
}

}  // namespace nacre::cuda
