#include "conv/conv1d_tile.cuh"

namespace nacre::cuda::tile {

void forward_bf16(Context& ctx, const Plain<bf16>& p) {
  launch_product<Product::bf16, Major::k>(ctx, "conv1d_forward_bf16", p.s, p.a, p.w, PlainInput<bf16>{}, p.output);
}
void input_gradient_bf16(Context& ctx, const Plain<bf16>& p) {
  launch_product<Product::bf16, Major::mn>(ctx, "conv1d_input_gradient_bf16", p.s, p.a, p.w, PlainInput<bf16>{},
                                           p.output);
}

}  // namespace nacre::cuda::tile
