#include "nacre/ops/add.h"

#include "runtime/elementwise.h"

// Sum of two activations, and accumulation, on the CPU (contract: nacre/ops/add.h; twin: add.cu). Sums are formed in
// float and rounded once.
namespace nacre {
namespace cuda {
template <class T>
void add(Context&, const Add<T>&);
template <class T>
void accumulate(Context&, const Accumulate<T>&);
}  // namespace cuda
namespace {

template <class T>
NACRE_INLINE void sum(const T* a, const T* b, T* y, int64_t n) {
  NACRE_INDEPENDENT
  for (int64_t i = 0; i < n; ++i) y[i] = store<T>(to_float(a[i]) + to_float(b[i]));
}
NACRE_CLONES void add_loop(const float* a, const float* b, float* y, int64_t n) { sum(a, b, y, n); }
NACRE_CLONES void add_loop(const bf16* a, const bf16* b, bf16* y, int64_t n) { sum(a, b, y, n); }

}  // namespace

template <class T>
void add(Context& ctx, const Add<T>& a) {
  expect_shape("add", "b", a.b, a.a.shape);
  expect_shape("add", "y", a.y, a.a.shape);
  expect_shape("add", "a", a.a, a.a.shape);
  if constexpr (with_cuda)
    if (on_cuda(ctx)) return cuda::add(ctx, a);
  parallel_elements(ctx, a.y.elements(), [&](int64_t begin, int64_t end) {
    add_loop(a.a.data + begin, a.b.data + begin, a.y.data + begin, end - begin);
  });
}

template <class T>
void accumulate(Context& ctx, const Accumulate<T>& a) {
  expect_shape("accumulate", "y", a.y, a.x.shape);
  expect_shape("accumulate", "x", a.x, a.x.shape);
  if constexpr (with_cuda)
    if (on_cuda(ctx)) return cuda::accumulate(ctx, a);
  parallel_elements(ctx, a.y.elements(), [&](int64_t begin, int64_t end) {
    if (a.add)
      add_loop(a.y.data + begin, a.x.data + begin, a.y.data + begin, end - begin);
    // If x and y are one buffer, there is nothing to copy.
    else if (a.x.data != a.y.data)
      std::copy(a.x.data + begin, a.x.data + end, a.y.data + begin);
  });
}

template void add<float>(Context&, const Add<float>&);
template void add<bf16>(Context&, const Add<bf16>&);
template void accumulate<float>(Context&, const Accumulate<float>&);
template void accumulate<bf16>(Context&, const Accumulate<bf16>&);

}  // namespace nacre
