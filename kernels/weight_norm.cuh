#pragma once
// A row of weights worked on by one block, shared by weight_norm.cu and weight_norm_adamw.cu.
#include "device.cuh"
#include "nacre/ops/weight_norm.h"

namespace nacre::cuda {

inline constexpr int row_threads = 256;

/// Whether a row can be read in 16-byte packs. The same for all threads of the block.
template <class T>
__device__ __forceinline__ bool row_packs(int64_t length, const T* at) {
  return length % 4 == 0 && reinterpret_cast<uintptr_t>(at) % (4 * sizeof(T)) == 0;
}

/// sum + a pack's products, rounded as written here wherever it is compiled: the weights that an update leaves must be
/// those that weight_norm makes of its directions, or a run that is resumed goes another way than one that is not.
__device__ __forceinline__ float add_products(float sum, const Pack<float>& x, const Pack<float>& y) {
  return __fadd_rn(sum, __fadd_rn(__fmaf_rn(x.v[1], y.v[1], __fmul_rn(x.v[0], y.v[0])),
                                  __fmaf_rn(x.v[3], y.v[3], __fmul_rn(x.v[2], y.v[2]))));
}

/// Sum of a[i] b[i], valid in every thread: products of a thread in float, threads in double, in a fixed order.
__device__ __forceinline__ double row_dot(const float* a, const float* b, int64_t length, double* buffer) {
  float sum = 0;
  if (row_packs(length, a) && row_packs(length, b)) {
    for (int64_t i = int64_t{threadIdx.x} * 4; i < length; i += row_threads * 4) {
      sum = add_products(sum, load_pack(a + i), load_pack(b + i));
    }
  } else {
    for (int64_t i = threadIdx.x; i < length; i += row_threads) sum = __fmaf_rn(a[i], b[i], sum);
  }
  return block_sum<row_threads>(static_cast<double>(sum), buffer);
}

/// 1 / |v|, or 0 for a row without a direction.
__device__ __forceinline__ double inverse_norm(double square) { return square < 0x1p-126 ? 0.0 : 1.0 / sqrt(square); }

/// w = factor v, by the whole block.
template <class T>
__device__ __forceinline__ void scale_row(const float* v, float factor, int64_t length, T* w) {
  if (row_packs(length, v) && row_packs(length, w)) {
    for (int64_t i = int64_t{threadIdx.x} * 4; i < length; i += row_threads * 4) {
      Pack<float> x = load_pack(v + i);
#pragma unroll
      for (int k = 0; k < 4; ++k) x.v[k] *= factor;
      if constexpr (sizeof(T) == 4)
        store_pack(w + i, x);
      else
        *reinterpret_cast<uint2*>(w + i) = make_uint2(pack_bf16(x.v[0], x.v[1]), pack_bf16(x.v[2], x.v[3]));
    }
  } else {
    for (int64_t i = threadIdx.x; i < length; i += row_threads) w[i] = store<T>(factor * v[i]);
  }
}

}  // namespace nacre::cuda
