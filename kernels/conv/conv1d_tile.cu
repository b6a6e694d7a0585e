#include "conv/conv1d_tile.cuh"

#include "conv/conv1d_cuda.h"

namespace nacre::cuda::tile {

template <class T>
bool forward(Context& ctx, const Conv1dForward<T>& a) {
  const Shape x = a.x.shape, y = a.y.shape;
  if (!supports<T>(a.geometry, x.channels, y.channels)) return false;
  if (!aligned16(a.x.data) || !aligned16(a.weight.data) || !aligned16(a.y.data) || !aligned16(a.residual.data))
    return false;
  const Shifted s = forward_product<T>(limits(ctx), x, a.weight.shape, y, a.geometry, on_tensor_cores<T>(ctx));
  if (!supports(limits(ctx), s)) return false;
  const Plain<T> p{s, a.x.data, a.weight.data, {a.y.data, a.bias.data, a.residual.data, s.columns}};
  if constexpr (sizeof(T) == 2)
    forward_bf16(ctx, p);
  else if (ctx.precision() == Precision::tf32)
    forward_tf32(ctx, p);
  else
    forward_fma(ctx, p);
  return true;
}
template <class T>
Tiling forward_tiling(const Context& ctx, Shape x, Shape weight, const Conv1dGeometry& g, int input_bytes) {
  const Shape y{x.batch, conv1d_length(x.time, weight.time, g), 1, weight.batch};
  const Shifted s = forward_product<T>(limits(ctx), x, weight, y, g, on_tensor_cores<T>(ctx), input_bytes);
  const int64_t rows = s.items * s.virtual_rows;
  return {supports(limits(ctx), s), s.block.rows, s.block.columns, s.gap,
          ceil_div<int64_t>(rows, s.block.rows) * ceil_div(s.columns, s.block.columns)};
}
template Tiling forward_tiling<float>(const Context&, Shape, Shape, const Conv1dGeometry&, int);
template Tiling forward_tiling<bf16>(const Context&, Shape, Shape, const Conv1dGeometry&, int);
template bool forward<float>(Context&, const Conv1dForward<float>&);
template bool forward<bf16>(Context&, const Conv1dForward<bf16>&);

template <class T>
bool input_gradient(Context& ctx, const Conv1dInputGradient<T>& a) {
  const Shape x = a.dx.shape, y = a.dy.shape;
  if (!supports<T>(a.geometry, x.channels, y.channels)) return false;
  if (!aligned16(a.dx.data) || !aligned16(a.weight.data) || !aligned16(a.dy.data)) return false;
  const Shifted s = input_gradient_product<T>(limits(ctx), x, a.weight.shape, y, a.geometry, on_tensor_cores<T>(ctx));
  if (!supports(limits(ctx), s) || s.out_begin >= s.out_end) return false;
  const Plain<T> p{s,
                   a.dy.data,
                   a.weight.data,
                   {a.dx.data, a.bias.data, a.add_dx ? a.dx.data : nullptr, static_cast<int>(x.channels)}};
  if constexpr (sizeof(T) == 2)
    input_gradient_bf16(ctx, p);
  else if (ctx.precision() == Precision::tf32)
    input_gradient_tf32(ctx, p);
  else
    input_gradient_fma(ctx, p);
  return true;
}
template bool input_gradient<float>(Context&, const Conv1dInputGradient<float>&);
template bool input_gradient<bf16>(Context&, const Conv1dInputGradient<bf16>&);

}  // namespace nacre::cuda::tile
