#include "nacre/ops/snake.h"

#include <type_traits>

#include "pointwise/snake.cuh"
#include "pointwise/snake_tiling.h"
#include "runtime/gradient_sums.h"

// Snake and its gradient on the device (formulas and contract: nacre/ops/snake.h; twin: snake.cpp; the second stage of
// the parameter gradients: gradient_sums.cu).
// Channels are innermost. A thread handles the same channels in several rows, with their parameters in registers. P is
// the number of elements per access: 1 supports any shape (read this case first); a 16-byte pack runs if channels and
// addresses allow. Both directions are bound by memory.
namespace nacre::cuda {
namespace {

constexpr int threads = snake_threads;

/// Work of one thread: P channels from `channel` on, in rows from `row` to `end`, `rows_at_once` apart. Threads beyond
/// the last row or column of the block are not active.
struct ThreadWork {
  int64_t channel, row, end;
  bool active;
};
template <int P>
__device__ __forceinline__ ThreadWork thread_work(const SnakeTiling& t) {
  const int column = static_cast<int>(threadIdx.x) % t.columns, row = static_cast<int>(threadIdx.x) / t.columns;
  const int64_t first = int64_t{blockIdx.x} * t.block_rows, end = first + t.block_rows;
  const int64_t channel = (int64_t{blockIdx.y} * t.columns + column) * P;
  const bool active = row < t.rows_at_once && channel < t.channels;
  return {channel, first + row, !active ? 0 : end < t.rows ? end : t.rows, active};
}

/// y of `batch` rows, `step` elements apart. All loads precede the stores; since y may be x, the compiler could not
/// reorder them.
template <int batch, class T, int P>
__device__ __forceinline__ void forward_rows(const T* x, T* y, int64_t step, const float (&frequency)[P],
                                             const float (&gain)[P]) {
  Pack<T> v[batch];
#pragma unroll
  for (int k = 0; k < batch; ++k) v[k] = load_elements<P>(x + k * step);
#pragma unroll
  for (int k = 0; k < batch; ++k) {
#pragma unroll
    for (int i = 0; i < P; ++i) v[k].v[i] += vec::sin_squared_pi(frequency[i], v[k].v[i]) * gain[i];
    store_elements<P>(y + k * step, v[k]);
  }
}

/// y of the rows of a block, four rows per thread at a time. No barrier follows, so inactive threads leave.
template <class T, int P>
__global__ void __launch_bounds__(threads) snake_forward_kernel(SnakeForward<T> f, SnakeTiling t) {
  const ThreadWork work = thread_work<P>(t);
  if (work.row >= work.end) return;
  float frequency[P], gain[P];
#pragma unroll
  for (int i = 0; i < P; ++i) {
    const SnakeChannel c = snake_channel(f.alpha.data, f.beta.data, work.channel + i, f.log_scale);
    frequency[i] = c.frequency, gain[i] = c.gain;
  }
  constexpr int batch = 4;
  const int64_t step = t.rows_at_once * t.channels;
  int64_t row = work.row, offset = work.row * t.channels + work.channel;
  for (; row + (batch - 1) * t.rows_at_once < work.end; row += batch * t.rows_at_once, offset += batch * step)
    forward_rows<batch>(f.x.data + offset, f.y.data + offset, step, frequency, gain);
  for (; row < work.end; row += t.rows_at_once, offset += step)
    forward_rows<1>(f.x.data + offset, f.y.data + offset, step, frequency, gain);
}

/// A thread's parameters for its channels, slope = 2 a gain, and its sums over rows of dy x sin(2 a x) / 2 and of dy
/// sin^2(a x).
template <int P>
struct ChannelSums {
  float frequency[P], slope[P], sum_a[P], sum_b[P];
};
template <int batch, bool add, class T, int P>
__device__ __forceinline__ void backward_rows(const T* x, const T* dy, T* dx, int64_t step, ChannelSums<P>& s) {
  // All loads precede the stores, as in forward_rows: dx may be dy.
  Pack<T> xs[batch], g[batch], previous[batch];
#pragma unroll
  for (int k = 0; k < batch; ++k) {
    xs[k] = load_elements<P>(x + k * step);
    g[k] = load_elements<P>(dy + k * step);
    if constexpr (add) previous[k] = load_elements<P>(dx + k * step);
  }
#pragma unroll
  for (int k = 0; k < batch; ++k) {
#pragma unroll
    for (int i = 0; i < P; ++i) {
      const float v = xs[k].v[i], d = g[k].v[i];
      const vec::SinCos t = vec::sin_cos_pi_unsigned(s.frequency[i], v);
      // sin and cos may both have the wrong sign (sin_cos_pi_unsigned): only their products are used.
      const float by_phase = d * (t.sin * t.cos);
      s.sum_a[i] += by_phase * v;
      s.sum_b[i] += d * (t.sin * t.sin);
      g[k].v[i] = d + s.slope[i] * by_phase;
      if constexpr (add) g[k].v[i] += previous[k].v[i];
    }
    if (dx != nullptr) store_elements<P>(dx + k * step, g[k]);
  }
}

/// Writes dx, and the sums of ChannelSums over the rows of each block to partial [row blocks][2][channels]; null: no
/// sums. In order: each thread sums its rows in registers; the sums of all threads go to shared memory; after the
/// barrier one thread per channel adds those of the block's rows_at_once threads. Inactive threads stay, because of the
/// barrier. An active thread without rows writes zeros to shared memory.
template <class T, int P, bool add>
__global__ void __launch_bounds__(threads) snake_backward_kernel(SnakeBackward<T> g, SnakeTiling t, float* partial) {
  // Sums of all threads: [sum_a, sum_b][rows_at_once][width]. Neighbours have neighbouring channels, so accesses to
  // data are coalesced; sums of a channel are added over the block's rows in a fixed order.
  NACRE_SHARED(float, sums, 2 * threads * P);
  const ThreadWork work = thread_work<P>(t);
  ChannelSums<P> s;
#pragma unroll
  for (int i = 0; i < P; ++i) s.sum_a[i] = s.sum_b[i] = 0;
  if (work.row < work.end) {
#pragma unroll
    for (int i = 0; i < P; ++i) {
      const SnakeChannel c = snake_channel(g.alpha.data, g.beta.data, work.channel + i, g.log_scale);
      s.frequency[i] = c.frequency, s.slope[i] = 2.0f * c.a * c.gain;
    }
    constexpr int batch = 2;
    const int64_t step = t.rows_at_once * t.channels;
    int64_t row = work.row, offset = work.row * t.channels + work.channel;
    const auto rows = [&](auto count) {
      backward_rows<count.value, add>(g.x.data + offset, g.dy.data + offset, g.dx ? g.dx.data + offset : nullptr, step,
                                      s);
      row += count.value * t.rows_at_once, offset += count.value * step;
    };
    while (row + (batch - 1) * t.rows_at_once < work.end) rows(std::integral_constant<int, batch>{});
    while (row < work.end) rows(std::integral_constant<int, 1>{});
  }
  if (partial == nullptr) return;
  const int width = t.columns * P, column = static_cast<int>(threadIdx.x) % t.columns,
            row = static_cast<int>(threadIdx.x) / t.columns;
  if (work.active) {
#pragma unroll
    for (int i = 0; i < P; ++i) {
      sums[row * width + column * P + i] = s.sum_a[i];
      sums[(t.rows_at_once + row) * width + column * P + i] = s.sum_b[i];
    }
  }
  __syncthreads();
  const int64_t first = int64_t{blockIdx.y} * width;
  for (int c = static_cast<int>(threadIdx.x); c < width && first + c < t.channels; c += threads) {
    float total_a = 0, total_b = 0;
    for (int r = 0; r < t.rows_at_once; ++r) {
      total_a += sums[r * width + c];
      total_b += sums[(t.rows_at_once + r) * width + c];
    }
    float* out = partial + int64_t{blockIdx.x} * 2 * t.channels + first + c;
    out[0] = total_a;
    out[t.channels] = total_b;
  }
}

/// Both stages. With g.parts the partial sums wait for finish_gradient_sums(); else they are added at once.
template <class T, int P>
void backward(Context& ctx, const SnakeBackward<T>& g, bool sums) {
  const SnakeTiling t = snake_tiling(limits(ctx), g.x.shape, P, snake_min_rows_backward);
  const Launch config{.name = P == 1 ? "snake_backward" : "snake_backward_packs",
                      .grid = {t.row_blocks, t.column_blocks, 1},
                      .block = threads};
  float* const partial = !sums ? nullptr : g.parts ? g.parts.data : g.scratch.data;
  if (g.dx && g.add_dx)
    launch(ctx, config, snake_backward_kernel<T, P, true>, g, t, partial);
  else
    launch(ctx, config, snake_backward_kernel<T, P, false>, g, t, partial);
  if (sums)
    snake_parameter_gradients(ctx, g.alpha, g.beta, g.log_scale, g.dalpha, g.dbeta, t.row_blocks, partial,
                              static_cast<bool>(g.parts));
}

}  // namespace

Shape snake_backward_scratch(const Context& ctx, Shape x) {
  if (x.elements() == 0) return {.channels = 0};
  return {.batch = most_snake_parts(limits(ctx), x), .width = 2, .channels = x.channels};
}

template <class T>
void snake_forward(Context& ctx, const SnakeForward<T>& f) {
  if (f.x.elements() == 0) return;
  const bool vectorized = snake_pack<T>(f.x.shape) > 1 && aligned16(f.x.data) && aligned16(f.y.data);
  const SnakeTiling t = snake_tiling(limits(ctx), f.x.shape, vectorized ? pack_size<T> : 1, snake_min_rows_forward);
  const dim3 grid(t.row_blocks, t.column_blocks, 1);
  if (vectorized)
    launch(ctx, {.name = "snake_forward_packs", .grid = grid, .block = threads}, snake_forward_kernel<T, pack_size<T>>,
           f, t);
  else
    launch(ctx, {.name = "snake_forward", .grid = grid, .block = threads}, snake_forward_kernel<T, 1>, f, t);
}

template <class T>
void snake_backward(Context& ctx, const SnakeBackward<T>& g) {
  const bool sums = g.dalpha || g.dbeta;
  if (g.x.elements() == 0 || (!g.dx && !sums)) return;
  const bool vectorized =
      snake_pack<T>(g.x.shape) > 1 && aligned16(g.x.data) && aligned16(g.dy.data) && aligned16(g.dx.data);
  if (vectorized)
    backward<T, pack_size<T>>(ctx, g, sums);
  else
    backward<T, 1>(ctx, g, sums);
}

template void snake_forward<float>(Context&, const SnakeForward<float>&);
template void snake_forward<bf16>(Context&, const SnakeForward<bf16>&);
template void snake_backward<float>(Context&, const SnakeBackward<float>&);
template void snake_backward<bf16>(Context&, const SnakeBackward<bf16>&);

}  // namespace nacre::cuda
