#pragma once
// Snake inside other kernels: parameters of a channel, and the second stage of their gradients.
#include "nacre/ops/snake.h"
#include "runtime/device.cuh"
#include "runtime/vector_math.h"

namespace nacre::cuda {

/// Parameters of one channel: a, a / pi and 1 / (b + eps).
struct SnakeChannel {
  float a, frequency, gain;
};
__device__ __forceinline__ SnakeChannel snake_channel(const float* alpha, const float* beta, int64_t c,
                                                      bool log_scale) {
  const float a = log_scale ? vec::exp(alpha[c]) : alpha[c];
  const float b = beta == nullptr ? a : (log_scale ? vec::exp(beta[c]) : beta[c]);
  return {a, vec::frequency_of(a), 1.0f / (b + snake_eps)};
}

/// dalpha and dbeta +=, from partial [parts][2][channels]: sums of g x sin(2 a x) / 2 and of g sin^2(a x). The parts
/// are added in double, in a fixed order.
void snake_parameter_gradients(Context&, View<const float> alpha, View<const float> beta, bool log_scale,
                               View<float> dalpha, View<float> dbeta, int64_t parts, const float* partial);

}  // namespace nacre::cuda
