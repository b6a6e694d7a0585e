#pragma once
// The launches of plain conv1d for one product: each of conv1d_tile_fma.cu, _tf32.cu and _bf16.cu instantiates them.
// The weight is [out][taps][in]. The forward reduces `in`, which is contiguous: K-major. The input gradient reduces
// `out`, and its columns, the inputs, are contiguous: MN-major.
#include "conv/conv1d_tile.cuh"

namespace nacre::cuda::tile {

template <Product P>
void plain_forward(Context& ctx, const Plain<Element<P>>& p) {
  launch_product<P, Major::k>(ctx, product_name<"conv1d_forward", P>, p.s, p.x, p.w, PlainInput<Element<P>>{},
                              p.output);
}
template <Product P>
void plain_input_gradient(Context& ctx, const Plain<Element<P>>& p) {
  launch_product<P, Major::mn>(ctx, product_name<"conv1d_input_gradient", P>, p.s, p.x, p.w, PlainInput<Element<P>>{},
                               p.output);
}

}  // namespace nacre::cuda::tile
