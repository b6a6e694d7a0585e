#include "conv1d_tile_weights.cuh"

#include "conv1d_cuda.h"

namespace nacre::cuda::tile {

template <class T>
int64_t weight_gradient_scratch(Shape x, Shape weight, Shape y, const Conv1dGeometry& g) {
  if (!suits_weights<T>(g, x.channels, y.channels)) return 0;
  const int64_t parts = weight_parts(windows(x, weight, y, g));
  return parts > 1 ? parts * weight.elements() : 0;
}
template int64_t weight_gradient_scratch<float>(Shape, Shape, Shape, const Conv1dGeometry&);
template int64_t weight_gradient_scratch<bf16>(Shape, Shape, Shape, const Conv1dGeometry&);

template <class T>
int64_t weight_gradient(Context& ctx, const Conv1dWeightGradient<T>& a) {
  if (!suits_weights<T>(a.geometry, a.x.shape.channels, a.dy.shape.channels)) return 0;
  if (!aligned16(a.x.data) || !aligned16(a.dy.data) || !aligned16(a.dweight.data) || !aligned16(a.scratch.data)) return 0;
  Windows s = windows(a.x.shape, a.dweight.shape, a.dy.shape, a.geometry);
  s.parts = weight_parts(s);
  float* const to = s.parts > 1 ? a.scratch.data : a.dweight.data;
  const PlainInput<T> input;
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
