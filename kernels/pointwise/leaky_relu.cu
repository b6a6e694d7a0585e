#include "nacre/ops/leaky_relu.h"

#include "runtime/elementwise.cuh"

// Leaky ReLU on the device, by the kernel of runtime/elementwise.cuh (contract: nacre/ops/leaky_relu.h; twin:
// leaky_relu.cpp).
namespace nacre::cuda {
namespace {

struct Forward {
  float slope;
  __device__ float operator()(float x, float, float) const { return x > 0 ? x : slope * x; }
};
/// The derivative depends on x only through y, so the op reads y.
template <bool add>
struct Backward {
  float slope;
  __device__ float operator()(float y, float dy, float dx) const {
    const float gradient = y > 0 ? dy : slope * dy;
    return add ? dx + gradient : gradient;
  }
};

}  // namespace

template <class T>
void leaky_relu_forward(Context& ctx, const LeakyReluForward<T>& a) {
  const T* const none = nullptr;
  elementwise<reads_a>(ctx, "leaky_relu_forward", a.x.data, none, a.y.data, a.x.elements(), Forward{a.slope});
}

template <class T>
void leaky_relu_backward(Context& ctx, const LeakyReluBackward<T>& a) {
  if (a.add_dx)
    elementwise<reads_a | reads_b | reads_out>(ctx, "leaky_relu_backward", a.y.data, a.dy.data, a.dx.data,
                                               a.y.elements(), Backward<true>{a.slope});
  else
    elementwise<reads_a | reads_b>(ctx, "leaky_relu_backward", a.y.data, a.dy.data, a.dx.data, a.y.elements(),
                                   Backward<false>{a.slope});
}

template void leaky_relu_forward<float>(Context&, const LeakyReluForward<float>&);
template void leaky_relu_forward<bf16>(Context&, const LeakyReluForward<bf16>&);
template void leaky_relu_backward<float>(Context&, const LeakyReluBackward<float>&);
template void leaky_relu_backward<bf16>(Context&, const LeakyReluBackward<bf16>&);

}  // namespace nacre::cuda
