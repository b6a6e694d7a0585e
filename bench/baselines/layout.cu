#include "baselines/layout.h"

#include <cmath>
#include <vector>

#include "runtime/device.cuh"

namespace nacre::bench {
namespace {

using cuda::launch;

constexpr int threads = 256;
constexpr unsigned difference_blocks = 512;

template <class T>
__global__ void __launch_bounds__(threads)
    transpose_kernel(const T* from, T* to, int64_t batch, int64_t rows, int64_t columns) {
  for (int64_t i = cuda::grid_thread(); i < batch * rows * columns; i += cuda::grid_threads()) {
    const int64_t row = i % rows, column = i / rows % columns, b = i / rows / columns;
    to[i] = from[(b * rows + row) * columns + column];
  }
}

template <class T>
__global__ void __launch_bounds__(threads) unfold_kernel(const T* from, T* to, Unfold u) {
  for (int64_t i = cuda::grid_thread(); i < u.batch * u.rows * u.terms * u.channels; i += cuda::grid_threads()) {
    const int64_t c = i % u.channels, term = i / u.channels % u.terms, row = i / u.channels / u.terms;
    const int64_t b = row / u.rows, at = row % u.rows * u.step + term * u.jump + u.first;
    to[i] = at >= 0 && at < u.time ? from[(b * u.time + at) * u.channels + c] : store<T>(0.0f);
  }
}

template <class T>
__global__ void __launch_bounds__(threads)
    phases_kernel(const T* weight, T* to, int64_t out, int64_t taps, int64_t in, int64_t stride, int64_t terms) {
  for (int64_t i = cuda::grid_thread(); i < stride * in * terms * out; i += cuda::grid_threads()) {
    const int64_t o = i % out, term = i / out % terms, channel = i / out / terms % in, r = i / out / terms / in;
    const int64_t tap = r + term * stride;
    to[i] = tap < taps ? weight[(o * taps + tap) * in + channel] : store<T>(0.0f);
  }
}

/// partial [blocks][2] gets, per block, the sums of (a - b)^2 and of b^2.
template <class A, class B>
__global__ void __launch_bounds__(threads) difference_kernel(const A* a, int64_t a_pitch, const B* b, int64_t b_pitch,
                                                             int64_t batch, int64_t n, double* partial) {
  NACRE_SHARED(double, buffer, threads / 32);
  double difference = 0, size = 0;
  for (int64_t i = cuda::grid_thread(); i < batch * n; i += cuda::grid_threads()) {
    const double x = to_float(a[i / n * a_pitch + i % n]), y = to_float(b[i / n * b_pitch + i % n]);
    difference += (x - y) * (x - y);
    size += y * y;
  }
  difference = cuda::block_sum<threads>(difference, buffer);
  size = cuda::block_sum<threads>(size, buffer);
  if (threadIdx.x == 0) partial[2 * blockIdx.x] = difference, partial[2 * blockIdx.x + 1] = size;
}

cuda::Launch over(const char* name, int64_t n) {
  return {.name = name, .grid = cuda::blocks_for(n, threads, 1 << 16), .block = threads};
}

}  // namespace

template <class T>
void transpose(Context& ctx, const T* from, T* to, int64_t batch, int64_t rows, int64_t columns) {
  launch(ctx, over("baseline_transpose", batch * rows * columns), transpose_kernel<T>, from, to, batch, rows, columns);
}
template <class T>
void unfold(Context& ctx, const T* from, T* to, const Unfold& u) {
  launch(ctx, over("baseline_unfold", u.elements()), unfold_kernel<T>, from, to, u);
}
template <class T>
void phases(Context& ctx, const T* weight, T* to, int64_t out, int64_t taps, int64_t in, int64_t stride,
            int64_t terms) {
  launch(ctx, over("baseline_phases", stride * in * terms * out), phases_kernel<T>, weight, to, out, taps, in, stride,
         terms);
}
template <class A, class B>
double relative_difference(Context& ctx, const A* a, int64_t a_pitch, const B* b, int64_t b_pitch, int64_t batch,
                           int64_t n) {
  const unsigned blocks = cuda::blocks_for(batch * n, threads, difference_blocks);
  std::vector<double> sums(2 * blocks);
  const Memory partial(ctx, sums.size() * sizeof(double));
  launch(ctx, {.name = "baseline_difference", .grid = blocks, .block = threads}, difference_kernel<A, B>, a, a_pitch, b,
         b_pitch, batch, n, reinterpret_cast<double*>(partial.data()));
  cuda::runtime(ctx).copy_to_host(sums.data(), partial.data(), partial.size());
  double difference = 0, size = 0;
  for (size_t i = 0; i < sums.size(); i += 2) difference += sums[i], size += sums[i + 1];
  return std::sqrt(difference / size);
}

template void transpose<float>(Context&, const float*, float*, int64_t, int64_t, int64_t);
template void transpose<bf16>(Context&, const bf16*, bf16*, int64_t, int64_t, int64_t);
template void unfold<float>(Context&, const float*, float*, const Unfold&);
template void unfold<bf16>(Context&, const bf16*, bf16*, const Unfold&);
template void phases<float>(Context&, const float*, float*, int64_t, int64_t, int64_t, int64_t, int64_t);
template void phases<bf16>(Context&, const bf16*, bf16*, int64_t, int64_t, int64_t, int64_t, int64_t);
template double relative_difference<float, float>(Context&, const float*, int64_t, const float*, int64_t, int64_t,
                                                  int64_t);
template double relative_difference<bf16, bf16>(Context&, const bf16*, int64_t, const bf16*, int64_t, int64_t, int64_t);
template double relative_difference<bf16, float>(Context&, const bf16*, int64_t, const float*, int64_t, int64_t,
                                                 int64_t);

}  // namespace nacre::bench
