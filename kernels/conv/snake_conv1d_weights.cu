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

template <class T>
void activated_weight_gradient(Context& ctx, const SnakeConv1dWeightGradient<T>& a,
                               const conv::WeightGradientChoice& choice) {
  const SnakeInput<T> input{a.alpha.data, a.beta.data, a.log_scale};
  const bool later = static_cast<bool>(a.parts);
  float* const partial = later ? a.parts.data : a.scratch.data;
  float* const to = choice.parts > 1 ? partial : a.dweight.data;
  const BiasSums bias{a.dbias ? partial + choice.bias_at : nullptr};
  with_product<T>(ctx, [&]<Product P>() {
    if (choice.engine == conv::Engine::taps) {
      Taps s = choice.taps;
      s.add = a.add_dweight;
      return launch_taps_product<P>(ctx, product_name<"snake_conv1d_weight_gradient_taps", P>, s, a.dy.data, a.x.data,
                                    input, to, bias.to);
    }
    Windows s = choice.windows;
    s.add = a.add_dweight;
    if constexpr (P != Product::fma)
      launch_weight_product<P>(ctx, product_name<"snake_conv1d_weight_gradient", P>, s, choice.block, a.dy.data,
                               a.x.data, input, to, bias);
    else if (choice.block.rows == 128)  // float products have two sizes of blocks only (snake_weight_blocking)
      launch_weight_blocks<128, 64, P>(ctx, product_name<"snake_conv1d_weight_gradient", P>, s, a.dy.data, a.x.data,
                                       input, to, bias);
    else
      launch_weight_blocks<64, 64, P>(ctx, product_name<"snake_conv1d_weight_gradient", P>, s, a.dy.data, a.x.data,
                                      input, to, bias);
  });
  add_weight_parts(ctx, choice, partial, a.dweight, a.add_dweight, a.dbias, later);
}

}  // namespace
}  // namespace tile

template <class T>
bool snake_conv1d_weight_gradient(Context& ctx, const SnakeConv1dWeightGradient<T>& a) {
  const bool aligned = aligned16(a.x.data) && aligned16(a.dy.data) && aligned16(a.dweight.data) &&
                       aligned16(a.scratch.data) && aligned16(a.parts.data);
  const conv::WeightGradientChoice choice =
      conv::choose_snake_weight_gradient<T>(ctx, a.x.shape, a.dweight.shape, a.geometry, aligned);
  if (choice.engine == conv::Engine::separate) return false;
  if (choice.engine == conv::Engine::ends)
    ends::weight_gradient(ctx, a, choice.strips);
  else
    tile::activated_weight_gradient(ctx, a, choice);
  return true;
}

template bool snake_conv1d_weight_gradient<float>(Context&, const SnakeConv1dWeightGradient<float>&);
template bool snake_conv1d_weight_gradient<bf16>(Context&, const SnakeConv1dWeightGradient<bf16>&);

}  // namespace nacre::cuda
