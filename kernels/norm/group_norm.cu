#include "nacre/ops/group_norm.h"

#include "runtime/partials.cuh"

// Group normalisation on CUDA; group_norm.cpp is the same on the CPU. nacre/ops/group_norm.h gives the formulas.
//
// Channels are innermost, and adjacent threads have adjacent channels, so loads and stores are coalesced. P is the
// number of elements per access: 1 supports any shape (read this case first); a 16-byte pack runs if the channels of a
// group and the addresses allow. A pack lies in one group.
//
//   over an item       forward   moments: sums of the rows of a block; statistics: their sum per set; apply: y
//                      backward  columns: sums per channel; set_sums: their sum per set; input_gradient: dx;
//                                parameters: dgain and dbias
//   over a position    a few lanes of a warp have a set: forward is one launch. Backward: columns, positions (dx),
//                      parameters
//
// Sums: a thread adds up to 32 rows, the block adds its threads in shared memory and stores doubles in scratch, and a
// second launch adds the blocks. The number of blocks follows from the shape and P.
namespace nacre::cuda {
namespace {

constexpr int threads = 256;
constexpr int64_t max_rows = 32;  // rows per thread; the sums of the backward pass are in float over them
constexpr int64_t min_rows = 8;   // with fewer, partial sums are as many bytes as the data

/// How the [rows, channels] matrix of each item is divided among blocks. A block has `columns` threads along the
/// channels, P channels each, and handles `rows_at_once` of its `block_rows` rows at once. Adjacent threads have
/// adjacent columns, and `columns` threads share a row slot. Threads that do not fill a row are idle. grid.x
/// runs over items and their row blocks, grid.y over columns.
struct Tiling {
  int64_t rows, channels, block_rows;
  int columns, rows_at_once;
  unsigned row_blocks, column_blocks;
  int64_t batch;

