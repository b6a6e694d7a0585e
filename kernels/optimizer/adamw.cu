#include "nacre/ops/adamw.h"

#include "optimizer/adamw.cuh"

// AdamW on the device (formulas and contract: nacre/ops/adamw.h; twin: adamw.cpp). Three launches without a
// synchronisation with the host: partial sums of squares; one block that adds them and prepares the step; the update.
// Bound by memory: 4 bytes per element for the norm, 28 for the update (36 with ema). Scratch: AdamWStep, then the
// partial sums.
namespace nacre::cuda {
namespace {

/// Updates all elements: four per access if `vectorized`, then the rest one by one. A thread reads and writes its own
/// elements only. All threads take the step from device memory; apply is the same for all.
template <bool vectorized, bool with_ema>
__global__ void __launch_bounds__(256) adamw_update_kernel(AdamW a, const AdamWStep* shared_step) {
  const AdamWStep step = *shared_step;
  if (step.apply == 0) return;
  constexpr int size = 4;
  const int64_t n = a.value.elements(), pack_count = vectorized ? n / size : 0, stride = grid_threads();
  float *const value = a.value.data, *const m = a.m.data, *const v = a.v.data, *const ema = a.ema.data;
  const float* const grad = a.grad.data;
#pragma unroll 1
  for (int64_t i = grid_thread(); i < pack_count; i += stride) {
    Pack<float> x = load_pack(value + i * size), mi = load_pack(m + i * size), vi = load_pack(v + i * size);
    const Pack<float> g = load_pack(grad + i * size);
#pragma unroll
    for (int k = 0; k < size; ++k) x.v[k] = adamw_update(x.v[k], g.v[k], mi.v[k], vi.v[k], step);
    store_pack(value + i * size, x);
    store_pack(m + i * size, mi);
    store_pack(v + i * size, vi);
    if constexpr (with_ema) {
      Pack<float> e = load_pack(ema + i * size);
#pragma unroll
      for (int k = 0; k < size; ++k) e.v[k] += step.ema_rate * (x.v[k] - e.v[k]);
      store_pack(ema + i * size, e);
    }
  }
#pragma unroll 1
  for (int64_t i = pack_count * size + grid_thread(); i < n; i += stride) {
    float mi = m[i], vi = v[i];
    const float x = adamw_update(value[i], grad[i], mi, vi, step);
    value[i] = x, m[i] = mi, v[i] = vi;
    if constexpr (with_ema) ema[i] += step.ema_rate * (x - ema[i]);
  }
}

}  // namespace

Shape adamw_scratch(Shape value) {
  if (value.elements() == 0) return {.channels = 0};
  return {.channels = adamw_step_floats + 2 * sum_parts(value.elements())};
}

void adamw(Context& ctx, const AdamW& a) {
  const int64_t n = a.value.elements(), parts = sum_parts(n);
  auto* const step = reinterpret_cast<AdamWStep*>(a.scratch.data);
  // An empty block has no scratch: there are no partial sums, and adamw_begin only counts the step.
  float* const partials = n > 0 ? a.scratch.data + adamw_step_floats : nullptr;
  launch(ctx, {.name = "adamw_norm", .grid = static_cast<unsigned>(parts), .block = sum_threads}, adamw_norm_kernel,
         a.grad.data, n, partials);
  launch(ctx, {.name = "adamw_begin", .block = sum_threads}, adamw_begin_kernel, partials, parts,
         AdamWHyper{a.beta1, a.beta2, a.eps, a.weight_decay, a.max_norm, a.ema_decay}, a.scalars.data, step);
  const bool vectorized = aligned16(a.value.data) && aligned16(a.grad.data) && aligned16(a.m.data) &&
                          aligned16(a.v.data) && aligned16(a.ema.data);
  const auto kernel = vectorized ? (a.ema ? adamw_update_kernel<true, true> : adamw_update_kernel<true, false>)
                                 : (a.ema ? adamw_update_kernel<false, true> : adamw_update_kernel<false, false>);
  launch(ctx,
         {.name = vectorized ? "adamw_update_packs" : "adamw_update",
          .grid = blocks_for(vectorized ? ceil_div(n, int64_t{4}) : n, 256),
          .block = 256},
         kernel, a, step);
}

}  // namespace nacre::cuda
