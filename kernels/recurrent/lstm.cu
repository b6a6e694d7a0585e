#include <utility>

#include "recurrent/lstm.h"
#include "runtime/device.cuh"
#include "runtime/host.h"
#include "runtime/vector_math.h"

// One LSTM layer on the device (the equations are in nacre/ops/lstm.h; the twin on the CPU is lstm.cpp).
// The products with weight_x and all parameter gradients are convolutions of one tap over all rows (lstm.h). What
// remains is one launch per time step and direction, because a step needs all of h of the step before. The order of the
// launches in the stream is the barrier between the steps.
// A block has 4 warps. A warp computes a hidden unit for up to 8 items: forward its four rows of weight_h, backward its
// row of the transpose, which is laid out once per call. grid.x runs over groups of 4 units, grid.y over groups of 8
// items. The lanes divide the sum over h (over da); lane i then computes the cell of item i.
//
// Bound: a step reads all of weight_h from the second-level cache, 4 hidden^2 elements (4 MiB in float for hidden 512,
// about 1 us at 4 TB/s), and costs a launch (2 to 3 us singly, about 1 us in a graph). At batch 1 both are of one size.
// A batch reads weight_h once per 8 items.
// Next rungs: one kernel for all steps, with weight_h in the registers and shared memory of all multiprocessors and a
// barrier over the grid (docs/decisions/lstm.md); tensor cores for large batches.
namespace nacre::cuda {
namespace {

using lstm::gates;

constexpr int warps = 4, threads = 32 * warps;
constexpr int most_items = 8;  // of the batch, per block
constexpr int depth = 512;     // elements of a row of h (of da) that are staged at once: 16 KiB for 8 items

/// sum[r][i] += over k < n of w[r w_row + k] staged[i depth + k], each lane its own k. The packs that a lane takes
/// depend on n alone, so that sums have one order for every batch.
/// A warp reads 32 adjacent packs of a row of w: coalesced. Each element of w is loaded once for all items, and each of
/// `staged` serves all rows.
template <int rows, int items, bool vectorized, class T>
__device__ __forceinline__ void add_products(const T* w, int64_t w_row, const float* staged, int n,
                                             float (&sum)[rows][items]) {
  const int lane = threadIdx.x % 32;
  if constexpr (vectorized) {
    constexpr int P = pack_size<T>;
#pragma unroll 2
    for (int k = lane * P; k < n; k += 32 * P) {
      Pack<T> row[rows];
#pragma unroll
      for (int r = 0; r < rows; ++r) row[r] = load_pack(w + r * w_row + k);
#pragma unroll
      for (int i = 0; i < items; ++i)
#pragma unroll
        for (int e = 0; e < P; e += 4) {
          const Pack<float> v = load_pack(staged + i * depth + k + e);
#pragma unroll
          for (int r = 0; r < rows; ++r)
#pragma unroll
            for (int j = 0; j < 4; ++j) sum[r][i] = fmaf(row[r].v[e + j], v.v[j], sum[r][i]);
        }
    }
  } else {
    for (int k = lane; k < n; k += 32)
#pragma unroll
      for (int r = 0; r < rows; ++r)
#pragma unroll
        for (int i = 0; i < items; ++i) sum[r][i] = fmaf(to_float(w[r * w_row + k]), staged[i * depth + k], sum[r][i]);
  }
}
/// Stages n elements of up to `items` rows, which are `row` apart, as floats; rows from `count` on are zeros, so that
/// the products need no test. All threads of the block must call it, also those of a warp without a unit. Layout:
/// [items][depth] floats.
template <int items, class T>
__device__ __forceinline__ void stage(const T* from, int64_t row, int count, int n, float* staged) {
  __syncthreads();  // earlier readers are done
#pragma unroll
  for (int i = 0; i < items; ++i)
    for (int k = threadIdx.x; k < n; k += threads)
      staged[i * depth + k] = i < count ? to_float(from[i * row + k]) : 0.0f;
  __syncthreads();  // the writes are visible
}
/// Adds over the warp: lane i gets the sums of item i, total[r] = sum over lanes of sum[r][i]. The other lanes get
/// zeros.
template <int rows, int items>
__device__ __forceinline__ void sums_of_lane(const float (&sum)[rows][items], float (&total)[rows]) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int r = 0; r < rows; ++r) {
    total[r] = 0;
#pragma unroll
    for (int i = 0; i < items; ++i) {
      const float s = warp_sum(sum[r][i]);
      if (lane == i) total[r] = s;
    }
  }
}

