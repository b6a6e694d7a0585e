// The example op on CUDA, as it would be in kernels/pointwise/scale.cu.
#include "adding/op.h"

#include "runtime/device.cuh"

namespace nacre::cuda {
namespace {

constexpr int threads = 256;

// [op kernel]
template <class T>
__global__ void __launch_bounds__(threads) scale_forward_kernel(ScaleForward<T> a) {
  for (int64_t i = grid_thread(); i < a.x.elements(); i += grid_threads())
    a.y[i] = store<T>(a.factor[i % a.x.shape.channels] * to_float(a.x[i]));
}
// [/op kernel]

template <class T>
__global__ void __launch_bounds__(threads) scale_input_kernel(ScaleBackward<T> a) {
  for (int64_t i = grid_thread(); i < a.x.elements(); i += grid_threads()) {
    const float gradient = a.factor[i % a.x.shape.channels] * to_float(a.dy[i]);
    a.dx[i] = store<T>(a.add_dx ? to_float(a.dx[i]) + gradient : gradient);
  }
}

/// One block per channel.
template <class T>
__global__ void __launch_bounds__(threads) scale_factor_kernel(ScaleBackward<T> a) {
  NACRE_SHARED(double, buffer, threads / 32);
  const int64_t channels = a.x.shape.channels, channel = blockIdx.x;
  double sum = 0;
  for (int64_t row = threadIdx.x; row < a.x.shape.rows(); row += threads) {
    const int64_t i = row * channels + channel;
    sum += static_cast<double>(to_float(a.x[i])) * static_cast<double>(to_float(a.dy[i]));
  }
  sum = block_sum<threads>(sum, buffer);
  if (threadIdx.x == 0) a.dfactor[channel] = static_cast<float>(static_cast<double>(a.dfactor[channel]) + sum);
}

}  // namespace

// [op launch]
template <class T>
void scale_forward(Context& ctx, const ScaleForward<T>& a) {
  if (a.x.elements() == 0) return;
  const dim3 grid(blocks_for(a.x.elements(), 4 * threads));
  launch(ctx, {.name = "scale_forward", .grid = grid, .block = threads}, scale_forward_kernel<T>, a);
}
// [/op launch]

template <class T>
void scale_backward(Context& ctx, const ScaleBackward<T>& a) {
  if (a.x.elements() == 0) return;
  if (a.dfactor) {  // first, because dx may be dy
    const dim3 grid(static_cast<unsigned>(a.x.shape.channels));
    launch(ctx, {.name = "scale_factor", .grid = grid, .block = threads}, scale_factor_kernel<T>, a);
  }
  if (a.dx) {
    const dim3 grid(blocks_for(a.x.elements(), 4 * threads));
    launch(ctx, {.name = "scale_input", .grid = grid, .block = threads}, scale_input_kernel<T>, a);
  }
}

template void scale_forward<float>(Context&, const ScaleForward<float>&);
template void scale_forward<bf16>(Context&, const ScaleForward<bf16>&);
template void scale_backward<float>(Context&, const ScaleBackward<float>&);
template void scale_backward<bf16>(Context&, const ScaleBackward<bf16>&);

}  // namespace nacre::cuda
