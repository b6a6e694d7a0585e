#include "nacre/ops/adamw.h"

#include <cmath>

#include "runtime/elementwise.h"
#include "runtime/sums.h"

// AdamW on the CPU (formulas and contract: nacre/ops/adamw.h; twin: adamw.cu and adamw.cuh). The norm of the whole
// gradient comes first, because the clip factor depends on it; then one pass updates all elements.
namespace nacre {
namespace cuda {
Shape adamw_scratch(Shape value);
void adamw(Context&, const AdamW&);
}  // namespace cuda
namespace {

/// Factors of one step, the same for all elements: clip = that of the gradient, rate = lr / (1 - beta1^step), decay =
/// lr weight_decay, root_scale = 1 / (1 - beta2^step), ema_rate = 1 - ema_decay.
struct Step {
  float clip, beta1, beta2, rate, decay, root_scale, eps, ema_rate;
};

/// The new value of an element; m and v are updated in place.
NACRE_INLINE float update(float value, float grad, float& m, float& v, const Step& s) {
  const float g = s.clip * grad;
  m = s.beta1 * m + (1.0f - s.beta1) * g;
  v = s.beta2 * v + (1.0f - s.beta2) * (g * g);
  return value - (s.decay * value + s.rate * (m / (__builtin_sqrtf(v * s.root_scale) + s.eps)));
}
NACRE_CLONES void update_loop(float* __restrict value, const float* __restrict grad, float* __restrict m,
                              float* __restrict v, int64_t n, Step s) {
  for (int64_t i = 0; i < n; ++i) value[i] = update(value[i], grad[i], m[i], v[i], s);
}
NACRE_CLONES void update_ema_loop(float* __restrict value, const float* __restrict grad, float* __restrict m,
                                  float* __restrict v, float* __restrict ema, int64_t n, Step s) {
  for (int64_t i = 0; i < n; ++i) {
    value[i] = update(value[i], grad[i], m[i], v[i], s);
    ema[i] += s.ema_rate * (value[i] - ema[i]);
  }
}

/// The factors in double, rounded to float once: in the first steps 1 - beta^step is a difference of nearly equal
/// numbers. scalars.step already counts this step.
Step step_of(const AdamW& a, double norm, const AdamWScalars& scalars) {
  const double lr = static_cast<double>(scalars.lr), max_norm = static_cast<double>(a.max_norm);
  const double clip = max_norm > 0 ? std::min(1.0, max_norm / (norm + 1e-6)) : 1.0;
  const double unbias_m = 1 - std::pow(static_cast<double>(a.beta1), scalars.step);
  const double unbias_v = 1 - std::pow(static_cast<double>(a.beta2), scalars.step);
  return {.clip = static_cast<float>(clip),
          .beta1 = a.beta1,
          .beta2 = a.beta2,
          .rate = static_cast<float>(lr / unbias_m),
          .decay = static_cast<float>(lr * static_cast<double>(a.weight_decay)),
          .root_scale = static_cast<float>(1 / unbias_v),
          .eps = a.eps,
          .ema_rate = 1.0f - a.ema_decay};
}

}  // namespace

Shape adamw_scratch(Context& ctx, Shape value) {
  if constexpr (with_cuda)
    if (on_cuda(ctx)) return cuda::adamw_scratch(value);
  return {.channels = partial_floats(sum_parts(value.elements()))};
}

void adamw(Context& ctx, const AdamW& a) {
  const Shape shape = a.value.shape;
  expect_shape("adamw", "value", a.value, shape);
  expect_shape("adamw", "grad", a.grad, shape);
  expect_shape("adamw", "m", a.m, shape);
  expect_shape("adamw", "v", a.v, shape);
  expect_shape_or_empty("adamw", "ema", a.ema, shape);
  expect_shape("adamw", "scalars", a.scalars, Shape{});
  expect_scratch("adamw", a.scratch, adamw_scratch(ctx, shape));
  if constexpr (with_cuda)
    if (on_cuda(ctx)) return cuda::adamw(ctx, a);
  AdamWScalars& scalars = *a.scalars.data;
  const double norm = std::sqrt(sum_of_squares(ctx, a.grad.data, shape.elements(), a.scratch.data));
  scalars.norm = static_cast<float>(norm);
  // Finite as a float: a norm that overflows a float is skipped as well, as on the device.
  if (!std::isfinite(scalars.norm)) {
    ++scalars.skipped;
    return;
  }
  ++scalars.step;
  const Step step = step_of(a, norm, scalars);
  parallel_elements(ctx, shape.elements(), [&](int64_t begin, int64_t end) {
    float *value = a.value.data + begin, *m = a.m.data + begin, *v = a.v.data + begin;
    if (a.ema)
      update_ema_loop(value, a.grad.data + begin, m, v, a.ema.data + begin, end - begin, step);
    else
      update_loop(value, a.grad.data + begin, m, v, end - begin, step);
  });
}

}  // namespace nacre