/// One time step. Pointers are those of its row of item 0. An `..._item` is the distance between items in elements;
/// tensors over time have `time` rows per item. Null: absent.
template <class T>
struct ForwardStep {
  const T* weight_h;
  const float *sums, *bias_h;  ///< sums: weight_x x + bias_x, [4 hidden]
  const T* h_row;              ///< h before the step: the previous row of y
  const float* h_state;        ///< or a state. Zeros if both are null
  const float* c_before;       ///< [batch, hidden]; null: zeros
  float *c_after, *h_after;    ///< [batch, hidden]; c_after may be c_before
  T* y;
  float *of_gates, *cells;
  int64_t batch, time, hidden;
};

/// Row t of all items: gates, c_t and y_t of `warps` hidden units and `items` items per block. A gate's argument is the
/// sum of the products with weight_h, plus (weight_x x + bias_x), plus bias_h, added in this order for every batch.
/// c_after may be c_before, because the lane of an item and unit is the only one that reads and writes its value.
template <class T, int items, bool vectorized>
__global__ void __launch_bounds__(threads) lstm_forward_kernel(ForwardStep<T> a) {
  NACRE_SHARED(float, staged, items* depth);
  const int64_t H = a.hidden, unit = int64_t{blockIdx.x} * warps + threadIdx.x / 32,
                first = int64_t{blockIdx.y} * items;
  const int count = static_cast<int>(a.batch - first < items ? a.batch - first : items);
  float sum[gates][items] = {};
  if (a.h_row != nullptr || a.h_state != nullptr)
    for (int64_t k = 0; k < H; k += depth) {
      const int n = static_cast<int>(H - k < depth ? H - k : depth);
      if (a.h_row != nullptr)
        stage<items>(a.h_row + first * a.time * H + k, a.time * H, count, n, staged);
      else
        stage<items>(a.h_state + first * H + k, H, count, n, staged);
      if (unit < H) add_products<gates, items, vectorized>(a.weight_h + unit * H + k, H * H, staged, n, sum);
    }
  // Only now may a warp without a unit leave: stage() has barriers for the whole block.
  if (unit >= H) return;
  float gate[gates];
  sums_of_lane(sum, gate);
  const int lane = threadIdx.x % 32;
  if (lane >= count) return;
  const int64_t item = first + lane, row = item * a.time;
  float* const to = a.of_gates == nullptr ? nullptr : a.of_gates + row * gates * H + unit;
#pragma unroll
  for (int g = 0; g < gates; ++g) {
    gate[g] = (gate[g] + a.sums[row * gates * H + g * H + unit]) + a.bias_h[g * H + unit];
    gate[g] = g == 2 ? vec::tanh(gate[g]) : vec::sigmoid(gate[g]);
    if (to != nullptr) to[g * H] = gate[g];
  }
  const float before = a.c_before == nullptr ? 0.0f : a.c_before[item * H + unit];
  const float cell = gate[1] * before + gate[0] * gate[2];
  const T y = store<T>(gate[3] * vec::tanh(cell));
  a.y[row * H + unit] = y;
  a.c_after[item * H + unit] = cell;
  if (a.cells != nullptr) a.cells[row * H + unit] = cell;
  if (a.h_after != nullptr) a.h_after[item * H + unit] = to_float(y);
}

