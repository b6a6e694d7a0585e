#include "conv/conv1d_tile_weights.cuh"

#include "conv/conv1d_cuda.h"
#include "conv/conv1d_tile_taps.cuh"

// Layers of several taps at stride 1 run conv1d_tile_taps.cuh, whose taps share the rows of x: 7 bytes of L2 per
// thousand bf16 operations. All others, pointwise and strided, run conv1d_tile_weights.cuh: 12 to 23 bytes.
namespace nacre::cuda::tile {

template <class T>
void weight_gradient(Context& ctx, const Conv1dWeightGradient<T>& a, const conv::WeightGradientChoice& choice) {
  const PlainInput<T> input;
  float* const to = choice.parts > 1 ? a.scratch.data : a.dweight.data;
  with_product<T>(ctx, [&]<Product P>() {
    if (choice.engine == conv::Engine::taps) {
      constexpr ProductNames names{"conv1d_weight_gradient_taps_fma", "conv1d_weight_gradient_taps_tf32",
                                   "conv1d_weight_gradient_taps_bf16"};
      Taps s = choice.taps;
      s.add = a.add_dweight;
      launch_taps_product<P>(ctx, names.of(P), s, a.dy.data, a.x.data, input, to);
    } else {
      constexpr ProductNames names{"conv1d_weight_gradient_fma", "conv1d_weight_gradient_tf32",
                                   "conv1d_weight_gradient_bf16"};
      Windows s = choice.windows;
      s.add = a.add_dweight;
      launch_weight_product<P>(ctx, names.of(P), s, choice.block, a.dy.data, a.x.data, input, to);
    }
  });
}
template void weight_gradient<float>(Context&, const Conv1dWeightGradient<float>&, const conv::WeightGradientChoice&);
template void weight_gradient<bf16>(Context&, const Conv1dWeightGradient<bf16>&, const conv::WeightGradientChoice&);

}  // namespace nacre::cuda::tile
