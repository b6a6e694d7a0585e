#include "conv1d_ends.cuh"

namespace nacre::cuda {

template <class T>
int64_t snake_conv1d_weight_gradient_scratch(Context&, Shape x, Shape weight, Shape dy, const Conv1dGeometry& g) {
  return conv1d_ends_weight_gradient_scratch<T>(x, weight, dy, g);
}
template <class T>
bool snake_conv1d_weight_gradient(Context& ctx, const SnakeConv1dWeightGradient<T>& a) {
  return snake_conv1d_ends_weight_gradient(ctx, a);
}

#define NACRE_INSTANTIATE(T)                                                                                      \
  template int64_t snake_conv1d_weight_gradient_scratch<T>(Context&, Shape, Shape, Shape, const Conv1dGeometry&); \
  template bool snake_conv1d_weight_gradient<T>(Context&, const SnakeConv1dWeightGradient<T>&);
NACRE_INSTANTIATE(float)
NACRE_INSTANTIATE(bf16)
#undef NACRE_INSTANTIATE

}  // namespace nacre::cuda
