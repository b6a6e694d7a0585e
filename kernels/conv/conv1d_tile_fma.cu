#include "conv/conv1d_tile.cuh"

namespace nacre::cuda::tile {

void forward_fma(Context& ctx, const Plain<float>& p) {
  launch_product<Product::fma, Major::k>(ctx, "conv1d_forward_fma", p.s, p.a, p.w, PlainInput<float>{}, p.output);
}
void input_gradient_fma(Context& ctx, const Plain<float>& p) {
  launch_product<Product::fma, Major::mn>(ctx, "conv1d_input_gradient_fma", p.s, p.a, p.w, PlainInput<float>{},
                                          p.output);
}

}  // namespace nacre::cuda::tile