/// As ForwardStep. `weight` is the transpose of weight_h, [hidden][4 hidden].
template <class T>
struct BackwardStep {
  const T *weight, *dy, *y_before;
  const float *of_gates, *cells, *cells_before,
      *da_after;              ///< ..._before: null in the first row; da_after: in the last
  float *dc, *da, *h_before;  ///< dc [batch, hidden]: dc_{t+1} f_{t+1}, not read in the last row; becomes dc_t f_t
  int64_t batch, time, hidden;
};

/// Row t of all items: da_t, dc_t f_t and h_{t-1}, from da_{t+1} of the launch before. dh_t = dy_t + the row of the
/// transpose times da_{t+1}, a sum over 4 hidden elements. The formulas are those of cell_gradients in lstm.cpp.
template <class T, int items, bool vectorized>
__global__ void __launch_bounds__(threads) lstm_backward_kernel(BackwardStep<T> a) {
  NACRE_SHARED(float, staged, items* depth);
  const int64_t H = a.hidden, width = gates * H, unit = int64_t{blockIdx.x} * warps + threadIdx.x / 32,
                first = int64_t{blockIdx.y} * items;
  const int count = static_cast<int>(a.batch - first < items ? a.batch - first : items);
  float sum[1][items] = {};
  if (a.da_after != nullptr)
    for (int64_t k = 0; k < width; k += depth) {
      const int n = static_cast<int>(width - k < depth ? width - k : depth);
      stage<items>(a.da_after + first * a.time * width + k, a.time * width, count, n, staged);
      if (unit < H) add_products<1, items, vectorized>(a.weight + unit * width + k, 0, staged, n, sum);
    }
  if (unit >= H) return;
  float dh_after[1];  // what the next step adds to the gradient of h
  sums_of_lane(sum, dh_after);
  const int lane = threadIdx.x % 32;
  if (lane >= count) return;
  const int64_t item = first + lane, row = item * a.time, at = row * H + unit;
  const float* const of_gates = a.of_gates + row * width + unit;
  const float i = of_gates[0], f = of_gates[H], g = of_gates[2 * H], o = of_gates[3 * H];
  const float dh = to_float(a.dy[at]) + dh_after[0], t = vec::tanh(a.cells[at]),
              before = a.cells_before == nullptr ? 0.0f : a.cells_before[at];
  float* const dc = a.dc + item * H + unit;
  const float d = dh * o * ((1.0f - t) * (1.0f + t)) + (a.da_after == nullptr ? 0.0f : *dc);
  float* const da = a.da + row * width + unit;
  da[0] = d * g * (i * (1.0f - i));
  da[H] = d * before * (f * (1.0f - f));
  da[2 * H] = d * i * ((1.0f - g) * (1.0f + g));
  da[3 * H] = dh * t * (o * (1.0f - o));
  *dc = d * f;
  a.h_before[at] = a.y_before == nullptr ? 0.0f : to_float(a.y_before[at]);
}

/// to[j][n] = from[n][j], in tiles of 32 by 32: a block has one tile, and a warp every fourth row of it. Both
/// directions access global memory by rows, coalesced; the transposition happens in shared memory.
template <class T>
__global__ void __launch_bounds__(threads) lstm_transpose_kernel(const T* from, int64_t rows, int64_t columns, T* to) {
  NACRE_SHARED(T, tile, 32 * 33);  // the column in excess spreads a column over all banks
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int64_t row = int64_t{blockIdx.x} * 32, column = int64_t{blockIdx.y} * 32;
  for (int r = warp; r < 32; r += warps)
    if (row + r < rows && column + lane < columns) tile[r * 33 + lane] = from[(row + r) * columns + column + lane];
  __syncthreads();
  for (int c = warp; c < 32; c += warps)
    if (column + c < columns && row + lane < rows) to[(column + c) * rows + row + lane] = tile[lane * 33 + c];
}

