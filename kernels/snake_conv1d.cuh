#pragma once
// Snake as the input policy of the tiled convolutions.
#include "conv1d_tile.cuh"
#include "snake.cuh"

namespace nacre::cuda::tile {

template <class T>
struct SnakeInput {
  static constexpr bool active = true;
  const float *alpha, *beta;
  bool log_scale;
  struct Column {
    float frequency[pack_size<T>], gain[pack_size<T>];
  };
  __device__ __forceinline__ Column column(int64_t c) const {
    Column out;
#pragma unroll
    for (int i = 0; i < pack_size<T>; ++i) {
      const SnakeChannel p = snake_channel(alpha, beta, c + i, log_scale);
      out.frequency[i] = p.frequency, out.gain[i] = p.gain;
    }
    return out;
  }
  __device__ __forceinline__ void apply(const Column& c, Pack<T>& v) const {
#pragma unroll
    for (int i = 0; i < pack_size<T>; ++i) v.v[i] += vec::sin_squared_pi(c.frequency[i], v.v[i]) * c.gain[i];
  }
};

}  // namespace nacre::cuda::tile
