#include "conv/conv1d_cuda.h"
#include "conv/conv1d_ends.cuh"
#include "conv/conv1d_tile_taps.cuh"
#include "conv/conv1d_tile_weights.cuh"
#include "conv/snake_conv1d.cuh"

// The weight gradient computed from x, with Snake applied on the way. Layers of several taps run conv1d_tile_taps.cuh,
// which applies Snake to a row of x once per 64 outputs. In pointwise and strided layers each element of x belongs to
// one or two windows, and conv1d_tile_weights.cuh applies Snake to the elements that it loads. Snake takes about 12
// operations per element, the product at least 64 per tap.
namespace nacre::cuda {
namespace tile {
namespace {

/// Whether applying Snake once per window and column of tiles is faster than a separate Snake kernel.
bool fusion_is_faster(bool tensor_cores, Shape weight, const Conv1dGeometry& g) {
  return !tensor_cores || ceil_div(weight.time, g.stride) * ceil_div(weight.batch, int64_t{128}) <= 2;
}

template <class T>
bool activated_weight_gradient(Context& ctx, const SnakeConv1dWeightGradient<T>& a) {
  const Shape x = a.x.shape, y = a.dy.shape;
  const Conv1dGeometry& g = a.geometry;
  if (!supports_weights<T>(g, x.channels, y.channels)) return false;
  if (!aligned16(a.x.data) || !aligned16(a.dy.data) || !aligned16(a.dweight.data) || !aligned16(a.scratch.data))
    return false;
  const SnakeInput<T> input{a.alpha.data, a.beta.data, a.log_scale};
  const auto finish = [&](int64_t parts) {
    if (parts > 1) add_parts(ctx, a.scratch.data, parts, a.dweight.elements(), a.dweight.data, a.add_dweight);
    if (a.dbias) add_column_sums(ctx, a.dy, a.dbias.data, a.scratch.data);
    return true;
  };
  if (supports_taps<T>(g, x.channels, y.channels, a.dweight.shape.time)) {
    Taps s = taps_problem<T>(limits(ctx), x, a.dweight.shape, y, g);
    s.add = a.add_dweight;
    float* const to = s.parts > 1 ? a.scratch.data : a.dweight.data;
    if constexpr (sizeof(T) == 2)
      launch_taps_product<Product::bf16>(ctx, "snake_conv1d_weight_gradient_taps_bf16", s, a.dy.data, a.x.data, input,
                                         to);
    else if (ctx.precision() == Precision::tf32)
      launch_taps_product<Product::tf32>(ctx, "snake_conv1d_weight_gradient_taps_tf32", s, a.dy.data, a.x.data, input,
                                         to);
    else
      launch_taps_product<Product::fma>(ctx, "snake_conv1d_weight_gradient_taps_fma", s, a.dy.data, a.x.data, input,
                                        to);
    return finish(s.parts);
  }
  if (!fusion_is_faster(sizeof(T) == 2 || ctx.precision() == Precision::tf32, a.dweight.shape, g)) return false;
  Windows s = windows(x, a.dweight.shape, y, g);
  s.parts = weight_parts(limits(ctx), s), s.add = a.add_dweight;
  float* const to = s.parts > 1 ? a.scratch.data : a.dweight.data;
  if constexpr (sizeof(T) == 2)
    launch_weight_product<Product::bf16>(ctx, "snake_conv1d_weight_gradient_bf16", s, a.dy.data, a.x.data, input, to);
  else if (ctx.precision() == Precision::tf32)
    launch_weight_product<Product::tf32>(ctx, "snake_conv1d_weight_gradient_tf32", s, a.dy.data, a.x.data, input, to);
  else if (s.out > 64)  // blocks of 128 by 128 and Snake's parameters need more registers than there are
    launch_weight_blocks<128, 64, Product::fma>(ctx, "snake_conv1d_weight_gradient_fma", s, a.dy.data, a.x.data, input,
                                                to);
  else
    launch_weight_blocks<64, 64, Product::fma>(ctx, "snake_conv1d_weight_gradient_fma", s, a.dy.data, a.x.data, input,
                                               to);
  return finish(s.parts);
}

}  // namespace
}  // namespace tile

template <class T>
int64_t snake_conv1d_weight_gradient_scratch(Context& ctx, Shape x, Shape weight, Shape dy, const Conv1dGeometry& g) {
  const bool taps = tile::supports_taps<T>(g, x.channels, dy.channels, weight.time);
  return std::max({conv1d_ends_weight_gradient_scratch<T>(x, weight, dy, g), column_sums_scratch(ctx, dy),
                   taps ? tile::taps_problem<T>(limits(ctx), x, weight, dy, g).parts * weight.elements()
                        : tile::weight_gradient_scratch<T>(ctx, x, weight, dy, g)});
}
template <class T>
bool snake_conv1d_weight_gradient(Context& ctx, const SnakeConv1dWeightGradient<T>& a) {
  return snake_conv1d_ends_weight_gradient(ctx, a) || tile::activated_weight_gradient(ctx, a);
}

#define NACRE_INSTANTIATE(T)                                                                                      \
  template int64_t snake_conv1d_weight_gradient_scratch<T>(Context&, Shape, Shape, Shape, const Conv1dGeometry&); \
  template bool snake_conv1d_weight_gradient<T>(Context&, const SnakeConv1dWeightGradient<T>&);
NACRE_INSTANTIATE(float)
NACRE_INSTANTIATE(bf16)
#undef NACRE_INSTANTIATE

}  // namespace nacre::cuda
