#include "nacre/ops/tanh.h"

#include "runtime/elementwise.h"
#include "runtime/vector_math.h"

// tanh on the CPU (contract: nacre/ops/tanh.h; twin: tanh.cu): y = tanh(x), dx = dy (1 - y^2). Backward reads y, not x.
namespace nacre {
namespace cuda {
template <class T>
void tanh_forward(Context&, const TanhForward<T>&);
template <class T>
void tanh_backward(Context&, const TanhBackward<T>&);
}  // namespace cuda
namespace {

template <class T>
NACRE_INLINE void forward(const T* x, T* y, int64_t n) {
  NACRE_INDEPENDENT
  for (int64_t i = 0; i < n; ++i) y[i] = store<T>(vec::tanh(to_float(x[i])));
}
template <bool add, class T>
NACRE_INLINE void backward(const T* y, const T* dy, T* dx, int64_t n) {
  NACRE_INDEPENDENT
  for (int64_t i = 0; i < n; ++i) {
    // Unlike 1 - y^2, (1 - y)(1 + y) has a small relative error where y is close to 1.
    const float v = to_float(y[i]), d = to_float(dy[i]) * ((1.0f - v) * (1.0f + v));
    dx[i] = store<T>(add ? to_float(dx[i]) + d : d);
  }
}
NACRE_CLONES void forward_loop(const float* x, float* y, int64_t n) { forward(x, y, n); }
NACRE_CLONES void forward_loop(const bf16* x, bf16* y, int64_t n) { forward(x, y, n); }
NACRE_CLONES void write_loop(const float* y, const float* dy, float* dx, int64_t n) { backward<false>(y, dy, dx, n); }
NACRE_CLONES void write_loop(const bf16* y, const bf16* dy, bf16* dx, int64_t n) { backward<false>(y, dy, dx, n); }
NACRE_CLONES void add_loop(const float* y, const float* dy, float* dx, int64_t n) { backward<true>(y, dy, dx, n); }
NACRE_CLONES void add_loop(const bf16* y, const bf16* dy, bf16* dx, int64_t n) { backward<true>(y, dy, dx, n); }

}  // namespace

template <class T>
void tanh_forward(Context& ctx, const TanhForward<T>& a) {
  expect_shape("tanh_forward", "x", a.x, a.x.shape);
  expect_shape("tanh_forward", "y", a.y, a.x.shape);
  if constexpr (with_cuda)
    if (on_cuda(ctx)) return cuda::tanh_forward(ctx, a);
  parallel_elements(ctx, a.x.elements(),
                    [&](int64_t begin, int64_t end) { forward_loop(a.x.data + begin, a.y.data + begin, end - begin); });
}

template <class T>
void tanh_backward(Context& ctx, const TanhBackward<T>& a) {
  expect_shape("tanh_backward", "y", a.y, a.y.shape);
  expect_shape("tanh_backward", "dy", a.dy, a.y.shape);
  expect_shape("tanh_backward", "dx", a.dx, a.y.shape);
  if constexpr (with_cuda)
    if (on_cuda(ctx)) return cuda::tanh_backward(ctx, a);
  parallel_elements(ctx, a.y.elements(), [&](int64_t begin, int64_t end) {
    if (a.add_dx)
      add_loop(a.y.data + begin, a.dy.data + begin, a.dx.data + begin, end - begin);
    else
      write_loop(a.y.data + begin, a.dy.data + begin, a.dx.data + begin, end - begin);
  });
}

template void tanh_forward<float>(Context&, const TanhForward<float>&);
template void tanh_forward<bf16>(Context&, const TanhForward<bf16>&);
template void tanh_backward<float>(Context&, const TanhBackward<float>&);
template void tanh_backward<bf16>(Context&, const TanhBackward<bf16>&);

}  // namespace nacre
