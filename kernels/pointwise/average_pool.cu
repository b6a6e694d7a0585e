#include "nacre/ops/average_pool.h"

#include "runtime/device.cuh"

// Average pooling along time on the device (formulas and contract: nacre/ops/average_pool.h; twin: average_pool.cpp).
// Both directions gather, one element per thread and step of the grid: no atomics, and a fixed order of sums. `inner`
// is the number of elements per position, so adjacent threads access adjacent addresses.
namespace nacre::cuda {
namespace {

constexpr int threads = 256;

/// The divisor of the window that begins at position `begin`, which is negative in the padding.
__device__ __forceinline__ float count_of(int64_t begin, int64_t time, const AveragePoolGeometry& g) {
  if (g.count_padding) return static_cast<float>(g.taps);
  const int64_t end = begin + g.taps < time ? begin + g.taps : time;
  return static_cast<float>(end - (begin > 0 ? begin : 0));
}

/// A thread has one element of y: neighbours read overlapping windows, which are in cache.
__global__ void __launch_bounds__(threads) average_pool_forward_kernel(AveragePoolForward a, int64_t inner) {
  const int64_t time = a.x.shape.time, length = a.y.shape.time;
  const AveragePoolGeometry g = a.geometry;
  for (int64_t i = grid_thread(); i < a.y.elements(); i += grid_threads()) {
    const int64_t row = i / inner, c = i - row * inner, b = row / length;
    const int64_t begin = (row - b * length) * g.stride - g.padding;
    const int64_t from = begin > 0 ? begin : 0, to = begin + g.taps < time ? begin + g.taps : time;
    const float* const x = a.x.data + b * time * inner + c;
    float sum = x[from * inner];
    for (int64_t s = from + 1; s < to; ++s) sum += x[s * inner];
    a.y[i] = sum / count_of(begin, time, g);
  }
}

/// A thread has one element of x, and gathers from the windows that cover it.
__global__ void __launch_bounds__(threads) average_pool_backward_kernel(AveragePoolBackward a, int64_t inner) {
  const int64_t time = a.dx.shape.time, length = a.dy.shape.time;
  const AveragePoolGeometry g = a.geometry;
  for (int64_t i = grid_thread(); i < a.dx.elements(); i += grid_threads()) {
    const int64_t row = i / inner, c = i - row * inner, b = row / time, at = row - b * time + g.padding;
    const int64_t before = at - g.taps;  // a window covers the position if its start, padding included, is above this
    const int64_t first = before < 0 ? 0 : before / g.stride + 1;
    const int64_t last = at / g.stride < length - 1 ? at / g.stride : length - 1;
    const float* const dy = a.dy.data + b * length * inner + c;
    float sum = a.add_dx ? a.dx[i] : 0.0f;
    for (int64_t t = first; t <= last; ++t) sum += dy[t * inner] / count_of(t * g.stride - g.padding, time, g);
    a.dx[i] = sum;
  }
}

}  // namespace

void average_pool_forward(Context& ctx, const AveragePoolForward& a) {
  const int64_t n = a.y.elements();
  if (n == 0) return;
  launch(ctx, {.name = "average_pool_forward", .grid = blocks_for(n, threads), .block = threads},
         average_pool_forward_kernel, a, a.x.shape.width * a.x.shape.channels);
}

void average_pool_backward(Context& ctx, const AveragePoolBackward& a) {
  const int64_t n = a.dx.elements();
  if (n == 0) return;
  launch(ctx, {.name = "average_pool_backward", .grid = blocks_for(n, threads), .block = threads},
         average_pool_backward_kernel, a, a.dx.shape.width * a.dx.shape.channels);
}

}  // namespace nacre::cuda
