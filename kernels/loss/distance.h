#pragma once
// The distance of two activations and its gradient, shared by waveform_loss and feature_loss.
#include <cstdint>

#include "nacre/view.h"
#include "runtime/elementwise.h"

namespace nacre {

/// |d|; NaN stays NaN.
NACRE_INLINE double magnitude(float d) {
  const double wide = static_cast<double>(d);
  return d < 0 ? -wide : wide;
}
/// scale sign(d). Where d is neither above nor below 0 it is scale * d: 0 stays 0, and NaN stays NaN.
NACRE_INLINE float scaled_sign(float d, float scale) { return d > 0 ? scale : (d < 0 ? -scale : scale * d); }

/// The divisor of a relative distance, from the mean of |reference|. NaN stays NaN.
NACRE_INLINE double relative_divisor(double mean) { return mean < 1e-12 ? 1e-12 : mean; }

/// Sum of |x| over n elements, in 16 lanes.
template <class T>
NACRE_INLINE double magnitude_part(const T* x, int64_t n) {
  double lanes[16] = {};
  for (int64_t i = 0; i + 16 <= n; i += 16)
    for (int k = 0; k < 16; ++k) lanes[k] += magnitude(to_float(x[i + k]));
  for (int64_t i = n / 16 * 16; i < n; ++i) lanes[i % 16] += magnitude(to_float(x[i]));
  double sum = 0;
  for (int k = 0; k < 16; ++k) sum += lanes[k];
  return sum;
}

/// Sum of |d| or d^2 over n elements, d = x - y, in 16 lanes, and, with_gradient, the gradient with respect to x with
/// factor `scale`. The gradient may be x.
template <bool squared, bool with_gradient, class T>
NACRE_INLINE double distance_part(const T* x, const T* y, T* gradient, int64_t n, float scale) {
  double lanes[16] = {};
  const auto element = [&](int64_t i, double& lane) __attribute__((always_inline)) {
    const float d = to_float(x[i]) - to_float(y[i]);
    const double wide = static_cast<double>(d);
    if constexpr (squared)
      lane += wide * wide;
    else
      lane += magnitude(d);
    if constexpr (with_gradient) gradient[i] = store<T>(squared ? scale * d : scaled_sign(d, scale));
  };
  for (int64_t i = 0; i + 16 <= n; i += 16) {
    NACRE_INDEPENDENT
    for (int k = 0; k < 16; ++k) element(i + k, lanes[k]);
  }
  for (int64_t i = n / 16 * 16; i < n; ++i) element(i, lanes[i % 16]);
  double sum = 0;
  for (int k = 0; k < 16; ++k) sum += lanes[k];
  return sum;
}

}  // namespace nacre
