#include "conv/conv1d_tile.cuh"

namespace nacre::cuda::tile {

void forward_tf32(Context& ctx, const Plain<float>& p) {
  launch_product<Product::tf32, Major::k>(ctx, "conv1d_forward_tf32", p.s, p.a, p.w, PlainInput<float>{}, p.output);
}
void input_gradient_tf32(Context& ctx, const Plain<float>& p) {
  launch_product<Product::tf32, Major::mn>(ctx, "conv1d_input_gradient_tf32", p.s, p.a, p.w, PlainInput<float>{},
                                           p.output);
}

}  // namespace nacre::cuda::tile
