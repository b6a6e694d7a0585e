#include "nacre/ops/snake_conv1d.h"

#include "conv1d_ends.cuh"

// Which fused kernel takes a layer: the ends of a codec (conv1d_ends.cu); all others are composed in snake_conv1d.cpp.
namespace nacre::cuda {

template <class T>
int64_t snake_conv1d_forward_scratch(Context&, Shape, Shape, const Conv1dGeometry&) {
  return 0;
}
template <class T>
int64_t snake_conv1d_input_gradient_scratch(Context&, Shape x, Shape weight, Shape dy, const Conv1dGeometry& g) {
  return snake_conv1d_ends_input_gradient_scratch<T>(x, weight, dy, g);
}
template <class T>
int64_t snake_conv1d_weight_gradient_scratch(Context&, Shape x, Shape weight, Shape dy, const Conv1dGeometry& g) {
  return snake_conv1d_ends_takes<T>(x, weight, g) ? conv1d_ends_weight_gradient_scratch<T>(x, weight, dy, g) : 0;
}
template <class T>
bool snake_conv1d_takes(Context&, Shape x, Shape weight, const Conv1dGeometry& g) {
  return snake_conv1d_ends_takes<T>(x, weight, g);
}
template <class T>
bool snake_conv1d_forward(Context& ctx, const SnakeConv1dForward<T>& a) {
  return snake_conv1d_ends_forward(ctx, a);
}
template <class T>
bool snake_conv1d_input_gradient(Context& ctx, const SnakeConv1dInputGradient<T>& a) {
  return snake_conv1d_ends_input_gradient(ctx, a);
}
template <class T>
bool snake_conv1d_weight_gradient(Context& ctx, const SnakeConv1dWeightGradient<T>& a) {
  return snake_conv1d_ends_weight_gradient(ctx, a);
}

#define NACRE_INSTANTIATE(T)                                                                                      \
  template int64_t snake_conv1d_forward_scratch<T>(Context&, Shape, Shape, const Conv1dGeometry&);                \
  template int64_t snake_conv1d_input_gradient_scratch<T>(Context&, Shape, Shape, Shape, const Conv1dGeometry&);  \
  template int64_t snake_conv1d_weight_gradient_scratch<T>(Context&, Shape, Shape, Shape, const Conv1dGeometry&); \
  template bool snake_conv1d_takes<T>(Context&, Shape, Shape, const Conv1dGeometry&);                             \
  template bool snake_conv1d_forward<T>(Context&, const SnakeConv1dForward<T>&);                                  \
  template bool snake_conv1d_input_gradient<T>(Context&, const SnakeConv1dInputGradient<T>&);                     \
  template bool snake_conv1d_weight_gradient<T>(Context&, const SnakeConv1dWeightGradient<T>&);
NACRE_INSTANTIATE(float)
NACRE_INSTANTIATE(bf16)
#undef NACRE_INSTANTIATE

}  // namespace nacre::cuda
