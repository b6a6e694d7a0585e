#include "nacre/ops/elu.h"

#include "runtime/elementwise.h"
#include "runtime/vector_math.h"

// ELU on the CPU (formulas and contract: nacre/ops/elu.h; twin: elu.cu). Backward reads y, not x.
namespace nacre {
namespace cuda {
template <class T>
void elu_forward(Context&, const EluForward<T>&);
template <class T>
void elu_backward(Context&, const EluBackward<T>&);
}  // namespace cuda
namespace {

template <class T>
NACRE_INLINE void forward(const T* x, T* y, int64_t n, float alpha) {
  NACRE_INDEPENDENT
  for (int64_t i = 0; i < n; ++i) {
    const float v = to_float(x[i]);
    // Both sides of the select are computed in a vectorised loop; the argument 0 keeps the unused one finite.
    y[i] = store<T>(v > 0 ? v : alpha * vec::exp_minus_one(v > 0 ? 0.0f : v));
  }
}
template <bool add, class T>
NACRE_INLINE void backward(const T* y, const T* dy, T* dx, int64_t n, float alpha) {
  NACRE_INDEPENDENT
  for (int64_t i = 0; i < n; ++i) {
    // For x <= 0 the derivative is alpha exp(x) = y + alpha: y is enough.
    const float v = to_float(y[i]), d = to_float(dy[i]), gradient = v > 0 ? d : d * (v + alpha);
    dx[i] = store<T>(add ? to_float(dx[i]) + gradient : gradient);
  }
}
#define NACRE_LOOPS(T)                                                                                  \
  NACRE_CLONES void forward_loop(const T* x, T* y, int64_t n, float alpha) { forward(x, y, n, alpha); } \
  NACRE_CLONES void write_loop(const T* y, const T* dy, T* dx, int64_t n, float alpha) {                \
    backward<false>(y, dy, dx, n, alpha);                                                               \
  }                                                                                                     \
  NACRE_CLONES void add_loop(const T* y, const T* dy, T* dx, int64_t n, float alpha) {                  \
    backward<true>(y, dy, dx, n, alpha);                                                                \
  }
NACRE_LOOPS(float)
NACRE_LOOPS(bf16)

void check_alpha(const char* op, float alpha) {
  if (!(alpha > 0)) [[unlikely]]
    throw_usage(op, "alpha is " + std::to_string(alpha) + ", expected above 0");
}

}  // namespace

template <class T>
void elu_forward(Context& ctx, const EluForward<T>& a) {
  expect_shape("elu_forward", "x", a.x, a.x.shape);
  expect_shape("elu_forward", "y", a.y, a.x.shape);
  check_alpha("elu_forward", a.alpha);
  if constexpr (with_cuda)
    if (on_cuda(ctx)) return cuda::elu_forward(ctx, a);
  parallel_elements(ctx, a.x.elements(), [&](int64_t begin, int64_t end) {
    forward_loop(a.x.data + begin, a.y.data + begin, end - begin, a.alpha);
  });
}

template <class T>
void elu_backward(Context& ctx, const EluBackward<T>& a) {
  expect_shape("elu_backward", "y", a.y, a.y.shape);
  expect_shape("elu_backward", "dy", a.dy, a.y.shape);
  expect_shape("elu_backward", "dx", a.dx, a.y.shape);
  check_alpha("elu_backward", a.alpha);
  if constexpr (with_cuda)
    if (on_cuda(ctx)) return cuda::elu_backward(ctx, a);
  parallel_elements(ctx, a.y.elements(), [&](int64_t begin, int64_t end) {
    if (a.add_dx)
      add_loop(a.y.data + begin, a.dy.data + begin, a.dx.data + begin, end - begin, a.alpha);
    else
      write_loop(a.y.data + begin, a.dy.data + begin, a.dx.data + begin, end - begin, a.alpha);
  });
}

template void elu_forward<float>(Context&, const EluForward<float>&);
template void elu_forward<bf16>(Context&, const EluForward<bf16>&);
template void elu_backward<float>(Context&, const EluBackward<float>&);
template void elu_backward<bf16>(Context&, const EluBackward<bf16>&);

}  // namespace nacre
