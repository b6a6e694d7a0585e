#pragma once
// The update of one parameter, shared by adamw.cu and weight_norm_adamw.cu.
#include "runtime/device.cuh"
#include "nacre/ops/adamw.h"
#include "runtime/partials.cuh"

namespace nacre::cuda {

/// Factors of one step, the same for all elements; see Step in adamw.cpp. In device memory, because they depend on the
/// gradient's norm.
struct AdamWStep {
  float clip, beta1, beta2, rate, decay, root_scale, eps, ema_rate;
  int apply;  ///< 0: the norm was not finite, nothing is updated
};
inline constexpr int64_t adamw_step_floats = 16;  ///< of scratch for an AdamWStep

/// What adamw_begin needs of AdamW. A kernel parameter: these do not change between the replays of a captured step.
struct AdamWHyper {
  float beta1, beta2, eps, weight_decay, max_norm, ema_decay;
};

/// Counts the step and computes its factors from the squared norm of all gradients. Runs in one thread; `out` may be
/// null.
__device__ __forceinline__ void adamw_begin(double square, const AdamWHyper& h, AdamWScalars* scalars, AdamWStep* out) {
  const double norm = sqrt(square);
  AdamWScalars s = *scalars;
  s.norm = static_cast<float>(norm);
  AdamWStep step{};
  // Finite as a float, as on the CPU; false for NaN.
  step.apply = s.norm <= 3.402823466e38f ? 1 : 0;
  if (step.apply == 0) {
    ++s.skipped;
  } else {
    ++s.step;
    const double lr = static_cast<double>(s.lr), max_norm = static_cast<double>(h.max_norm);
    const double clip = max_norm > 0 && max_norm < norm + 1e-6 ? max_norm / (norm + 1e-6) : 1.0;
    const double unbias_m = 1 - pow(static_cast<double>(h.beta1), static_cast<double>(s.step));
    const double unbias_v = 1 - pow(static_cast<double>(h.beta2), static_cast<double>(s.step));
    step.clip = static_cast<float>(clip);
    step.beta1 = h.beta1;
    step.beta2 = h.beta2;
    step.rate = static_cast<float>(lr / unbias_m);
    step.decay = static_cast<float>(lr * static_cast<double>(h.weight_decay));
    step.root_scale = static_cast<float>(1 / unbias_v);
    step.eps = h.eps;
    step.ema_rate = 1.0f - h.ema_decay;
  }
  *scalars = s;
  if (out != nullptr) *out = step;
}

/// The new value of an element; m and v are updated in place. The same statements as in adamw.cpp.
__device__ __forceinline__ float adamw_update(float value, float grad, float& m, float& v, const AdamWStep& s) {
  const float g = s.clip * grad;
  m = s.beta1 * m + (1.0f - s.beta1) * g;
  v = s.beta2 * v + (1.0f - s.beta2) * (g * g);
  return value - (s.decay * value + s.rate * (m / (sqrtf(v * s.root_scale) + s.eps)));
}

/// One partial of the squared norm per block.
static __global__ void __launch_bounds__(sum_threads) adamw_norm_kernel(const float* grad, int64_t n, float* partials) {
  NACRE_SHARED(double, buffer, sum_threads / 32);
  const double sum = sum_of_squares_part(grad, n, buffer);
  if (threadIdx.x == 0) put_partial(partials, blockIdx.x, sum);
}
/// One block adds the partials and begins the step.
static __global__ void __launch_bounds__(sum_threads)
    adamw_begin_kernel(const float* partials, int64_t count, AdamWHyper hyper, AdamWScalars* scalars, AdamWStep* step) {
  NACRE_SHARED(double, buffer, sum_threads / 32);
  const double square = sum_partials(partials, count, buffer);
  if (threadIdx.x == 0) adamw_begin(square, hyper, scalars, step);
}

}  // namespace nacre::cuda