/// f(items, vectorized) as constants. One item has a form of its own, because the form of 8 would multiply 7 rows of
/// zeros.
template <class F>
void with_form(int64_t batch, bool vectorized, const F& f) {
  const auto by_items = [&](auto items) { vectorized ? f(items, std::true_type{}) : f(items, std::false_type{}); };
  batch == 1 ? by_items(std::integral_constant<int, 1>{}) : by_items(std::integral_constant<int, most_items>{});
}
/// grid.x: groups of `warps` units; grid.y: groups of `items` items.
dim3 grid_of(int64_t batch, int64_t hidden, int items) {
  return {blocks_for(hidden, warps), blocks_for(batch, items), 1};
}

/// Pieces of the scratch of lstm_forward. `sums` are weight_x x + bias_x of all rows, which the steps read.
template <class T>
struct ForwardPieces {
  float *sums, *state;  // [rows, 4 hidden]; h and c of the state, [2, batch, hidden]
  float *x, *weight_x;  // float copies of bf16
  float* products;      // of the convolution
  Shape of_products, size;
  ForwardPieces(Context& ctx, Shape of, int64_t hidden, float* scratch) {
    constexpr bool converts = !std::is_same_v<T, float>;
    const Shape weight{gates * hidden, 1, 1, of.channels};
    lstm::Pieces p(scratch);
    sums = p.take(of.rows() * gates * hidden);
    state = p.take(lstm_state(of.batch, hidden).elements());
    x = p.take(converts ? of.elements() : 0);
    weight_x = p.take(converts ? weight.elements() : 0);
    of_products = conv1d_forward_scratch(ctx, of, weight, {});
    products = p.take(of_products.elements());
    size = p.taken();
  }
};
/// Floats of the transpose of weight_h in T: whole packs.
template <class T>
int64_t transposed_floats(int64_t hidden) {
  return (gates * hidden * hidden * static_cast<int64_t>(sizeof(T)) + 15) / 16 * 4;
}
/// Floats of the transpose and of dc.
template <class T>
int64_t backward_floats(Shape x, int64_t hidden) {
  return transposed_floats<T>(hidden) + x.batch * hidden;
}

}  // namespace

template <class T>
Shape lstm_forward_scratch(Context& ctx, Shape x, int64_t hidden) {
  return ForwardPieces<T>(ctx, x, hidden, nullptr).size;
}
template <class T>
Shape lstm_backward_scratch(Context& ctx, Shape x, int64_t hidden) {
  return lstm::BackwardPieces<T>(ctx, x, hidden, backward_floats<T>(x, hidden), nullptr).size;
}

