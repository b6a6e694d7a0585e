#pragma once
// Snake as the input policy of the tiled convolutions.
#include "conv/conv1d_tile.cuh"
#include "pointwise/snake.cuh"

namespace nacre::cuda::tile {

/// x + sin^2(a x) / (b + eps) for the packs of x's tiles, in place (see PlainInput for what a policy is). It maps 0 to
/// 0, so padding may be activated like any other sample. The forward keeps one Parameters (8 bytes) for each channel of
/// x in shared memory; these are the input_bytes of choose_cuda.cpp. It reads those of a pack as a Column, which is
/// aligned for accesses of 16 bytes. The weight gradients keep the Column of their fixed channels in registers.
template <class T>
struct SnakeInput {
  static constexpr bool active = true;
  // [channels]; beta may be null, which is plain Snake (snake_channel).
  const float *alpha, *beta;
  bool log_scale;
  using Parameters = SnakeFactors;
  struct alignas(16) Column {
    Parameters of[pack_size<T>];
  };
  __device__ __forceinline__ Parameters channel(int64_t c) const {
    const SnakeChannel p = snake_channel(alpha, beta, c, log_scale);
    return {p.frequency, p.gain};
  }
  __device__ __forceinline__ Column column(int64_t c) const {
    Column out;
#pragma unroll
    for (int i = 0; i < pack_size<T>; ++i) out.of[i] = channel(c + i);
    return out;
  }
  __device__ __forceinline__ void apply(const Column& c, Pack<T>& v) const {
#pragma unroll
    for (int i = 0; i < pack_size<T>; ++i) v.v[i] += vec::sin_squared_pi(c.of[i].frequency, v.v[i]) * c.of[i].gain;
  }
};

}  // namespace nacre::cuda::tile
