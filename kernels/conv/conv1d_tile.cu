#include "conv/conv1d_tile.cuh"

#include "conv/conv1d_cuda.h"

// Plain conv1d as shifted products: which tensor is x and which is w, and what the epilogue adds. The forward
// multiplies x, the input gradient dy, by the same weights; plain_forward reads them K-major, plain_input_gradient
// MN-major (conv1d_tile_plain.cuh). A row of the input gradient's result holds `stride` samples, so its bias repeats
// every dx.channels columns, while that of the forward is as wide as the row. The previous content of dx is added as a
// residual.
namespace nacre::cuda::tile {

template <class T>
void forward(Context& ctx, const Conv1dForward<T>& a, const Shifted& s) {
  const Plain<T> p{s, a.x.data, a.weight.data, {a.y.data, a.bias.data, a.residual.data, s.columns}};
  with_product<T>(ctx, [&]<Product P>() { plain_forward<P>(ctx, p); });
}
template void forward<float>(Context&, const Conv1dForward<float>&, const Shifted&);
template void forward<bf16>(Context&, const Conv1dForward<bf16>&, const Shifted&);

template <class T>
void input_gradient(Context& ctx, const Conv1dInputGradient<T>& a, const Shifted& s) {
  const auto channels = static_cast<int>(a.dx.shape.channels);
  const Plain<T> p{s, a.dy.data, a.weight.data, {a.dx.data, a.bias.data, a.add_dx ? a.dx.data : nullptr, channels}};
  with_product<T>(ctx, [&]<Product P>() { plain_input_gradient<P>(ctx, p); });
}
template void input_gradient<float>(Context&, const Conv1dInputGradient<float>&, const Shifted&);
template void input_gradient<bf16>(Context&, const Conv1dInputGradient<bf16>&, const Shifted&);

}  // namespace nacre::cuda::tile
