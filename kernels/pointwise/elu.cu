#include "nacre/ops/elu.h"

#include "runtime/elementwise.cuh"
#include "runtime/vector_math.h"

// ELU on the device, by the kernel of runtime/elementwise.cuh (formulas and contract: nacre/ops/elu.h; twin: elu.cpp).
namespace nacre::cuda {
namespace {

struct Forward {
  float alpha;
  __device__ float operator()(float x, float, float) const {
    return vec::at_least(x, 0.0f) + alpha * vec::exp_minus_one(vec::at_most(x, 0.0f));  // no branch: one term is 0
  }
};
/// The derivative depends on x only through y, so the op reads y.
template <bool add>
struct Backward {
  float alpha;
  __device__ float operator()(float y, float dy, float dx) const {
    const float gradient = y > 0 ? dy : dy * (y + alpha);
    return add ? dx + gradient : gradient;
  }
};

}  // namespace

template <class T>
void elu_forward(Context& ctx, const EluForward<T>& a) {
  const T* const none = nullptr;
  elementwise<reads_a>(ctx, "elu_forward", a.x.data, none, a.y.data, a.x.elements(), Forward{a.alpha});
}

template <class T>
void elu_backward(Context& ctx, const EluBackward<T>& a) {
  if (a.add_dx)
    elementwise<reads_a | reads_b | reads_out>(ctx, "elu_backward", a.y.data, a.dy.data, a.dx.data, a.y.elements(),
                                               Backward<true>{a.alpha});
  else
    elementwise<reads_a | reads_b>(ctx, "elu_backward", a.y.data, a.dy.data, a.dx.data, a.y.elements(),
                                   Backward<false>{a.alpha});
}

template void elu_forward<float>(Context&, const EluForward<float>&);
template void elu_forward<bf16>(Context&, const EluForward<bf16>&);
template void elu_backward<float>(Context&, const EluBackward<float>&);
template void elu_backward<bf16>(Context&, const EluBackward<bf16>&);

}  // namespace nacre::cuda
