#pragma once
// The weight gradient as a matrix product: dweight [out][taps in] = dy^T x', where row r of x' is the window of x that
// row r of y was computed from. Rows are the reduced dimension and both operands are MN-major, so tiles are copied
// without a transpose. A block computes BM outputs by BN weights over one part of the rows. The number of parts is
// fixed by shape and device. Each part leaves its partial sums, which are added in order.
#include "conv/conv1d_bias_sums.cuh"
#include "conv/conv1d_tile.cuh"

namespace nacre::cuda::tile {

/// Shared memory: [stages][depth rows][BM] of dy, then [stages][depth rows][BN] of x', at the pitches below. `spare`
/// keeps what is read together in different banks: tensor cores read four rows of eight floats (8 words more per row)
/// or eight rows of 16 bytes (4 words more). After the products the same memory holds the result, [BM][out_stride]
/// floats, and behind it the sums for a bias, pack_size floats per thread.
template <int BM, int BN, Product P>
struct WeightLayout : WeightLayoutSizes<BM, BN, P> {
  using Engine = typename EngineOf<P, warp_columns(P, BM, BN)>::type;
};

/// Copies dy's tiles: `depth` rows of BM outputs.
template <class L>
struct DyLoader {
  using T = typename L::T;
  static constexpr int packs = L::a_packs, rows_at_once = L::threads / packs, passes = L::depth / rows_at_once;
  const Windows& s;
  unsigned char* const tiles;
  const PackColumn<packs, L::a_pitch> share;
  const bool exists;
  const T* next;
  __device__ __forceinline__ DyLoader(const Windows& s_, unsigned char* tiles_, const T* dy, int64_t first_row,
                                      int64_t first_out, int thread)
      : s(s_),
        tiles(tiles_),
        share(thread),
        exists(static_cast<int>(first_out) + share.column * pack_size<T> < static_cast<int>(s_.out)),
        next(dy + (first_row + share.row) * s_.out + first_out + share.column * pack_size<T>) {}
  /// Starts the copies of the next tile, whose first row is `row` of the part's `rows`.
  __device__ __forceinline__ void fetch(int row, int rows, int slot) {
    unsigned char* to = packs_of(slot);
    const int left = exists ? rows - row - share.row : 0;  // rows from the thread's first one on
#pragma unroll
    for (int i = 0; i < passes; ++i, to += rows_at_once * L::a_pitch, next += rows_at_once * s.out)
      cp_async_or_zeros(to, next, i * rows_at_once < left);
  }
  /// The thread's packs of a tile: `passes` of them, rows_at_once rows apart.
  __device__ __forceinline__ unsigned char* packs_of(int slot) const { return share.in(tiles + slot * L::a_bytes); }
};

/// Copies the tiles of x': `depth` windows, BN of their weights. A thread always copies the same pack of weights (tap,
/// channel): window_offset is where that pack of an item's first window lies, counted from the item's first sample; it
/// is negative in the left padding.
template <class L>
struct WindowLoader {
  using T = typename L::T;
  static constexpr int packs = L::b_packs, rows_at_once = L::threads / packs, passes = L::depth / rows_at_once;
  const Windows& s;
  unsigned char* const tiles;
  const PackColumn<packs, L::b_pitch> share;
  const int length;
  bool exists;
  int channel;
  int64_t window_offset;
  const T* item;  // of the next tile's first row, which is row t of the item
  int t;
  __device__ __forceinline__ WindowLoader(const Windows& s_, unsigned char* tiles_, const T* x, int64_t first_row,
                                          int64_t first_weight, int thread)
      : s(s_),
        tiles(tiles_),
        share(thread),
        length(static_cast<int>(s_.length)),
        item(x + first_row / s_.length * s_.item),
        t(static_cast<int>(first_row % s_.length)) {
    const int64_t weight = first_weight + share.column * pack_size<T>, tap = weight / s.in;
    channel = static_cast<int>(weight - tap * s.in);
    exists = weight < s.weights;
    window_offset = (tap * s.dilation - s.left) * s.in + channel;
  }
  /// Starts the copies of the next tile, as DyLoader::fetch. Packs outside of the item are zeros or, with `reflect`,
  /// mirrored about the pack of the same channel in the first or the last sample.
  __device__ __forceinline__ void fetch(int row, int rows, int slot) {
    unsigned char* to = packs_of(slot);
    const T* of_row = item;
    int at = t + share.row;
    const int left = exists ? rows - row - share.row : 0;
#pragma unroll
    for (int i = 0; i < passes; ++i, to += rows_at_once * L::b_pitch, at += rows_at_once) {
      while (at >= length) at -= length, of_row += s.item;
      int64_t offset = at * s.step + window_offset;
      // One comparison for both ends: a negative offset is a large unsigned number.
      const bool inside = static_cast<uint64_t>(offset) < static_cast<uint64_t>(s.item);
      if (s.reflect && !inside) offset = 2 * (offset < 0 ? channel : s.item - s.in + channel) - offset;
      cp_async_or_zeros(to, of_row + offset, (inside || s.reflect) && i * rows_at_once < left);
    }
    t += L::depth;
    while (t >= length) t -= length, item += s.item;
  }
  __device__ __forceinline__ unsigned char* packs_of(int slot) const { return share.in(tiles + slot * L::b_bytes); }
};

/// The block's sums for a bias: of dy's columns, or, if can_be_of_x, of those columns of x that hold each sample once.
template <int BM, int BN, class T, bool can_be_of_x>
struct WeightBias {
  const BiasSums& bias;
  ColumnSums<T> sums;
  __device__ __forceinline__ WeightBias(const Windows& s, const BiasSums& bias_)
      : bias(bias_),
        sums(bias_.to != nullptr && (!of_x() || (first_weight() < end_once(s) && first_weight() + BN > first_once(s))),
             of_x() ? blockIdx.y : blockIdx.x) {}
  /// Adds the thread's packs of this step, if it is the block's turn.
  template <class L>
  __device__ __forceinline__ void add(const DyLoader<L>& dy, const WindowLoader<L>& x, int slot) {
    if (!sums.has_turn()) return;
    using Dy = DyLoader<L>;
    using X = WindowLoader<L>;
    constexpr int at_once = std::min({Dy::passes, X::passes, 2});  // all of them powers of two
    const unsigned char* at = of_x() ? x.packs_of(slot) : dy.packs_of(slot);
    const int passes = of_x() ? X::passes : Dy::passes,
              step = of_x() ? X::rows_at_once * L::b_pitch : Dy::rows_at_once * L::a_pitch;
#pragma unroll 1
    for (int i = 0; i < passes; i += at_once) {
#pragma unroll
      for (int k = 0; k < at_once; ++k, at += step) sums.add(at);
    }
    sums.end_turn(of_x() ? gridDim.y : gridDim.x);
  }
  /// Leaves the thread's sums in `shared`. A barrier must follow.
  __device__ __forceinline__ void save(float* shared) const {
    if (bias.to != nullptr) sums.save(shared);
  }
  /// Stores the block's part.
  __device__ __forceinline__ void store(const Windows& s, int64_t first_out, const float* shared, int threads) const {
    if (bias.to == nullptr) return;
    // The block's first column among the `count` sums, and the columns that have one.
    const int64_t first = of_x() ? first_weight() - first_once(s) : first_out, count = of_x() ? s.step : s.out;
    const int64_t row =
        of_x() ? int64_t{blockIdx.z} * gridDim.y + blockIdx.y : int64_t{blockIdx.z} * gridDim.x + blockIdx.x;
    float* const part = bias.to + row * count + first;
    const int begin = static_cast<int>(-first), end = static_cast<int>(count - first);
    // A block has at least four rows of packs, of dy as of x.
    sums.template finish<4>(shared, threads, of_x() ? BN : BM, [&](int c, float sum) {
      if (c >= begin && c < end) part[c] = sum;
    });
  }

