#include "conv/conv1d_tile_plain.cuh"

namespace nacre::cuda::tile {

template void plain_forward<Product::bf16>(Context&, const Plain<bf16>&);
template void plain_input_gradient<Product::bf16>(Context&, const Plain<bf16>&);

}  // namespace nacre::cuda::tile
