#include "conv/conv1d_tile_weights.cuh"

#include "conv/conv1d_cuda.h"
#include "conv/conv1d_tile_taps.cuh"

// Layers of several taps at stride 1 run conv1d_tile_taps.cuh, whose taps share the rows of x: 7 bytes of L2 per
// thousand bf16 operations. All others, pointwise and strided, run conv1d_tile_weights.cuh: 12 to 23 bytes.
namespace nacre::cuda::tile {

/// dweight has parts only if there are several: a single one was written to dweight itself. The sums for dbias always
/// have parts, one for each part of the rows and tile of weights.
void add_weight_parts(Context& ctx, const conv::WeightGradientChoice& choice, const float* scratch, View<float> dweight,
                      bool add_dweight, View<float> dbias, bool later) {
  if (choice.parts > 1) add_parts(ctx, scratch, choice.parts, dweight.elements(), dweight.data, add_dweight, later);
  if (dbias) add_parts(ctx, scratch + choice.bias_at, choice.bias_parts, dbias.elements(), dbias.data, true, later);
}

/// Both kernels take dy as the left and x as the right operand, and leave the sums of one bias beside those of the
/// weights: dbias, or dbias_of_x where dbias is not wanted and the layer allows it (bias_of_x_parts). Where both are
/// wanted, or x's tiles do not hold each sample once, dbias_of_x takes a pass of its own over x.
template <class T>
void weight_gradient(Context& ctx, const Conv1dWeightGradient<T>& a, const conv::WeightGradientChoice& choice) {
  const PlainInput<T> input;
  float* const to = choice.parts > 1 ? a.scratch.data : a.dweight.data;
  const bool sums_x = a.dbias_of_x && !a.dbias && choice.bias_of_x_parts > 0;
  BiasSums bias;
  if (a.dbias) bias.to = a.scratch.data + choice.bias_at;
  if (sums_x) bias = {a.scratch.data + choice.bias_of_x_at, true};
  with_product<T>(ctx, [&]<Product P>() {
    if (choice.engine == conv::Engine::taps) {
      Taps s = choice.taps;
      s.add = a.add_dweight;
      launch_taps_product<P>(ctx, product_name<"conv1d_weight_gradient_taps", P>, s, a.dy.data, a.x.data, input, to,
                             bias.to);
    } else {
      Windows s = choice.windows;
      s.add = a.add_dweight;
      launch_weight_product<P>(ctx, product_name<"conv1d_weight_gradient", P>, s, choice.block, a.dy.data, a.x.data,
                               input, to, bias);
    }
  });
  // Behind the launch on the same stream, so the parts are complete when they are added.
  const bool later = static_cast<bool>(a.parts);
  add_weight_parts(ctx, choice, a.scratch.data, a.dweight, a.add_dweight, a.dbias, later);
  if (sums_x)
    add_parts(ctx, bias.to, choice.bias_of_x_parts, a.x.shape.channels, a.dbias_of_x.data, true, later);
  else if (a.dbias_of_x)
    add_column_sums(ctx, a.x, a.dbias_of_x.data, a.scratch.data + choice.bias_of_x_at, later);
}
template void weight_gradient<float>(Context&, const Conv1dWeightGradient<float>&, const conv::WeightGradientChoice&);
template void weight_gradient<bf16>(Context&, const Conv1dWeightGradient<bf16>&, const conv::WeightGradientChoice&);

}  // namespace nacre::cuda::tile