template <class T>
void lstm_forward(Context& ctx, const LstmForward<T>& a) {
  const Shape x = a.x.shape;
  const int64_t H = a.y.shape.channels, batch = x.batch, time = x.time;
  const ForwardPieces<T> p(ctx, x, H, a.scratch.data);
  // A row of this product has the same bits whatever the number of rows: conv1d chooses blocks by it, but in every
  // block, and in the plain kernel, an element is one chain of additions in the order of the channels. Which of the two
  // engines runs depends on channels and alignment.
  View<const float> of_x, weight_x;
  if constexpr (std::is_same_v<T, float>) {
    of_x = a.x, weight_x = a.weight_x;
  } else {
    const View<float> x_copy(p.x, x), weight_copy(p.weight_x, a.weight_x.shape);
    convert<T, float>(ctx, {.x = a.x, .y = x_copy});
    convert<T, float>(ctx, {.x = a.weight_x, .y = weight_copy});
    of_x = x_copy, weight_x = weight_copy;
  }
  conv1d_forward(ctx, {.x = of_x,
                       .weight = weight_x,
                       .bias = a.bias_x,
                       .y = View<float>(p.sums, {batch, time, 1, gates * H}),
                       .scratch = View<float>(p.products, p.of_products)});
  // A copy: state_after may be the memory of state, and blocks of one step write and read it in any order.
  const View<float> state(p.state, lstm_state(batch, H));
  if (a.state) ctx.copy<float>(a.state, state);
  float* const c = p.state + batch * H;
  const bool vectorized = H % pack_size<T> == 0 && aligned16(a.weight_h.data);
  for (int64_t t = 0; t < time; ++t) {
    const bool leaves = t + 1 == time && a.state_after;
    const ForwardStep<T> step{.weight_h = a.weight_h.data,
                              .sums = p.sums + t * gates * H,
                              .bias_h = a.bias_h.data,
                              .h_row = t > 0 ? a.y.data + (t - 1) * H : nullptr,
                              .h_state = t == 0 && a.state ? p.state : nullptr,
                              .c_before = t > 0 || a.state ? c : nullptr,
                              .c_after = leaves ? a.state_after.data + batch * H : c,
                              .h_after = leaves ? a.state_after.data : nullptr,
                              .y = a.y.data + t * H,
                              .of_gates = a.gates ? a.gates.data + t * gates * H : nullptr,
                              .cells = a.cells ? a.cells.data + t * H : nullptr,
                              .batch = batch,
                              .time = time,
                              .hidden = H};
    with_form(batch, vectorized, [&](auto items, auto by_packs) {
      launch(ctx, {.name = "lstm_forward", .grid = grid_of(batch, H, items.value), .block = threads},
             lstm_forward_kernel<T, items.value, by_packs.value>, step);
    });
  }
}

template <class T>
void lstm_backward(Context& ctx, const LstmBackward<T>& a) {
  const Shape x = a.x.shape;
  const int64_t H = a.y.shape.channels, batch = x.batch, time = x.time, width = gates * H;
  const lstm::BackwardPieces<T> p(ctx, x, H, backward_floats<T>(x, H), a.scratch.data);
  T* const weight = reinterpret_cast<T*>(p.of_steps);
  float* const dc = p.of_steps + transposed_floats<T>(H);
  launch(ctx, {.name = "lstm_transpose", .grid = {blocks_for(width, 32), blocks_for(H, 32), 1}, .block = threads},
         lstm_transpose_kernel<T>, a.weight_h.data, width, H, weight);
  const bool vectorized = width % pack_size<T> == 0 && aligned16(weight);
  for (int64_t t = time - 1; t >= 0; --t) {
    const BackwardStep<T> step{.weight = weight,
                               .dy = a.dy.data + t * H,
                               .y_before = t > 0 ? a.y.data + (t - 1) * H : nullptr,
                               .of_gates = a.gates.data + t * width,
                               .cells = a.cells.data + t * H,
                               .cells_before = t > 0 ? a.cells.data + (t - 1) * H : nullptr,
                               .da_after = t + 1 < time ? p.da + (t + 1) * width : nullptr,
                               .dc = dc,
                               .da = p.da + t * width,
                               .h_before = p.h_before + t * H,
                               .batch = batch,
                               .time = time,
                               .hidden = H};
    with_form(batch, vectorized, [&](auto items, auto by_packs) {
      launch(ctx, {.name = "lstm_backward", .grid = grid_of(batch, H, items.value), .block = threads},
             lstm_backward_kernel<T, items.value, by_packs.value>, step);
    });
  }
  lstm::gradients_from_gates(ctx, a, p);
}

#define NACRE_INSTANTIATE(T)                                         \
  template Shape lstm_forward_scratch<T>(Context&, Shape, int64_t);  \
  template Shape lstm_backward_scratch<T>(Context&, Shape, int64_t); \
  template void lstm_forward<T>(Context&, const LstmForward<T>&);    \
  template void lstm_backward<T>(Context&, const LstmBackward<T>&);
NACRE_INSTANTIATE(float)
NACRE_INSTANTIATE(bf16)
#undef NACRE_INSTANTIATE

}  // namespace nacre::cuda
