#pragma once
// Long sums in double, in an order fixed by the length, in two launches: blocks leave one partial each, and one block
// adds those. Partials of double lie in a scratch of floats (two floats each), as on the CPU.
#include "device.cuh"

namespace nacre::cuda {

inline constexpr int sum_threads = 256;
inline constexpr int64_t sum_block_elements = 32768;  ///< of one block: the CPU's parts, so that scratch shapes agree

__device__ __forceinline__ void put_partial(float* scratch, int64_t i, double value) {
  const unsigned long long bits = __builtin_bit_cast(unsigned long long, value);
  scratch[2 * i] = __uint_as_float(static_cast<unsigned>(bits));
  scratch[2 * i + 1] = __uint_as_float(static_cast<unsigned>(bits >> 32));
}
__device__ __forceinline__ double get_partial(const float* scratch, int64_t i) {
  const unsigned long long bits = static_cast<unsigned long long>(__float_as_uint(scratch[2 * i])) |
                                  static_cast<unsigned long long>(__float_as_uint(scratch[2 * i + 1])) << 32;
  return __builtin_bit_cast(double, bits);
}
/// Sum of `count` partials, valid in every thread of the block. `buffer`: one double per warp of shared memory.
__device__ __forceinline__ double sum_partials(const float* scratch, int64_t count, double* buffer) {
  double sum = 0;
  for (int64_t i = threadIdx.x; i < count; i += sum_threads) sum += get_partial(scratch, i);
  return block_sum<sum_threads>(sum, buffer);
}
/// Sum of squares of x[begin, end) over the block, in double.
__device__ __forceinline__ double block_sum_of_squares(const float* x, int64_t begin, int64_t end, double* buffer) {
  double sum = 0;
#pragma unroll 8
  for (int64_t i = begin + threadIdx.x; i < end; i += sum_threads) {
    const double v = static_cast<double>(x[i]);
    sum += v * v;
  }
  return block_sum<sum_threads>(sum, buffer);
}

}  // namespace nacre::cuda
