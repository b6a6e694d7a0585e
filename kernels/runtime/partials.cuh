#pragma once
// Long sums on the device, in two launches. First each block adds one part, fixed by the shape alone, and stores a
// double in scratch, which is an array of floats. Then one block adds the parts: thread i the parts i, i + threads, ...
// in ascending order.
#include "runtime/device.cuh"

namespace nacre::cuda {

constexpr int sum_threads = 256;
constexpr int64_t sum_part = 4096;  ///< elements per block: four packs of floats per thread
/// Blocks that sums over rows are divided among, if there are as many rows: two for each multiprocessor of an H200. It
/// is part of the order of sums, so it is the same on every device.
constexpr int64_t blocks_of_sums = 2 * 132;
inline int64_t sum_parts(int64_t n) { return (n + sum_part - 1) / sum_part; }

/// The scratch need not be aligned for double.
__device__ __forceinline__ void put_partial(float* scratch, int64_t i, double value) {
  const uint64_t bits = __builtin_bit_cast(uint64_t, value);
  scratch[2 * i] = __uint_as_float(static_cast<unsigned>(bits));
  scratch[2 * i + 1] = __uint_as_float(static_cast<unsigned>(bits >> 32));
}
__device__ __forceinline__ double get_partial(const float* scratch, int64_t i) {
  const uint64_t low = __float_as_uint(scratch[2 * i]), high = __float_as_uint(scratch[2 * i + 1]);
  return __builtin_bit_cast(double, high << 32 | low);
}
/// The sum of the parts lane, lane + lanes, ... below count.
__device__ __forceinline__ double add_partials(const float* scratch, int64_t count, int lane, int lanes) {
  double sum = 0;
  for (int64_t i = lane; i < count; i += lanes) sum += get_partial(scratch, i);
  return sum;
}
/// The sum of all parts, valid in every thread of a block of sum_threads. `buffer`: shared memory, one double per warp.
__device__ __forceinline__ double sum_partials(const float* scratch, int64_t count, double* buffer) {
  return block_sum<sum_threads>(add_partials(scratch, count, static_cast<int>(threadIdx.x), sum_threads), buffer);
}
/// Sum of squares of the block's part of x[0, n), valid in every thread.
__device__ __forceinline__ double sum_of_squares_part(const float* x, int64_t n, double* buffer) {
  const int64_t begin = int64_t{blockIdx.x} * sum_part, end = begin + sum_part < n ? begin + sum_part : n;
  double sum = 0;
#pragma unroll 8
  for (int64_t i = begin + threadIdx.x; i < end; i += sum_threads) {
    const double v = static_cast<double>(x[i]);
    sum += v * v;
  }
  return block_sum<sum_threads>(sum, buffer);
}

}  // namespace nacre::cuda
