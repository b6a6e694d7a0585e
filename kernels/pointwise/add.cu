#include "nacre/ops/add.h"

#include "runtime/elementwise.cuh"

// Sum of two activations, and accumulation, by the kernel of runtime/elementwise.cuh (contract: nacre/ops/add.h; twin:
// add.cpp). The functors get (a, b, out); those that an op does not read are 0.
namespace nacre::cuda {
namespace {

struct Sum {
  __device__ float operator()(float a, float b, float) const { return a + b; }
};
struct AddTo {
  __device__ float operator()(float a, float, float out) const { return out + a; }
};

}  // namespace

template <class T>
void add(Context& ctx, const Add<T>& a) {
  elementwise<reads_a | reads_b>(ctx, "add", a.a.data, a.b.data, a.y.data, a.y.elements(), Sum{});
}

template <class T>
void accumulate(Context& ctx, const Accumulate<T>& a) {
  const T* const none = nullptr;
  if (a.add)
    elementwise<reads_a | reads_out>(ctx, "accumulate", a.x.data, none, a.y.data, a.y.elements(), AddTo{});
  else if (a.x.data != a.y.data)
    runtime(ctx).copy_on_device(a.y.data, a.x.data, static_cast<size_t>(a.y.elements()) * sizeof(T));
}

template void add<float>(Context&, const Add<float>&);
template void add<bf16>(Context&, const Add<bf16>&);
template void accumulate<float>(Context&, const Accumulate<float>&);
template void accumulate<bf16>(Context&, const Accumulate<bf16>&);

}  // namespace nacre::cuda
