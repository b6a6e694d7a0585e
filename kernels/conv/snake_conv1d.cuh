#pragma once
// Snake as the input policy of the tiled convolutions.
#include "conv/conv1d_tile.cuh"
#include "pointwise/snake.cuh"

namespace nacre::cuda::tile {

template <class T>
struct SnakeInput {
  static constexpr bool active = true;
  const float *alpha, *beta;
  bool log_scale;
  struct Parameters {
    float frequency, gain;
  };
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
