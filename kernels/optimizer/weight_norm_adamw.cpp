#include "nacre/ops/weight_norm_adamw.h"

#include "runtime/host.h"

// The end of a training step on the CPU: weight_norm_backward, adamw and weight_norm_forward in sequence
// (contract: nacre/ops/weight_norm_adamw.h; the fused kernels of the device: weight_norm_adamw.cu). The block of
// parameters is [directions | gains | rest].
namespace nacre {
namespace cuda {
Shape weight_norm_adamw_scratch(Shape value, int64_t directions, int64_t gains, int64_t rows);
template <class T>
void weight_norm_adamw(Context&, const WeightNormAdamW<T>&);
}  // namespace cuda

Shape weight_norm_adamw_scratch(Context& ctx, Shape value, int64_t directions, int64_t gains, int64_t rows) {
  if constexpr (with_cuda)
    if (on_cuda(ctx)) return cuda::weight_norm_adamw_scratch(value, directions, gains, rows);
  return adamw_scratch(ctx, value);
}

template <class T>
void weight_norm_adamw(Context& ctx, const WeightNormAdamW<T>& a) {
  const char* const op = "weight_norm_adamw";
  const Shape shape = a.adamw.value.shape, weights{.channels = a.directions};
  expect_shape(op, "value", a.adamw.value, shape);
  expect_shape(op, "grad", a.adamw.grad, shape);
  expect_shape(op, "m", a.adamw.m, shape);
  expect_shape(op, "v", a.adamw.v, shape);
  expect_shape_or_empty(op, "ema", a.adamw.ema, shape);
  expect_shape(op, "scalars", a.adamw.scalars, Shape{});
  if (a.directions < 0 || a.gains < 0 || a.directions + a.gains > shape.elements()) [[unlikely]]
    throw_usage(op, std::to_string(a.directions) + " directions and " + std::to_string(a.gains) +
                        " gains in a block of " + std::to_string(shape.elements()));
  expect_shape(op, "rows", a.rows, a.rows.shape);
  expect_shape(op, "dw", a.dw, weights);
  expect_shape(op, "w", a.w, weights);
  expect_scratch(op, a.adamw.scratch, weight_norm_adamw_scratch(ctx, shape, a.directions, a.gains, a.rows.elements()));
  if constexpr (with_cuda)
    if (on_cuda(ctx)) return cuda::weight_norm_adamw(ctx, a);
  // The block of gradients belongs to the caller; it is const only because adamw does not write to it.
  auto* const grad = const_cast<float*>(a.adamw.grad.data);
  const View<float> dv(grad, weights), dg(grad + a.directions, {.channels = a.gains});
  const View<const float> v(a.adamw.value.data, weights), g(a.adamw.value.data + a.directions, {.channels = a.gains});
  // weight_norm_backward adds to dv and dg. The gradients of the rest are in `grad` already.
  ctx.zero(dv);
  ctx.zero(dg);
  weight_norm_backward(ctx, {.v = v, .g = g, .rows = a.rows, .dw = a.dw, .dv = dv, .dg = dg});
  adamw(ctx, a.adamw);
  weight_norm_forward<T>(ctx, {.v = v, .g = g, .rows = a.rows, .w = a.w});
}

template void weight_norm_adamw<float>(Context&, const WeightNormAdamW<float>&);
template void weight_norm_adamw<bf16>(Context&, const WeightNormAdamW<bf16>&);

}  // namespace nacre
