#include "nacre/ops/two_rates.h"

#include "runtime/device.cuh"

// The operations between the two cascades on CUDA; two_rates.cpp is the same on the CPU. nacre/ops/two_rates.h gives
// the formulas.
//
// One launch each, one element per thread and turn; adjacent threads have adjacent elements. Memory-bound, and small:
// the latent of a codec and its codes.
namespace nacre::cuda {
namespace {

constexpr int threads = 256;

/// y = z - p. y may be z or p: the thread of an element is the only one that reads and writes it.
__global__ void __launch_bounds__(threads) rest_kernel(Rest a) {
  for (int64_t i = grid_thread(); i < a.y.elements(); i += grid_threads()) a.y[i] = a.z[i] - a.p[i];
}
/// dz and dp from one read of dy: d = dy, or 0 in items without stages of the second cascade.
__global__ void __launch_bounds__(threads) rest_backward_kernel(RestBackward a, int64_t per_item) {
  for (int64_t i = grid_thread(); i < a.dy.elements(); i += grid_threads()) {
    const float d = a.stages[i / per_item] > 0 ? a.dy[i] : 0.0f;
    if (a.dz.data != nullptr) a.dz[i] = a.add_dz ? a.dz[i] + d : d;
    if (a.dp.data != nullptr) a.dp[i] = a.add_dp ? a.dp[i] - d : -d;
  }
}
/// A thread per item.
__global__ void __launch_bounds__(threads) split_stages_kernel(SplitStages a) {
  const int most = static_cast<int>(a.long_codebooks), positions = static_cast<int>(a.positions);
  for (int64_t b = grid_thread(); b < a.stages.elements(); b += grid_threads()) {
    const int n = a.stages[b];
    a.long_stages[b] = n < most ? n : most;
    a.short_stages[b] = n > most ? n - most : 0;
    a.short_frames[b] = a.frames[b] * positions;
  }
}
/// A thread per copied code. Other columns of y are not touched.
__global__ void __launch_bounds__(threads) copy_columns_kernel(CopyColumns a) {
  const int64_t n = a.x.shape.rows() * a.columns;
  for (int64_t i = grid_thread(); i < n; i += grid_threads()) {
    const int64_t row = i / a.columns, column = i - row * a.columns;
    a.y[row * a.y.shape.channels + a.to + column] = a.x[row * a.x.shape.channels + a.from + column];
  }
}

}  // namespace

void rest(Context& ctx, const Rest& a) {
  if (a.y.elements() == 0) return;
  const dim3 grid(blocks_for(a.y.elements(), threads));
  launch(ctx, {.name = "rest", .grid = grid, .block = threads}, rest_kernel, a);
}
void rest_backward(Context& ctx, const RestBackward& a) {
  if (a.dy.elements() == 0) return;
  const dim3 grid(blocks_for(a.dy.elements(), threads));
  launch(ctx, {.name = "rest_backward", .grid = grid, .block = threads}, rest_backward_kernel, a,
         a.dy.elements() / a.dy.shape.batch);
}
void split_stages(Context& ctx, const SplitStages& a) {
  if (a.stages.elements() == 0) return;
  const dim3 grid(blocks_for(a.stages.elements(), threads));
  launch(ctx, {.name = "split_stages", .grid = grid, .block = threads}, split_stages_kernel, a);
}
void copy_columns(Context& ctx, const CopyColumns& a) {
  const int64_t n = a.x.shape.rows() * a.columns;
  if (n == 0) return;
  const dim3 grid(blocks_for(n, threads));
  launch(ctx, {.name = "copy_columns", .grid = grid, .block = threads}, copy_columns_kernel, a);
}

}  // namespace nacre::cuda
