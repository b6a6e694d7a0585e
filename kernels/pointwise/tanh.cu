#include "nacre/ops/tanh.h"

#include "runtime/elementwise.cuh"
#include "runtime/vector_math.h"

// tanh on the device, by the kernel of runtime/elementwise.cuh (contract: nacre/ops/tanh.h; twin: tanh.cpp).
namespace nacre::cuda {
namespace {

struct Forward {
  __device__ float operator()(float x, float, float) const { return vec::tanh(x); }
};
/// The derivative depends on x only through y, so the op reads y.
template <bool add>
struct Backward {
  __device__ float operator()(float y, float dy, float dx) const {
    // Unlike 1 - y^2, (1 - y)(1 + y) has a small relative error where y is close to 1.
    const float gradient = dy * ((1.0f - y) * (1.0f + y));
    return add ? dx + gradient : gradient;
  }
};

}  // namespace

template <class T>
void tanh_forward(Context& ctx, const TanhForward<T>& a) {
  const T* const none = nullptr;
  elementwise<reads_a>(ctx, "tanh_forward", a.x.data, none, a.y.data, a.x.elements(), Forward{});
}

template <class T>
void tanh_backward(Context& ctx, const TanhBackward<T>& a) {
  if (a.add_dx)
    elementwise<reads_a | reads_b | reads_out>(ctx, "tanh_backward", a.y.data, a.dy.data, a.dx.data, a.y.elements(),
                                               Backward<true>{});
  else
    elementwise<reads_a | reads_b>(ctx, "tanh_backward", a.y.data, a.dy.data, a.dx.data, a.y.elements(),
                                   Backward<false>{});
}

template void tanh_forward<float>(Context&, const TanhForward<float>&);
template void tanh_forward<bf16>(Context&, const TanhForward<bf16>&);
template void tanh_backward<float>(Context&, const TanhBackward<float>&);
template void tanh_backward<bf16>(Context&, const TanhBackward<bf16>&);

}  // namespace nacre::cuda
