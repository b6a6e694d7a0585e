#include "conv/conv1d_tile_plain.cuh"

namespace nacre::cuda::tile {

template void plain_forward<Product::fma>(Context&, const Plain<float>&);
template void plain_input_gradient<Product::fma>(Context&, const Plain<float>&);

}  // namespace nacre::cuda::tile