  Tiling(int64_t items, int64_t item_rows, int64_t row_channels, int pack)
      : rows(item_rows), channels(row_channels), batch(items) {
    const int64_t pack_count = row_channels / pack;
    columns = static_cast<int>(pack_count < threads ? pack_count : threads);
    rows_at_once = threads / columns;
    column_blocks = blocks_for(pack_count, columns);
    // Rows per thread: 32, or fewer, down to 8, until the grid has blocks_of_sums blocks.
    int64_t each = max_rows;
    while (each > min_rows && ceil_div(rows, rows_at_once * each) * column_blocks * batch < blocks_of_sums) each /= 2;
    block_rows = rows_at_once * each;
    row_blocks = blocks_for(rows, block_rows);
  }
  dim3 grid() const { return {static_cast<unsigned>(batch * row_blocks), column_blocks, 1}; }
};

/// Work of one thread: P channels from `channel` on, in rows from `row` to `end`, `rows_at_once` apart.
struct ThreadWork {
  int64_t item, channel, row, end;
  int column, row_slot;  ///< the thread's column and row in its block
};
/// The work of this thread. An idle thread has no rows: its `end` is 0. It must still reach the barriers of its block.
template <int P>
__device__ __forceinline__ ThreadWork thread_work(const Tiling& t) {
  const int column = static_cast<int>(threadIdx.x) % t.columns, row_slot = static_cast<int>(threadIdx.x) / t.columns;
  const int64_t first = int64_t{blockIdx.x % t.row_blocks} * t.block_rows, end = first + t.block_rows;
  const int64_t channel = (int64_t{blockIdx.y} * t.columns + column) * P;
  const bool active = row_slot < t.rows_at_once && channel < t.channels;
  return {blockIdx.x / t.row_blocks,
          channel,
          first + row_slot,
          !active ? 0 : end < t.rows ? end : t.rows,
          column,
          row_slot};
}

/// Parameters of P channels. With packs, p is 16-byte aligned.
template <int P>
struct Channels {
  float v[P];
  __device__ __forceinline__ explicit Channels(const float* p) {
    if constexpr (P == 1) {
      v[0] = *p;
    } else {
#pragma unroll
      for (int i = 0; i < P; i += 4) {
        const Pack<float> four = load_pack(p + i);
#pragma unroll
        for (int k = 0; k < 4; ++k) v[i + k] = four.v[k];
      }
    }
  }
};

/// Sums of differences from a set's first element, and of their squares.
struct Moments {
  double sum = 0, squares = 0;
  template <int P, class T>
  __device__ __forceinline__ void add(const Pack<T>& x, double pivot) {
#pragma unroll
    for (int i = 0; i < P; ++i) {
      const double v = static_cast<double>(x.v[i]) - pivot;
      sum += v;
      squares += v * v;
    }
  }
};
/// As put_statistics() in group_norm.cpp: mean and 1 / sqrt(var + eps), from sums of v = x - pivot and of v^2. `per` is
/// 1 / n.
__device__ __forceinline__ void put_statistics(double pivot, double sum, double squares, double per, float eps,
                                               float* mean, float* inverse) {
  const double first = sum * per, variance = squares * per - first * first;
  *mean = static_cast<float>(pivot + first);
  *inverse = static_cast<float>(1.0 / sqrt((variance < 0 ? 0.0 : variance) + static_cast<double>(eps)));
}

// ---- over an item

/// The rows as the moments see them. Several groups: those of x. A single group is contiguous over the rows of an item,
/// so the item is cut into rows of up to 32 packs, whose width must divide the item. `pack`: elements per access.
struct MomentRows {
  int pack;
  Tiling tiling;
};
template <class T>
MomentRows moment_rows(Shape x, int64_t groups, bool aligned) {
  const int64_t rows = x.time * x.width, n = rows * x.channels;
  if (groups == 1) {
    const int pack = aligned && n % pack_size<T> == 0 ? pack_size<T> : 1;
    int64_t width = 32 * pack;  // a warp's, or as large a share of it as divides the item
    while (n % width != 0) width /= 2;
    return {pack, Tiling(x.batch, n / width, width, pack)};
  }
  const int pack = aligned && x.channels / groups % pack_size<T> == 0 ? pack_size<T> : 1;
  return {pack, Tiling(x.batch, rows, x.channels, pack)};
}

/// partial [item][row block][column] = moments of the block's rows, two doubles. A column is the P channels of a
/// thread. Shared memory: the sums, then the squares, of all threads, 4 KiB; the threads of row_slot 0 add those of
/// their column after the barrier.
template <class T, int P>
__global__ void __launch_bounds__(threads)
    group_norm_moments_kernel(const T* x, Tiling t, int64_t item_elements, int64_t group_channels, float* partial) {
  NACRE_SHARED(double, sums, 2 * threads);
  const ThreadWork work = thread_work<P>(t);
  const T* const item = x + work.item * item_elements;
  Moments m;
  if (work.row < work.end) {
    // With a single group, group_channels is the width of the tiling's rows, so the pivot is the item's first element.
    const double pivot = static_cast<double>(to_float(item[work.channel / group_channels * group_channels]));
#pragma unroll 4
    for (int64_t row = work.row; row < work.end; row += t.rows_at_once)
      m.template add<P>(load_elements<P>(item + row * t.channels + work.channel), pivot);
  }
  sums[threadIdx.x] = m.sum, sums[threads + threadIdx.x] = m.squares;
  __syncthreads();
  // Column by column, the row slots in order: the sum does not depend on timing.
  if (work.row_slot != 0 || work.channel >= t.channels) return;
  for (int r = 1; r < t.rows_at_once; ++r) {
    m.sum += sums[r * t.columns + work.column];
    m.squares += sums[threads + r * t.columns + work.column];
  }
  const int64_t at = int64_t{blockIdx.x} * (t.channels / P) + work.channel / P;
  put_partial(partial, 2 * at, m.sum), put_partial(partial, 2 * at + 1, m.squares);
}

/// One block per set adds its partial moments: thread i takes the partials i, i + threads, ... of the set's columns.
template <class T>
__global__ void __launch_bounds__(threads)
    group_norm_statistics_kernel(GroupNormForward<T> f, int64_t row_blocks, int64_t columns, const float* partial) {
  NACRE_SHARED(double, buffer, 2 * threads / 32);
  const int64_t item = blockIdx.x / f.groups, group = blockIdx.x % f.groups, width = columns / f.groups;
  double sum = 0, squares = 0;
  for (int64_t i = threadIdx.x; i < row_blocks * width; i += threads) {
    const int64_t at = (item * row_blocks + i / width) * columns + group * width + i % width;
    sum += get_partial(partial, 2 * at), squares += get_partial(partial, 2 * at + 1);
  }
  sum = block_sum<threads>(sum, buffer);
  squares = block_sum<threads>(squares, buffer + threads / 32);
  if (threadIdx.x != 0) return;
  const int64_t channels = f.x.shape.channels / f.groups, n = f.x.shape.time * f.x.shape.width * channels;
  const T* const first = f.x.data + item * f.x.shape.time * f.x.shape.width * f.x.shape.channels + group * channels;
  put_statistics(static_cast<double>(to_float(*first)), sum, squares, 1.0 / static_cast<double>(n), f.eps,
                 f.mean.data + blockIdx.x, f.inverse_deviation.data + blockIdx.x);
}

/// y over an item. A thread's channels are the same in all of its rows, so gain, bias and statistics stay in registers.
template <class T, int P>
__global__ void __launch_bounds__(threads) group_norm_apply_kernel(GroupNormForward<T> f, Tiling t) {
  const ThreadWork work = thread_work<P>(t);
  if (work.row >= work.end) return;
  const int64_t set = work.item * f.groups + work.channel / (t.channels / f.groups);
  const float mean = f.mean.data[set], inverse = f.inverse_deviation.data[set];
  Channels<P> scale(f.gain.data + work.channel);
  const Channels<P> bias(f.bias.data + work.channel);
#pragma unroll
  for (int i = 0; i < P; ++i) scale.v[i] *= inverse;
#pragma unroll 4
  for (int64_t row = work.row; row < work.end; row += t.rows_at_once) {
    const int64_t at = (work.item * t.rows + row) * t.channels + work.channel;
    Pack<T> v = load_elements<P>(f.x.data + at), residual{};
    if (f.residual) residual = load_elements<P>(f.residual.data + at);
#pragma unroll
    for (int i = 0; i < P; ++i) v.v[i] = (v.v[i] - mean) * scale.v[i] + bias.v[i] + residual.v[i];
    store_elements<P>(f.y.data + at, v);
  }
}

/// partial [item][row block][2][channels] = sums of dy and of dy h over the block's rows, as doubles. In both modes;
/// only the place of the statistics differs. A thread sums at most max_rows rows in float. Shared memory: these sums,
/// as [dy, dy h][row_slot][channel of the block]; after the barrier a thread per channel adds the row slots in double.
template <class T, int P>
__global__ void __launch_bounds__(threads) group_norm_columns_kernel(GroupNormBackward<T> g, Tiling t, float* partial) {
  NACRE_SHARED(float, sums, 2 * threads * P);
  const ThreadWork work = thread_work<P>(t);
  float sum_dy[P], sum_dyh[P];
#pragma unroll
  for (int i = 0; i < P; ++i) sum_dy[i] = sum_dyh[i] = 0;
  const int64_t group = work.channel / (t.channels / g.groups), first = work.item * t.rows;
  const bool over_item = g.over == NormOver::item;
#pragma unroll 2
  for (int64_t row = work.row; row < work.end; row += t.rows_at_once) {
    const int64_t at = (first + row) * t.channels + work.channel;
    const int64_t set = (over_item ? work.item : first + row) * g.groups + group;
    const float mean = g.mean.data[set], inverse = g.inverse_deviation.data[set];
    const Pack<T> x = load_elements<P>(g.x.data + at), dy = load_elements<P>(g.dy.data + at);
#pragma unroll
    for (int i = 0; i < P; ++i) {
      sum_dy[i] += dy.v[i];
      sum_dyh[i] += dy.v[i] * ((x.v[i] - mean) * inverse);
    }
  }
  // Blocks at the right edge have columns beyond the channels; their sums are 0 and not read.
  const int width = t.columns * P;
  if (work.row_slot < t.rows_at_once) {
#pragma unroll
    for (int i = 0; i < P; ++i) {
      sums[work.row_slot * width + work.column * P + i] = sum_dy[i];
      sums[(t.rows_at_once + work.row_slot) * width + work.column * P + i] = sum_dyh[i];
    }
  }
  __syncthreads();
  const int64_t begin = int64_t{blockIdx.y} * width;
  for (int c = static_cast<int>(threadIdx.x); c < width && begin + c < t.channels; c += threads) {
    double total_dy = 0, total_dyh = 0;
    for (int r = 0; r < t.rows_at_once; ++r) {
      total_dy += static_cast<double>(sums[r * width + c]);
      total_dyh += static_cast<double>(sums[(t.rows_at_once + r) * width + c]);
    }
    const int64_t at = int64_t{blockIdx.x} * 2 * t.channels + begin + c;
    put_partial(partial, at, total_dy), put_partial(partial, at + t.channels, total_dyh);
  }
}

/// One block per set: means [set][2] = the means of d and of d h over an item. gain is constant along a column, so the
/// sums of columns are multiplied by it here.
template <class T>
__global__ void __launch_bounds__(threads)
    group_norm_set_sums_kernel(GroupNormBackward<T> g, int64_t row_blocks, const float* partial, float* means) {
  NACRE_SHARED(double, buffer, 2 * threads / 32);
  const int64_t channels = g.x.shape.channels, width = channels / g.groups;
  const int64_t item = blockIdx.x / g.groups, group = blockIdx.x % g.groups;
  double sum_d = 0, sum_dh = 0;
  for (int64_t i = threadIdx.x; i < row_blocks * width; i += threads) {
    const int64_t block = item * row_blocks + i / width, c = group * width + i % width;
    const double gain = static_cast<double>(g.gain.data[c]);
    sum_d += gain * get_partial(partial, 2 * block * channels + c);
    sum_dh += gain * get_partial(partial, (2 * block + 1) * channels + c);
  }
  sum_d = block_sum<threads>(sum_d, buffer);
  sum_dh = block_sum<threads>(sum_dh, buffer + threads / 32);
  const double n = static_cast<double>(g.x.shape.time * g.x.shape.width * width);
  if (threadIdx.x != 0) return;
  means[2 * blockIdx.x] = static_cast<float>(sum_d / n), means[2 * blockIdx.x + 1] = static_cast<float>(sum_dh / n);
}

/// dx over an item = r gain dy - r mean(d) - (x - mean) r^2 mean(d h); both constants and r gain stay in registers.
template <class T, int P>
__global__ void __launch_bounds__(threads)
    group_norm_input_gradient_kernel(GroupNormBackward<T> g, Tiling t, const float* means) {
  const ThreadWork work = thread_work<P>(t);
  if (work.row >= work.end) return;
  const int64_t set = work.item * g.groups + work.channel / (t.channels / g.groups);
  const float mean = g.mean.data[set], inverse = g.inverse_deviation.data[set];
  const float constant = inverse * means[2 * set], slope = inverse * inverse * means[2 * set + 1];
  Channels<P> scale(g.gain.data + work.channel);
#pragma unroll
  for (int i = 0; i < P; ++i) scale.v[i] *= inverse;
#pragma unroll 2
  for (int64_t row = work.row; row < work.end; row += t.rows_at_once) {
    const int64_t at = (work.item * t.rows + row) * t.channels + work.channel;
    const Pack<T> x = load_elements<P>(g.x.data + at);
    Pack<T> dy = load_elements<P>(g.dy.data + at), before{};
    if (g.add_dx) before = load_elements<P>(g.dx.data + at);
#pragma unroll
    for (int i = 0; i < P; ++i) dy.v[i] = before.v[i] + (scale.v[i] * dy.v[i] - constant - (x.v[i] - mean) * slope);
    store_elements<P>(g.dx.data + at, dy);
  }
}

// ---- over a position

/// The lanes of a warp that share a set: a power of two, as many as the set has packs or more, but at most a warp. A
/// warp has 32 / lanes sets, in the order of memory.
struct Lanes {
  int lanes, lane;
  int64_t set;
  __device__ __forceinline__ explicit Lanes(int count)
      : lanes(count),
        lane(static_cast<int>(threadIdx.x) % count),
        set((int64_t{blockIdx.x} * threads + threadIdx.x) / count) {}
  /// Sum over the set's lanes, the same bits in each of them. All lanes of the warp take part.
  __device__ __forceinline__ double sum(double v) const {
    for (int l = lanes / 2; l > 0; l /= 2) v += __shfl_xor_sync(full_warp, v, l);
    return v;
  }
};
/// The number of lanes for a set of `pack_count` packs.
int lanes_of(int64_t pack_count) {
  int lanes = 1;
  while (lanes < 32 && lanes < pack_count) lanes *= 2;
  return lanes;
}

/// Statistics and y over a position, a set per `lane_count` lanes. The lanes of sets beyond the last one have no
/// elements, but take part in the shuffles of their warp.
template <class T, int P>
__global__ void __launch_bounds__(threads)
    group_norm_positions_kernel(GroupNormForward<T> f, int lane_count, double per) {
  const Lanes s(lane_count);
  const int width = static_cast<int>(f.x.shape.channels / f.groups);
  // Sets are numbered in the order of the rows and, within a row, of the groups, so set s begins at element s width.
  const bool exists = s.set < f.mean.elements();
  const int end = exists ? width : 0;
  const int64_t at = exists ? s.set * width : 0, channel = exists ? s.set % f.groups * width : 0;
  const T* const x = f.x.data + at;
  const double pivot = static_cast<double>(to_float(x[0]));
  Moments m;
  for (int i = s.lane * P; i < end; i += s.lanes * P) m.template add<P>(load_elements<P>(x + i), pivot);
  // All lanes of a set get the same bits, so each computes the same mean.
  const double sum = s.sum(m.sum), squares = s.sum(m.squares);
  float mean = 0, inverse = 0;
  put_statistics(pivot, sum, squares, per, f.eps, &mean, &inverse);
  if (exists && s.lane == 0) f.mean.data[s.set] = mean, f.inverse_deviation.data[s.set] = inverse;
  for (int i = s.lane * P; i < end; i += s.lanes * P) {  // x comes from cache
    Pack<T> v = load_elements<P>(x + i), residual{};
    if (f.residual) residual = load_elements<P>(f.residual.data + at + i);
    const Channels<P> gain(f.gain.data + channel + i), bias(f.bias.data + channel + i);
#pragma unroll
    for (int k = 0; k < P; ++k) v.v[k] = (v.v[k] - mean) * (inverse * gain.v[k]) + bias.v[k] + residual.v[k];
    store_elements<P>(f.y.data + at + i, v);
  }
}

/// dx over a position, with the same lanes. The P products of an access are added in float, then in double.
template <class T, int P>
__global__ void __launch_bounds__(threads)
    group_norm_position_gradients_kernel(GroupNormBackward<T> g, int lane_count) {
  const Lanes s(lane_count);
  const int width = static_cast<int>(g.x.shape.channels / g.groups);
  const bool exists = s.set < g.mean.elements();
  const int end = exists ? width : 0;
  const int64_t at = exists ? s.set * width : 0;
  const float* const gains = g.gain.data + (exists ? s.set % g.groups * width : 0);
  const float mean = exists ? g.mean.data[s.set] : 0.0f, inverse = exists ? g.inverse_deviation.data[s.set] : 0.0f;
  double sum_d = 0, sum_dh = 0;
  for (int i = s.lane * P; i < end; i += s.lanes * P) {
    const Pack<T> x = load_elements<P>(g.x.data + at + i), dy = load_elements<P>(g.dy.data + at + i);
    const Channels<P> gain(gains + i);
    float of_d = 0, of_dh = 0;
#pragma unroll
    for (int k = 0; k < P; ++k) {
      const float d = dy.v[k] * gain.v[k];
      of_d += d;
      of_dh += d * ((x.v[k] - mean) * inverse);
    }
    sum_d += static_cast<double>(of_d), sum_dh += static_cast<double>(of_dh);
  }
  const double mean_d = s.sum(sum_d) / width, mean_dh = s.sum(sum_dh) / width;
  const float constant = inverse * static_cast<float>(mean_d), slope = inverse * inverse * static_cast<float>(mean_dh);
  for (int i = s.lane * P; i < end; i += s.lanes * P) {
    const Pack<T> x = load_elements<P>(g.x.data + at + i);
    Pack<T> dy = load_elements<P>(g.dy.data + at + i), before{};
    if (g.add_dx) before = load_elements<P>(g.dx.data + at + i);
    const Channels<P> gain(gains + i);
#pragma unroll
    for (int k = 0; k < P; ++k)
      dy.v[k] = before.v[k] + (inverse * gain.v[k] * dy.v[k] - constant - (x.v[k] - mean) * slope);
    store_elements<P>(g.dx.data + at + i, dy);
  }
}

// ---- dgain and dbias

constexpr int parameter_lanes = 8;  // threads per channel

/// dgain and dbias from the column sums of all blocks, in an order fixed by their number. A block has 32 channels, one
/// per lane, and its eight warps share the parts: warp w adds the parts w, w + 8, ... Then warp 0 adds the warps in
/// order.
__global__ void __launch_bounds__(32 * parameter_lanes)
    group_norm_parameters_kernel(float* dgain, float* dbias, int64_t channels, int64_t parts, const float* partial) {
  NACRE_SHARED(double, sums, 2 * parameter_lanes * 32);
  const int column = static_cast<int>(threadIdx.x) % 32, lane = static_cast<int>(threadIdx.x) / 32;
  const int64_t c = int64_t{blockIdx.x} * 32 + column;
  double sum_dy = 0, sum_dyh = 0;
  if (c < channels)
    for (int64_t p = lane; p < parts; p += parameter_lanes) {
      sum_dy += get_partial(partial, 2 * p * channels + c);
      sum_dyh += get_partial(partial, (2 * p + 1) * channels + c);
    }
  sums[lane * 32 + column] = sum_dy;
  sums[(parameter_lanes + lane) * 32 + column] = sum_dyh;
  __syncthreads();
  if (lane != 0 || c >= channels) return;
  for (int l = 1; l < parameter_lanes; ++l) {
    sum_dy += sums[l * 32 + column];
    sum_dyh += sums[(parameter_lanes + l) * 32 + column];
  }
  if (dgain != nullptr) dgain[c] += static_cast<float>(sum_dyh);
  if (dbias != nullptr) dbias[c] += static_cast<float>(sum_dy);
}

/// Over a position, the rows of all items are one matrix, because sets do not depend on items.
Tiling tiling(Shape x, NormOver over, int pack) {
  if (over == NormOver::position) return {1, x.rows(), x.channels, pack};
  return {x.batch, x.time * x.width, x.channels, pack};
}
/// Elements per access that the channels allow. Addresses may reduce it to 1; the scratch has room for either.
template <class T>
int pack_width(Shape x, int64_t groups) {
  return x.channels / groups % pack_size<T> == 0 ? pack_size<T> : 1;
}

template <class T, int P>
void forward(Context& ctx, const GroupNormForward<T>& f) {
  const Shape x = f.x.shape;
  if (f.over == NormOver::position) {
    const int lanes = lanes_of(x.channels / f.groups / P);
    launch(ctx,
           {.name = "group_norm_positions", .grid = blocks_for(f.mean.elements() * lanes, threads), .block = threads},
           group_norm_positions_kernel<T, P>, f, lanes, 1.0 / static_cast<double>(x.channels / f.groups));
    return;
  }
  const MomentRows rows = moment_rows<T>(x, f.groups, aligned16(f.x.data));
  const Tiling& m = rows.tiling;
  const int64_t columns = m.channels / rows.pack;
  // A single group's pivot is its item's first element.
  const int64_t group_channels = f.groups == 1 ? m.channels : x.channels / f.groups;
  launch(ctx, {.name = "group_norm_moments", .grid = m.grid(), .block = threads},
         rows.pack == 1 ? group_norm_moments_kernel<T, 1> : group_norm_moments_kernel<T, pack_size<T>>, f.x.data, m,
         x.time * x.width * x.channels, group_channels, f.scratch.data);
  launch(ctx, {.name = "group_norm_statistics", .grid = static_cast<unsigned>(f.mean.elements()), .block = threads},
         group_norm_statistics_kernel<T>, f, m.row_blocks, columns, f.scratch.data);
  // The moments may have another tiling: apply needs rows of x.
  const Tiling t = tiling(x, f.over, P);
  launch(ctx, {.name = "group_norm_apply", .grid = t.grid(), .block = threads}, group_norm_apply_kernel<T, P>, f, t);
}

template <class T, int P>
void backward(Context& ctx, const GroupNormBackward<T>& g) {
  const Shape x = g.x.shape;
  const bool trains = g.dgain || g.dbias, over_item = g.over == NormOver::item;
  const Tiling t = tiling(x, g.over, P);
  const int64_t parts = t.batch * t.row_blocks, sets = g.mean.elements();
  // Scratch: doubles [part][2][channels] of the columns, then the means of sets.
  float* const means = g.scratch.data + 4 * parts * x.channels;  // [set][2]
  if (trains || over_item)
    launch(ctx, {.name = "group_norm_columns", .grid = t.grid(), .block = threads}, group_norm_columns_kernel<T, P>, g,
           t, g.scratch.data);
  if (g.dx && over_item) {
    launch(ctx, {.name = "group_norm_set_sums", .grid = static_cast<unsigned>(sets), .block = threads},
           group_norm_set_sums_kernel<T>, g, t.row_blocks, g.scratch.data, means);
    launch(ctx, {.name = "group_norm_input_gradient", .grid = t.grid(), .block = threads},
           group_norm_input_gradient_kernel<T, P>, g, t, means);
  } else if (g.dx) {
    const int lanes = lanes_of(x.channels / g.groups / P);
    launch(ctx, {.name = "group_norm_position_gradients", .grid = blocks_for(sets * lanes, threads), .block = threads},
           group_norm_position_gradients_kernel<T, P>, g, lanes);
  }
  if (trains)
    launch(ctx, {.name = "group_norm_parameters", .grid = blocks_for(x.channels, 32), .block = 32 * parameter_lanes},
           group_norm_parameters_kernel, g.dgain.data, g.dbias.data, x.channels, parts, g.scratch.data);
}

}  // namespace

/// Enough for both ways of access, because the addresses are not known yet.
template <class T>
Shape group_norm_forward_scratch(Shape x, int64_t groups, NormOver over) {
  if (x.elements() == 0 || over == NormOver::position) return {.channels = 0};
  int64_t most = 0;
  for (const bool aligned : {false, true}) {
    const MomentRows rows = moment_rows<T>(x, groups, aligned);
    most = std::max(most, x.batch * rows.tiling.row_blocks * (rows.tiling.channels / rows.pack));
  }
  return {.channels = 4 * most};
}
template <class T>
Shape group_norm_backward_scratch(Shape x, int64_t groups, NormOver over) {
  if (x.elements() == 0) return {.channels = 0};
  int64_t parts = 0;
  for (const int pack : {1, pack_width<T>(x, groups)}) {
    const Tiling t = tiling(x, over, pack);
    parts = std::max<int64_t>(parts, t.batch * t.row_blocks);
  }
  return {.channels = 4 * parts * x.channels + (over == NormOver::item ? 2 * x.batch * groups : 0)};
}

template <class T>
void group_norm_forward(Context& ctx, const GroupNormForward<T>& f) {
  const bool vectorized = pack_width<T>(f.x.shape, f.groups) > 1 && aligned16(f.x.data) && aligned16(f.y.data) &&
                          aligned16(f.residual.data) && aligned16(f.gain.data) && aligned16(f.bias.data);
  vectorized ? forward<T, pack_size<T>>(ctx, f) : forward<T, 1>(ctx, f);
}
template <class T>
void group_norm_backward(Context& ctx, const GroupNormBackward<T>& g) {
  const bool vectorized = pack_width<T>(g.x.shape, g.groups) > 1 && aligned16(g.x.data) && aligned16(g.dy.data) &&
                          aligned16(g.dx.data) && aligned16(g.gain.data);
  vectorized ? backward<T, pack_size<T>>(ctx, g) : backward<T, 1>(ctx, g);
}

#define NACRE_GROUP_NORM(T)                                                  \
  template Shape group_norm_forward_scratch<T>(Shape, int64_t, NormOver);    \
  template Shape group_norm_backward_scratch<T>(Shape, int64_t, NormOver);   \
  template void group_norm_forward<T>(Context&, const GroupNormForward<T>&); \
  template void group_norm_backward<T>(Context&, const GroupNormBackward<T>&);
NACRE_GROUP_NORM(float)
NACRE_GROUP_NORM(bf16)

}  // namespace nacre::cuda
