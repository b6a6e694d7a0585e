#include "conv/conv1d_tile_weights.cuh"

#include "conv/conv1d_cuda.h"
#include "conv/conv1d_tile_taps.cuh"

// Layers of several taps at stride 1 run conv1d_tile_taps.cuh, whose taps share the rows of x: 7 bytes of L2 per
// thousand bf16 operations. All others, pointwise and strided, run conv1d_tile_weights.cuh: 12 to 23 bytes.
namespace nacre::cuda::tile {

template <class T>
int64_t weight_gradient_scratch(const Context& ctx, Shape x, Shape weight, Shape y, const Conv1dGeometry& g) {
  if (!supports_weights<T>(g, x.channels, y.channels)) return 0;
  const DeviceLimits& d = limits(ctx);
  const int64_t parts = supports_taps<T>(g, x.channels, y.channels, weight.time)
                            ? taps_problem<T>(d, x, weight, y, g).parts
                            : weight_parts(d, windows(x, weight, y, g));
  return parts > 1 ? parts * weight.elements() : 0;
}
template int64_t weight_gradient_scratch<float>(const Context&, Shape, Shape, Shape, const Conv1dGeometry&);
template int64_t weight_gradient_scratch<bf16>(const Context&, Shape, Shape, Shape, const Conv1dGeometry&);

template <class T>
int64_t weight_gradient(Context& ctx, const Conv1dWeightGradient<T>& a) {
  const Shape x = a.x.shape, weight = a.dweight.shape, y = a.dy.shape;
  if (!supports_weights<T>(a.geometry, x.channels, y.channels)) return 0;
  if (!aligned16(a.x.data) || !aligned16(a.dy.data) || !aligned16(a.dweight.data) || !aligned16(a.scratch.data))
    return 0;
  const PlainInput<T> input;
  if (supports_taps<T>(a.geometry, x.channels, y.channels, weight.time)) {
    Taps s = taps_problem<T>(limits(ctx), x, weight, y, a.geometry);
    s.add = a.add_dweight;
    float* const to = s.parts > 1 ? a.scratch.data : a.dweight.data;
    if constexpr (sizeof(T) == 2)
      launch_taps_product<Product::bf16>(ctx, "conv1d_weight_gradient_taps_bf16", s, a.dy.data, a.x.data, input, to);
    else if (ctx.precision() == Precision::tf32)
      launch_taps_product<Product::tf32>(ctx, "conv1d_weight_gradient_taps_tf32", s, a.dy.data, a.x.data, input, to);
    else
      launch_taps_product<Product::fma>(ctx, "conv1d_weight_gradient_taps_fma", s, a.dy.data, a.x.data, input, to);
    return s.parts;
  }
  Windows s = windows(x, weight, y, a.geometry);
  s.parts = weight_parts(limits(ctx), s), s.add = a.add_dweight;
  float* const to = s.parts > 1 ? a.scratch.data : a.dweight.data;
  if constexpr (sizeof(T) == 2)
    launch_weight_product<Product::bf16>(ctx, "conv1d_weight_gradient_bf16", s, a.dy.data, a.x.data, input, to);
  else if (ctx.precision() == Precision::tf32)
    launch_weight_product<Product::tf32>(ctx, "conv1d_weight_gradient_tf32", s, a.dy.data, a.x.data, input, to);
  else
    launch_weight_product<Product::fma>(ctx, "conv1d_weight_gradient_fma", s, a.dy.data, a.x.data, input, to);
  return s.parts;
}
template int64_t weight_gradient<float>(Context&, const Conv1dWeightGradient<float>&);
template int64_t weight_gradient<bf16>(Context&, const Conv1dWeightGradient<bf16>&);

}  // namespace nacre::cuda::tile
