#pragma once
// Snake inside other kernels: the parameters of a channel.
#include "runtime/device.cuh"
#include "nacre/ops/snake.h"
#include "runtime/vector_math.h"

namespace nacre::cuda {

/// Parameters of one channel: a, frequency = a / pi and gain = 1 / (b + eps), so that y = x + gain sin^2(pi frequency
/// x). The same statements as in snake.cpp.
struct SnakeChannel {
  float a, frequency, gain;
};
__device__ __forceinline__ SnakeChannel snake_channel(const float* alpha, const float* beta, int64_t c,
                                                      bool log_scale) {
  const float a = log_scale ? vec::exp(alpha[c]) : alpha[c];
  const float b = beta == nullptr ? a : (log_scale ? vec::exp(beta[c]) : beta[c]);
  return {a, vec::frequency_of(a), 1.0f / (b + snake_eps)};
}

}  // namespace nacre::cuda
