#include "nacre/ops/leaky_relu.h"

#include "runtime/elementwise.h"

// Leaky ReLU on the CPU (formulas and contract: nacre/ops/leaky_relu.h; twin: leaky_relu.cu). Backward reads y, not x.
namespace nacre {
namespace cuda {
template <class T>
void leaky_relu_forward(Context&, const LeakyReluForward<T>&);
template <class T>
void leaky_relu_backward(Context&, const LeakyReluBackward<T>&);
}  // namespace cuda
namespace {

template <class T>
NACRE_INLINE void forward(const T* x, T* y, int64_t n, float slope) {
  NACRE_INDEPENDENT
  for (int64_t i = 0; i < n; ++i) {
    const float v = to_float(x[i]);
    y[i] = store<T>(v > 0 ? v : slope * v);
  }
}
template <bool add, class T>
NACRE_INLINE void backward(const T* y, const T* dy, T* dx, int64_t n, float slope) {
  NACRE_INDEPENDENT
  for (int64_t i = 0; i < n; ++i) {
    // y has the sign of x, because the slope is positive.
    const float v = to_float(y[i]), d = to_float(dy[i]), gradient = v > 0 ? d : slope * d;
    dx[i] = store<T>(add ? to_float(dx[i]) + gradient : gradient);
  }
}
#define NACRE_LOOPS(T)                                                                                  \
  NACRE_CLONES void forward_loop(const T* x, T* y, int64_t n, float slope) { forward(x, y, n, slope); } \
  NACRE_CLONES void write_loop(const T* y, const T* dy, T* dx, int64_t n, float slope) {                \
    backward<false>(y, dy, dx, n, slope);                                                               \
  }                                                                                                     \
  NACRE_CLONES void add_loop(const T* y, const T* dy, T* dx, int64_t n, float slope) {                  \
    backward<true>(y, dy, dx, n, slope);                                                                \
  }
NACRE_LOOPS(float)
NACRE_LOOPS(bf16)

void check_slope(const char* op, float slope) {
  if (!(slope > 0)) [[unlikely]]
    throw_usage(op, "slope is " + std::to_string(slope) + ", expected above 0");
}

}  // namespace

template <class T>
void leaky_relu_forward(Context& ctx, const LeakyReluForward<T>& a) {
  expect_shape("leaky_relu_forward", "x", a.x, a.x.shape);
  expect_shape("leaky_relu_forward", "y", a.y, a.x.shape);
  check_slope("leaky_relu_forward", a.slope);
  if constexpr (with_cuda)
    if (on_cuda(ctx)) return cuda::leaky_relu_forward(ctx, a);
  parallel_elements(ctx, a.x.elements(), [&](int64_t begin, int64_t end) {
    forward_loop(a.x.data + begin, a.y.data + begin, end - begin, a.slope);
  });
}

template <class T>
void leaky_relu_backward(Context& ctx, const LeakyReluBackward<T>& a) {
  expect_shape("leaky_relu_backward", "y", a.y, a.y.shape);
  expect_shape("leaky_relu_backward", "dy", a.dy, a.y.shape);
  expect_shape("leaky_relu_backward", "dx", a.dx, a.y.shape);
  check_slope("leaky_relu_backward", a.slope);
  if constexpr (with_cuda)
    if (on_cuda(ctx)) return cuda::leaky_relu_backward(ctx, a);
  parallel_elements(ctx, a.y.elements(), [&](int64_t begin, int64_t end) {
    if (a.add_dx)
      add_loop(a.y.data + begin, a.dy.data + begin, a.dx.data + begin, end - begin, a.slope);
    else
      write_loop(a.y.data + begin, a.dy.data + begin, a.dx.data + begin, end - begin, a.slope);
  });
}

template void leaky_relu_forward<float>(Context&, const LeakyReluForward<float>&);
template void leaky_relu_forward<bf16>(Context&, const LeakyReluForward<bf16>&);
template void leaky_relu_backward<float>(Context&, const LeakyReluBackward<float>&);
template void leaky_relu_backward<bf16>(Context&, const LeakyReluBackward<bf16>&);

}  // namespace nacre
