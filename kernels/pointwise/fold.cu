#include "nacre/ops/fold.h"

#include "runtime/device.cuh"

// fold on the device (formulas and contract: nacre/ops/fold.h; twin: fold.cpp).
namespace nacre::cuda {
namespace {

constexpr int threads = 256;

/// A thread has one position of all split signals of an item: writes are coalesced, and what the threads of a block
/// read is contiguous. blockIdx.y loops over items, because grid.y is limited.
__global__ void __launch_bounds__(threads) fold_forward_kernel(FoldForward a, int64_t length) {
  const int64_t l = grid_thread(), time = a.x.shape.time;
  if (l >= length) return;
  for (int64_t b = blockIdx.y; b < a.x.shape.batch; b += gridDim.y) {
    const float* const x = a.x.data + b * time;
    float* const y = a.y.data + b * a.period * length + l;
#pragma unroll 4
    for (int64_t j = 0; j < a.period; ++j) {
      const int64_t at = l * a.period + j;
      y[j * length] = x[at < time ? at : 2 * (time - 1) - at];
    }
  }
}

/// A thread has one sample. It adds dy of the sample's own position and, if the appended samples repeat it, of its
/// reflection, in the order of the CPU. place(at) is the element of dy that reads sample `at` of the
/// extended signal. Reads are `length` elements apart for adjacent threads; writes are coalesced.
__global__ void __launch_bounds__(threads) fold_backward_kernel(FoldBackward a, int64_t length) {
  const int64_t t = grid_thread(), time = a.dx.shape.time;
  if (t >= time) return;
  const auto place = [&](int64_t at) {
    const int64_t l = static_cast<int64_t>(static_cast<uint64_t>(at) / static_cast<uint64_t>(a.period));
    return (at - l * a.period) * length + l;
  };
  const int64_t mirror = 2 * (time - 1) - t;  // the position that reflects t
  const bool reflected = mirror >= time && mirror < length * a.period;
  const int64_t own = place(t), other = reflected ? place(mirror) : own;
  for (int64_t b = blockIdx.y; b < a.dx.shape.batch; b += gridDim.y) {
    const float* const dy = a.dy.data + b * a.period * length;
    float* const dx = a.dx.data + b * time + t;
    float sum = dy[own];
    if (a.add_dx) sum += *dx;
    if (reflected) sum += dy[other];
    *dx = sum;
  }
}

unsigned items(int64_t batch) { return static_cast<unsigned>(batch < 65535 ? batch : 65535); }

}  // namespace

void fold_forward(Context& ctx, const FoldForward& a) {
  const int64_t length = a.y.shape.time;
  launch(ctx, {.name = "fold_forward", .grid = {blocks_for(length, threads), items(a.x.shape.batch)}, .block = threads},
         fold_forward_kernel, a, length);
}

void fold_backward(Context& ctx, const FoldBackward& a) {
  const Shape s = a.dx.shape;
  launch(ctx, {.name = "fold_backward", .grid = {blocks_for(s.time, threads), items(s.batch)}, .block = threads},
         fold_backward_kernel, a, a.dy.shape.time);
}

}  // namespace nacre::cuda
