#include "conv/conv1d_tile_plain.cuh"

namespace nacre::cuda::tile {

template void plain_forward<Product::tf32>(Context&, const Plain<float>&);
template void plain_input_gradient<Product::tf32>(Context&, const Plain<float>&);

}  // namespace nacre::cuda::tile
