#include "nacre/ops/convert.h"

#include "runtime/elementwise.h"

// Conversion between float and bf16 on the CPU (contract: nacre/ops/convert.h; twin: convert.cu). With add, the sum is
// formed in float and rounded once.
namespace nacre {
namespace cuda {
template <class From, class To>
void convert(Context&, const Convert<From, To>&);
}  // namespace cuda
namespace {

template <class From, class To>
NACRE_INLINE void values(const From* x, To* y, int64_t n, bool add) {
  if (add) {
    NACRE_INDEPENDENT
    for (int64_t i = 0; i < n; ++i) y[i] = store<To>(to_float(y[i]) + to_float(x[i]));
  } else {
    NACRE_INDEPENDENT
    for (int64_t i = 0; i < n; ++i) y[i] = store<To>(to_float(x[i]));
  }
}
NACRE_CLONES void convert_loop(const float* x, bf16* y, int64_t n, bool add) { values(x, y, n, add); }
NACRE_CLONES void convert_loop(const bf16* x, float* y, int64_t n, bool add) { values(x, y, n, add); }

}  // namespace

template <class From, class To>
void convert(Context& ctx, const Convert<From, To>& a) {
  expect_shape("convert", "y", a.y, a.x.shape);
  expect_shape("convert", "x", a.x, a.x.shape);
  if constexpr (with_cuda)
    if (on_cuda(ctx)) return cuda::convert(ctx, a);
  parallel_elements(ctx, a.x.elements(), [&](int64_t begin, int64_t end) {
    convert_loop(a.x.data + begin, a.y.data + begin, end - begin, a.add);
  });
}

template void convert<float, bf16>(Context&, const Convert<float, bf16>&);
template void convert<bf16, float>(Context&, const Convert<bf16, float>&);

}  // namespace nacre