 private:
  // Computed where they are needed, because registers are short.
  __device__ __forceinline__ bool of_x() const { return can_be_of_x && bias.of_x; }
  static __device__ __forceinline__ int64_t first_weight() { return int64_t{blockIdx.x} * BN; }
  // Of the columns of x', the weights, those of the taps [left, left + stride) hold each sample of x once: tap left + j
  // of row t is sample t stride + j.
  static __device__ __forceinline__ int64_t first_once(const Windows& s) { return s.left * s.in; }
  static __device__ __forceinline__ int64_t end_once(const Windows& s) { return first_once(s) + s.step; }
};

/// The steps of the pipeline (conv1d_pipeline.cuh), `depth` rows each. Tiles arrive as they are multiplied; only Snake
/// and the rounding to tf32 change them.
template <int BM, int BN, Product P, class Input>
struct WeightSteps {
  using L = WeightLayout<BM, BN, P>;
  using Engine = typename L::Engine;
  using T = typename L::T;
  static constexpr int stages = tile::stages, WN = warp_columns(P, BM, BN);
  static constexpr bool fetch_in_product = false, locates = false;
  const int rows, lane, warp_row, warp_column;
  DyLoader<L> dy;
  WindowLoader<L> x;
  WeightBias<BM, BN, T, !Input::active> bias;
  const Input& input;
  const typename Input::Column parameters;
  Engine sums;
  __device__ __forceinline__ WeightSteps(const Windows& s, unsigned char* shared, const T* dy_, const T* x_,
                                         const Input& input_, const BiasSums& bias_, int64_t begin, int64_t end,
                                         int64_t first_weight, int64_t first_out, int thread)
      : rows(static_cast<int>(end - begin)),
        lane(thread % 32),
        warp_row(thread / 32 / (BN / WN) * 64),
        warp_column(thread / 32 % (BN / WN) * WN),
        dy(s, shared, dy_, begin, first_out, thread),
        x(s, shared + stages * L::a_bytes, x_, begin, first_weight, thread),
        bias(s, bias_),
        input(input_),
        parameters(input_.column(x.exists ? x.channel : 0)) {
    sums.clear();
  }
  __device__ __forceinline__ bool waits_for_all() const { return false; }
  __device__ __forceinline__ void fetch(int next, int slot) {
    const int row = next * L::depth;
    if (row < rows) dy.fetch(row, rows, slot), x.fetch(row, rows, slot);
  }
  __device__ __forceinline__ void arrived(int, int slot) {
    // The bias first: its sums take the values before they are rounded to tf32.
    bias.add(dy, x, slot);
    if constexpr (P == Product::tf32) {
      unsigned char* at = dy.packs_of(slot);
#pragma unroll
      for (int i = 0; i < dy.passes; ++i, at += dy.rows_at_once * L::a_pitch)
        transform_pack<P>(reinterpret_cast<T*>(at), PlainInput<T>{}, {});
    }
    if constexpr (P == Product::tf32 || Input::active) {
      unsigned char* at = x.packs_of(slot);
#pragma unroll
      for (int i = 0; i < x.passes; ++i, at += x.rows_at_once * L::b_pitch)
        transform_pack<P>(reinterpret_cast<T*>(at), input, parameters);
    }
  }
  template <class Fetch>
  __device__ __forceinline__ void multiply(int step, int slot, const Fetch&) {
    constexpr int size = sizeof(T);
    sums.template multiply<Major::mn, Major::mn>(dy.tiles + slot * L::a_bytes + warp_row * size, {}, L::a_pitch,
                                                 x.tiles + slot * L::b_bytes + warp_column * size, L::b_pitch, lane,
                                                 min(L::depth, rows - step * L::depth), [] {});
  }
};

/// Stores the block's result, BM by BN floats in shared memory with L::out_stride from row to row, in packs of 4:
/// neighbouring threads have neighbouring packs of a row of dweight.
template <int BM, int BN, class L>
__device__ __forceinline__ void store_weights(const Windows& s, const float* result, int64_t first_weight,
                                              int64_t first_out, float* to, int thread) {
  constexpr int packs = BN / 4, rows_at_once = L::threads / packs;
  const int column = thread % packs * 4;
  const int64_t w = first_weight + column;
  if (w >= s.weights) return;
  float* const part = to + (s.parts > 1 ? int64_t{blockIdx.z} * s.out * s.weights : 0) + w;
  for (int r = thread / packs; r < BM && first_out + r < s.out; r += rows_at_once) {
    Pack<float> v = load_pack(result + r * L::out_stride + column);
    float* const at = part + (first_out + r) * s.weights;
    if (s.parts == 1 && s.add) {
      const Pack<float> previous = load_pack(at);
#pragma unroll
      for (int i = 0; i < 4; ++i) v.v[i] += previous.v[i];
    }
    store_pack(at, v);
  }
}

/// blockIdx: x tiles of weights, y tiles of outputs, z parts of the rows. A warp has 64 outputs by warp_columns weights
/// of the block's tile; warps are numbered along the weights first. `to` is dweight itself if there is one part (+=
/// with s.add), else partial sums [parts][out][weights]. For Input see PlainInput in conv1d_tile.cuh; it is called with
/// channels of x. bias.of_x: not with an active input. The samples of x are then those of the taps [left, left +
/// stride), which hold each of them exactly once (divide_biases in choose_cuda.cpp).
template <int BM, int BN, Product P, class Input>
__global__ void __launch_bounds__(block_threads(P, BM, BN), blocks_at_once(P, BM, BN))
    weight_product_kernel(Windows s, const typename EngineOf<P>::type::T* dy, const typename EngineOf<P>::type::T* x,
                          Input input, float* to, BiasSums bias) {
  using L = WeightLayout<BM, BN, P>;
  NACRE_DYNAMIC_SHARED(unsigned char, shared);
  const int thread = static_cast<int>(threadIdx.x);
  const int64_t first_weight = int64_t{blockIdx.x} * BN, first_out = int64_t{blockIdx.y} * BM;
  const int64_t begin = s.rows * blockIdx.z / s.parts, end = s.rows * (int64_t{blockIdx.z} + 1) / s.parts;
  WeightSteps<BM, BN, P, Input> steps(s, shared, dy, x, input, bias, begin, end, first_weight, first_out, thread);
  run_pipeline(steps, ceil_div(steps.rows, L::depth));
  finish_pipeline();

  // The tiles are no longer needed: result and sums for the bias take their place, and one barrier publishes both.
  float* const result = reinterpret_cast<float*>(shared);
  steps.bias.save(result + BM * L::out_stride);
  steps.sums.template save<Major::mn, Major::mn>(result + steps.warp_row * L::out_stride + steps.warp_column,
                                                 L::out_stride, steps.lane);
  __syncthreads();
  store_weights<BM, BN, L>(s, result, first_weight, first_out, to, thread);
  steps.bias.store(s, first_out, result + BM * L::out_stride, L::threads);
}

template <int BM, int BN, Product P, class T, class Input>
void launch_weight_blocks(Context& ctx, const char* name, const Windows& s, const T* dy, const T* x, const Input& input,
                          float* to, const BiasSums& bias) {
  using L = WeightLayout<BM, BN, P>;
  launch(ctx,
         {.name = name,
          .grid = {blocks_for(s.weights, BN), blocks_for(s.out, BM), static_cast<unsigned>(s.parts)},
          .block = L::threads,
          .shared_bytes = L::shared_bytes},
         weight_product_kernel<BM, BN, P, Input>, s, dy, x, input, to, bias);
}
/// Launches the product in blocks of this size; s.parts must be set. `to` and `bias` as for the kernel.
template <Product P, class T, class Input>
void launch_weight_product(Context& ctx, const char* name, const Windows& s, Blocking b, const T* dy, const T* x,
                           const Input& input, float* to, const BiasSums& bias) {
  if (b.rows == 256) return launch_weight_blocks<256, 128, P>(ctx, name, s, dy, x, input, to, bias);
  if (b.rows == 128 && b.columns == 128) return launch_weight_blocks<128, 128, P>(ctx, name, s, dy, x, input, to, bias);
  if (b.rows == 128) return launch_weight_blocks<128, 64, P>(ctx, name, s, dy, x, input, to, bias);
  if (b.columns == 128) return launch_weight_blocks<64, 128, P>(ctx, name, s, dy, x, input, to, bias);
  return launch_weight_blocks<64, 64, P>(ctx, name, s, dy, x, input, to, bias);
}

}  // namespace nacre::cuda::tile
