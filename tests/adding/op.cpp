// The example op on the CPU, as it would be in kernels/pointwise/scale.cpp.
#include "adding/op.h"

#include "runtime/elementwise.h"

namespace nacre {
namespace cuda {
template <class T>
void scale_forward(Context&, const ScaleForward<T>&);
template <class T>
void scale_backward(Context&, const ScaleBackward<T>&);
}  // namespace cuda
namespace {

constexpr int64_t block_channels = 16;  // their sums stay in registers

/// dfactor of up to block_channels channels.
template <class T>
void add_factor_gradient(const ScaleBackward<T>& a, int64_t first) {
  const int64_t channels = a.x.shape.channels, n = std::min(block_channels, channels - first);
  double sums[block_channels] = {};
  for (int64_t row = 0; row < a.x.shape.rows(); ++row)
    for (int64_t c = 0; c < n; ++c) {
      const int64_t i = row * channels + first + c;
      sums[c] += static_cast<double>(to_float(a.x[i])) * static_cast<double>(to_float(a.dy[i]));
    }
  for (int64_t c = 0; c < n; ++c)
    a.dfactor[first + c] = static_cast<float>(static_cast<double>(a.dfactor[first + c]) + sums[c]);
}

}  // namespace

// [op cpu]
template <class T>
void scale_forward(Context& ctx, const ScaleForward<T>& a) {
  expect_shape("scale_forward", "x", a.x, a.x.shape);
  expect_shape("scale_forward", "factor", a.factor, {.channels = a.x.shape.channels});
  expect_shape("scale_forward", "y", a.y, a.x.shape);
  if constexpr (with_cuda)
    if (on_cuda(ctx)) return cuda::scale_forward(ctx, a);
  parallel_elements(ctx, a.x.elements(), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) a.y[i] = store<T>(a.factor[i % a.x.shape.channels] * to_float(a.x[i]));
  });
}
// [/op cpu]

template <class T>
void scale_backward(Context& ctx, const ScaleBackward<T>& a) {
  expect_shape("scale_backward", "x", a.x, a.x.shape);
  expect_shape("scale_backward", "factor", a.factor, {.channels = a.x.shape.channels});
  expect_shape("scale_backward", "dy", a.dy, a.x.shape);
  expect_shape_or_empty("scale_backward", "dx", a.dx, a.x.shape);
  expect_shape_or_empty("scale_backward", "dfactor", a.dfactor, a.factor.shape);
  if constexpr (with_cuda)
    if (on_cuda(ctx)) return cuda::scale_backward(ctx, a);
  const int64_t channels = a.x.shape.channels;
  if (a.dfactor)  // first, because dx may be dy
    parallel_parts(ctx, (channels + block_channels - 1) / block_channels,
                   [&](int64_t block) { add_factor_gradient(a, block * block_channels); });
  if (a.dx)
    parallel_elements(ctx, a.x.elements(), [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const float gradient = a.factor[i % channels] * to_float(a.dy[i]);
        a.dx[i] = store<T>(a.add_dx ? to_float(a.dx[i]) + gradient : gradient);
      }
    });
}

template void scale_forward<float>(Context&, const ScaleForward<float>&);
template void scale_forward<bf16>(Context&, const ScaleForward<bf16>&);
template void scale_backward<float>(Context&, const ScaleBackward<float>&);
template void scale_backward<bf16>(Context&, const ScaleBackward<bf16>&);

}  // namespace nacre
