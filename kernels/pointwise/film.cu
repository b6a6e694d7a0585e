#include "nacre/ops/film.h"

#include <type_traits>

#include "runtime/device.cuh"

// FiLM on the device (formulas and contract: nacre/ops/film.h; twin: film.cpp). Backward has two stages:
// film_backward_kernel writes dx and the sums of each block, film_parameters_kernel adds those of each label.
// Channels are innermost. A thread handles the same channels in several rows of one item, with their parameters in
// registers. P is the number of elements per access: 1 supports any shape; a 16-byte pack runs if channels and
// addresses allow.
namespace nacre::cuda {
namespace {

constexpr int threads = 256;
constexpr int64_t rows_per_thread = 8;  // with fewer, partial sums are as many bytes as the data

/// How an item's [rows, channels] matrix is divided among blocks. A block has `columns` threads along the channels, P
/// channels each, and handles `rows_at_once` of its `block_rows` rows at once. grid.x runs over items and their rows,
/// grid.y over columns.
struct Tiling {
  int64_t rows, channels, block_rows;
  int columns, rows_at_once;
  unsigned row_blocks, column_blocks;
};
Tiling tiling(Shape s, int pack) {
  Tiling t{s.time * s.width, s.channels, 0, 0, 0, 0, 0};
  const int64_t columns = s.channels / pack;
  // A warp covers adjacent packs of a row, or of several rows if they are narrow, so accesses are coalesced. Threads
  // beyond rows_at_once x columns are idle.
  t.columns = static_cast<int>(columns < threads ? columns : threads);
  t.rows_at_once = threads / t.columns;
  t.block_rows = t.rows_at_once * rows_per_thread;
  t.row_blocks = blocks_for(t.rows, t.block_rows);
  t.column_blocks = blocks_for(columns, t.columns);
  return t;
}
dim3 grid_of(const Tiling& t, Shape s) { return {static_cast<unsigned>(s.batch) * t.row_blocks, t.column_blocks, 1}; }
/// Elements per access that the channels allow. Addresses may reduce it to 1; the scratch has room for either.
template <class T>
int pack_width(Shape s) {
  return s.channels % pack_size<T> == 0 ? pack_size<T> : 1;
}

/// The label of an item, clamped to [0, count).
__device__ __forceinline__ int64_t label_of(const View<const int32_t>& labels, int64_t item, int64_t count) {
  const int64_t label = labels.data[item];
  return label < 0 ? 0 : label < count ? label : count - 1;
}

/// Work of one thread: P channels from `channel` on, in rows from `row` to `end` of an item, `rows_at_once` apart.
/// Threads beyond the last row or column of the block are not active.
struct ThreadWork {
  int64_t item, channel, row, end;
  bool active;
};
template <int P>
__device__ __forceinline__ ThreadWork thread_work(const Tiling& t) {
  const int column = static_cast<int>(threadIdx.x) % t.columns, row = static_cast<int>(threadIdx.x) / t.columns;
  const int64_t item = blockIdx.x / t.row_blocks, first = (blockIdx.x % t.row_blocks) * t.block_rows;
  const int64_t channel = (int64_t{blockIdx.y} * t.columns + column) * P, end = first + t.block_rows;
  const bool active = row < t.rows_at_once && channel < t.channels;
  return {item, channel, first + row, !active ? 0 : end < t.rows ? end : t.rows, active};
}

/// Calls rows(count, row) for the rows of a thread, `batch` at a time and then one by one. `count` is a constant, so
/// that all loads of a batch precede its stores; since outputs may alias inputs, the compiler could not reorder them.
template <int batch, class F>
__device__ __forceinline__ void each_rows(const ThreadWork& work, const Tiling& t, F&& rows) {
  int64_t row = work.row;
  for (; row + (batch - 1) * t.rows_at_once < work.end; row += batch * t.rows_at_once)
    rows(std::integral_constant<int, batch>{}, row);
  for (; row < work.end; row += t.rows_at_once) rows(std::integral_constant<int, 1>{}, row);
}

/// y = gamma x + beta for the rows of a block, four rows per thread at a time. A block has rows of one item, so its
/// threads share one label. Adjacent threads have adjacent channels: coalesced.
template <class T, int P>
__global__ void __launch_bounds__(threads) film_forward_kernel(FilmForward<T> f, Tiling t) {
  const ThreadWork work = thread_work<P>(t);
  if (work.row >= work.end) return;
  const int64_t table = label_of(f.labels, work.item, f.gamma.shape.batch) * t.channels + work.channel;
  float gamma[P], beta[P];
#pragma unroll
  for (int i = 0; i < P; ++i) gamma[i] = f.gamma.data[table + i], beta[i] = f.beta.data[table + i];
  const int64_t step = t.rows_at_once * t.channels, item = work.item * t.rows * t.channels + work.channel;
  each_rows<4>(work, t, [&](auto count, int64_t row) {
    const int64_t offset = item + row * t.channels;
    Pack<T> v[count.value];
#pragma unroll
    for (int k = 0; k < count.value; ++k) v[k] = load_elements<P>(f.x.data + offset + k * step);
#pragma unroll
    for (int k = 0; k < count.value; ++k) {
#pragma unroll
      for (int i = 0; i < P; ++i) v[k].v[i] = gamma[i] * v[k].v[i] + beta[i];
      store_elements<P>(f.y.data + offset + k * step, v[k]);
    }
  });
}

/// Writes dx, and the sums of dy x and of dy over the rows of each block to partial [batch row_blocks][2][channels];
/// null: no sums. Each thread sums its rows in registers; after the barrier one thread per channel adds the sums of the
/// block's threads. Inactive threads stay, because of the barrier.
template <class T, int P, bool add>
__global__ void __launch_bounds__(threads) film_backward_kernel(FilmBackward<T> g, Tiling t, float* partial) {
  // Sums of all threads: [gamma, beta][rows_at_once][width]. Sums of a channel are added over the block's rows in a
  // fixed order.
  NACRE_SHARED(float, sums, 2 * threads * P);
  const ThreadWork work = thread_work<P>(t);
  float gamma[P], sum_gamma[P], sum_beta[P];
#pragma unroll
  for (int i = 0; i < P; ++i) sum_gamma[i] = sum_beta[i] = 0;
  if (work.row < work.end) {
    const int64_t table = label_of(g.labels, work.item, g.gamma.shape.batch) * t.channels + work.channel;
#pragma unroll
    for (int i = 0; i < P; ++i) gamma[i] = g.gamma.data[table + i];
    const int64_t step = t.rows_at_once * t.channels, item = work.item * t.rows * t.channels + work.channel;
    each_rows<2>(work, t, [&](auto count, int64_t row) {
      const int64_t offset = item + row * t.channels;
      Pack<T> x[count.value], dy[count.value], dx[count.value];
#pragma unroll
      for (int k = 0; k < count.value; ++k) {
        x[k] = load_elements<P>(g.x.data + offset + k * step);
        dy[k] = load_elements<P>(g.dy.data + offset + k * step);
        if constexpr (add) dx[k] = load_elements<P>(g.dx.data + offset + k * step);
      }
#pragma unroll
      for (int k = 0; k < count.value; ++k) {
#pragma unroll
        for (int i = 0; i < P; ++i) {
          sum_gamma[i] += dy[k].v[i] * x[k].v[i];
          sum_beta[i] += dy[k].v[i];
          const float gradient = gamma[i] * dy[k].v[i];
          dx[k].v[i] = add ? dx[k].v[i] + gradient : gradient;
        }
        if (g.dx.data != nullptr) store_elements<P>(g.dx.data + offset + k * step, dx[k]);
      }
    });
  }
  if (partial == nullptr) return;
  const int width = t.columns * P, column = static_cast<int>(threadIdx.x) % t.columns,
            row = static_cast<int>(threadIdx.x) / t.columns;
  if (work.active) {
#pragma unroll
    for (int i = 0; i < P; ++i) {
      sums[row * width + column * P + i] = sum_gamma[i];
      sums[(t.rows_at_once + row) * width + column * P + i] = sum_beta[i];
    }
  }
  __syncthreads();
  const int64_t first = int64_t{blockIdx.y} * width;
  for (int c = static_cast<int>(threadIdx.x); c < width && first + c < t.channels; c += threads) {
    double total_gamma = 0, total_beta = 0;
    for (int r = 0; r < t.rows_at_once; ++r) {
      total_gamma += static_cast<double>(sums[r * width + c]);
      total_beta += static_cast<double>(sums[(t.rows_at_once + r) * width + c]);
    }
    float* const out = partial + int64_t{blockIdx.x} * 2 * t.channels + first + c;
    out[0] = static_cast<float>(total_gamma);
    out[t.channels] = static_cast<float>(total_beta);
  }
}

constexpr int lanes = 8;  // threads per channel in the second stage

/// Arguments of film_parameters_kernel.
struct Sums {
  View<const int32_t> labels;
  const float* partial;
  float *dgamma, *dbeta;
  int64_t channels, parts, parts_of_item;
};

/// Adds the sums of all blocks of the items with one label in double, in an order fixed by their number. grid.y runs
/// over labels.
__global__ void __launch_bounds__(32 * lanes) film_parameters_kernel(Sums s) {
  // A block has 32 channels, one per column, so that a warp reads adjacent partial sums. Warp w adds parts w, w + 8,
  // ...; the first warp adds the eight sums in order.
  NACRE_SHARED(double, sums, 2 * lanes * 32);
  const int column = static_cast<int>(threadIdx.x) % 32, lane = static_cast<int>(threadIdx.x) / 32;
  const int64_t c = int64_t{blockIdx.x} * 32 + column, label = blockIdx.y;
  double gamma = 0, beta = 0;
  if (c < s.channels)
    for (int64_t p = lane; p < s.parts; p += lanes) {
      // The parts of an item follow each other, parts_of_item of them. All threads of a warp have the same part, so
      // they take the same branch.
      if (label_of(s.labels, p / s.parts_of_item, gridDim.y) != label) continue;
      gamma += static_cast<double>(s.partial[p * 2 * s.channels + c]);
      beta += static_cast<double>(s.partial[(p * 2 + 1) * s.channels + c]);
    }
  sums[lane * 32 + column] = gamma;
  sums[(lanes + lane) * 32 + column] = beta;
  __syncthreads();
  if (lane != 0 || c >= s.channels) return;
  for (int l = 1; l < lanes; ++l) {
    gamma += sums[l * 32 + column];
    beta += sums[(lanes + l) * 32 + column];
  }
  if (s.dgamma != nullptr) s.dgamma[label * s.channels + c] += static_cast<float>(gamma);
  if (s.dbeta != nullptr) s.dbeta[label * s.channels + c] += static_cast<float>(beta);
}

/// Both stages; the second only with sums.
template <class T, int P>
void backward(Context& ctx, const FilmBackward<T>& g, bool sums) {
  const Shape x = g.x.shape;
  const Tiling t = tiling(x, P);
  const Launch config{
      .name = P == 1 ? "film_backward" : "film_backward_packs", .grid = grid_of(t, x), .block = threads};
  float* const partial = sums ? g.scratch.data : nullptr;
  if (g.dx && g.add_dx)
    launch(ctx, config, film_backward_kernel<T, P, true>, g, t, partial);
  else
    launch(ctx, config, film_backward_kernel<T, P, false>, g, t, partial);
  if (!sums) return;
  const Sums all{.labels = g.labels,
                 .partial = partial,
                 .dgamma = g.dgamma.data,
                 .dbeta = g.dbeta.data,
                 .channels = x.channels,
                 .parts = x.batch * t.row_blocks,
                 .parts_of_item = t.row_blocks};
  launch(ctx,
         {.name = "film_parameters",
          .grid = {blocks_for(x.channels, 32), static_cast<unsigned>(g.gamma.shape.batch), 1},
          .block = 32 * lanes},
         film_parameters_kernel, all);
}

}  // namespace

Shape film_backward_scratch(Shape x) {
  if (x.elements() == 0) return {.channels = 0};
  // Enough for every type and alignment, since each has its own tiling.
  int64_t row_blocks = 0;
  for (const int pack : {1, pack_width<float>(x), pack_width<bf16>(x)})
    row_blocks = std::max<int64_t>(row_blocks, tiling(x, pack).row_blocks);
  return {.batch = x.batch * row_blocks, .width = 2, .channels = x.channels};
}

template <class T>
void film_forward(Context& ctx, const FilmForward<T>& f) {
  if (f.x.elements() == 0) return;
  const bool vectorized = pack_width<T>(f.x.shape) > 1 && aligned16(f.x.data) && aligned16(f.y.data);
  const Tiling t = tiling(f.x.shape, vectorized ? pack_size<T> : 1);
  const dim3 grid = grid_of(t, f.x.shape);
  if (vectorized)
    launch(ctx, {.name = "film_forward_packs", .grid = grid, .block = threads}, film_forward_kernel<T, pack_size<T>>, f,
           t);
  else
    launch(ctx, {.name = "film_forward", .grid = grid, .block = threads}, film_forward_kernel<T, 1>, f, t);
}

template <class T>
void film_backward(Context& ctx, const FilmBackward<T>& g) {
  const bool sums = g.dgamma || g.dbeta;
  if (g.x.elements() == 0 || (!g.dx && !sums)) return;
  const bool vectorized =
      pack_width<T>(g.x.shape) > 1 && aligned16(g.x.data) && aligned16(g.dy.data) && aligned16(g.dx.data);
  if (vectorized)
    backward<T, pack_size<T>>(ctx, g, sums);
  else
    backward<T, 1>(ctx, g, sums);
}

template void film_forward<float>(Context&, const FilmForward<float>&);
template void film_forward<bf16>(Context&, const FilmForward<bf16>&);
template void film_backward<float>(Context&, const FilmBackward<float>&);
template void film_backward<bf16>(Context&, const FilmBackward<bf16>&);

}  // namespace nacre::cuda
