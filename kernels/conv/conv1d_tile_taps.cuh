#pragma once
// The weight gradient of layers with several taps at stride 1. A block computes all taps of 32 channels, so a row of x
// is fetched, and transformed by the input policy, once; conv1d_tile_weights.cuh does both for every tap. Each warp
// computes one tap of 64 outputs by 32 channels. The taps read the same rows of x, each `dilation` rows further down.
// Rows of x arrive 64 at a time, and the last `halo` rows of a tile are copied to the front of the next tile. The items
// of a batch are stacked with their padding, `virtual_rows` rows each.
//
// 64 rows of dy and x for 64 outputs of bf16 are 12 KB, for 64 * 64 * 32 * taps products. With seven taps that is 27
// bytes of L2 per clock at the full rate of the tensor cores; tiles of 128 by 128 weights need 64. Blocks of 128
// outputs would need 23, but then a multiprocessor holds one block, whose warps all fetch and all multiply at the same
// time. With two blocks, one multiplies while the other fetches. Blocks of 64 also divide layers of 192 outputs evenly.
//
//   iteration i    locate rows of i + stages - 1 | wait for i | transform i, store it as a tile | barrier |
//                  fetch i + stages - 1 | multiply i
#include "conv/conv1d_bias_sums.cuh"
#include "conv/conv1d_tile.cuh"

namespace nacre::cuda::tile {

/// The block's shared memory, in the order of TapsLayout::shared_bytes.
template <class T>
struct TapsMemory {
  using L = TapsLayout<T>;
  const int halo, tile_bytes;
  unsigned char *dy, *x, *tiles;  // dy and x as copied; two tiles of x with their halo
  int64_t* table;                 // [2][dy, x][taps_rows]: byte offsets of the rows of two steps, or zeros_here
  __device__ __forceinline__ TapsMemory(const Taps& s, unsigned char* shared)
      : halo(L::halo(s)),
        tile_bytes(L::tile_bytes(s)),
        dy(shared),
        x(dy + L::stages * L::dy_bytes),
        tiles(x + L::stages * L::x_bytes),
        table(reinterpret_cast<int64_t*>(tiles + 2 * tile_bytes)) {}
  __device__ __forceinline__ int64_t* offsets(int step) const { return table + step % 2 * 2 * taps_rows; }
};

/// The row of x, counted over all items, that is `offset` rows below (item, row) of the padded x; -1 where it is zero.
__device__ __forceinline__ int64_t taps_sample(const Taps& s, int64_t item, int64_t row, int offset) {
  row += offset;
  while (row >= s.virtual_rows) row -= s.virtual_rows, ++item;
  int64_t sample = row - s.left;
  if (s.reflect) sample = sample < 0 ? -sample : (sample < s.time ? sample : 2 * (s.time - 1) - sample);
  return item < s.items && sample >= 0 && sample < s.time ? item * s.time + sample : -1;
}

/// Finds the rows of a step: thread r those of row r, a step ahead of their copies. Row r of dy exists where its padded
/// row begins a window (row < length); the row of x is `halo` rows further, because tiles begin with the halo of the
/// step before. The threads that copy a row's packs only add their column.
template <class T>
struct RowLocator {
  const Taps& s;
  const TapsMemory<T>& memory;
  const int64_t count;  // rows of the part
  const int thread;
  int64_t item, row;  // of the thread, in the next step
  __device__ __forceinline__ RowLocator(const Taps& s_, const TapsMemory<T>& memory_, int64_t begin, int64_t end,
                                        int thread_)
      : s(s_),
        memory(memory_),
        count(end - begin),
        thread(thread_),
        item(begin / s_.virtual_rows),
        row(begin - item * s_.virtual_rows + thread_) {}
  __device__ __forceinline__ void locate(int step) {
    if (thread >= taps_rows) return;
    while (row >= s.virtual_rows) row -= s.virtual_rows, ++item;
    int64_t* const to = memory.offsets(step) + thread;
    const int64_t x_row = taps_sample(s, item, row, memory.halo), size = sizeof(T);
    to[0] = int64_t{step} * taps_rows + thread < count && row < s.length ? (item * s.length + row) * s.out * size
                                                                         : zeros_here;
    to[taps_rows] = x_row >= 0 ? x_row * s.in * size : zeros_here;
    row += taps_rows;
  }
};

/// A thread's packs of the rows of dy or x: column `column` of every rows_at_once-th row. The threads of a block are a
/// multiple of the packs of a row, so all packs of a thread have the same channels.
template <int packs_, class T>
struct TapsShare {
  static constexpr int packs = packs_;
  const int row, column, rows_at_once;
  const int64_t channel;
  const bool exists;
  __device__ __forceinline__ TapsShare(int thread, int threads, int64_t first_channel, int64_t channels)
      : row(thread / packs),
        column(thread % packs),
        rows_at_once(threads / packs),
        channel(first_channel + column * pack_size<T>),
        exists(channel < channels) {}
  /// Starts the copies of taps_rows rows at `offsets` of `from`; `pitch` bytes lie between rows in shared memory.
  __device__ __forceinline__ void fetch(const T* from, const int64_t* offsets, unsigned char* tile, int pitch) const {
    unsigned char* to = tile + row * pitch + column * 16;
    for (int r = row; r < taps_rows; r += rows_at_once, to += rows_at_once * pitch)
      cp_async_or_zeros(to, reinterpret_cast<const unsigned char*>(from + channel) + offsets[r],
                        exists && offsets[r] >= 0);
  }
};

/// The steps of the pipeline (conv1d_pipeline.cuh), taps_rows rows each. x's rows are copied, transformed once, and
/// stored behind the halo of a tile, which is the end of the tile before. Tiles take turns. One barrier per step
/// suffices: arrived(step) writes tile step % 2. All threads read that tile two steps earlier, which is before the
/// barrier of the previous step. The end of the other tile, which is copied as the halo, was written before that
/// barrier, too. The same holds for the two halves of the table.
template <Product P, class Input>
struct TapsSteps {
  using Engine = typename EngineOf<P>::type;
  using T = typename Engine::T;
  using L = TapsLayout<T>;
  static constexpr int stages = L::stages;
  static constexpr bool fetch_in_product = false, locates = true;
  const Taps& s;
  const TapsMemory<T>& memory;
  const T *dy, *x;
  const Input& input;
  const int thread, threads, count;  // count: steps
  const TapsShare<taps_outputs / pack_size<T>, T> of_dy;
  const TapsShare<taps_channels / pack_size<T>, T> of_x;
  const typename Input::Column parameters;
  RowLocator<T> rows;
  ColumnSums<T> bias;
  Engine sums;
  __device__ __forceinline__ TapsSteps(const Taps& s_, const TapsMemory<T>& memory_, const T* dy_, const T* x_,
                                       const Input& input_, bool sums_bias, int64_t begin, int64_t end,
                                       int64_t first_channel, int64_t first_out)
      : s(s_),
        memory(memory_),
        dy(dy_),
        x(x_),
        input(input_),
        thread(static_cast<int>(threadIdx.x)),
        threads(static_cast<int>(blockDim.x)),
        count(static_cast<int>((end - begin + taps_rows - 1) / taps_rows)),
        of_dy(thread, threads, first_out, s_.out),
        of_x(thread, threads, first_channel, s_.in),
        parameters(input_.column(of_x.exists ? of_x.channel : 0)),
        rows(s_, memory_, begin, end, thread),
        bias(sums_bias, blockIdx.x) {
    sums.clear();
  }
  /// Writes the halo of the first tile to where the end of a previous tile would be. A barrier must follow.
  __device__ __forceinline__ void fill_halo() const {
    for (int p = thread; p < memory.halo * of_x.packs; p += threads) {
      const int64_t row = of_x.exists ? taps_sample(s, rows.item, rows.row - thread, p / of_x.packs) : -1;
      Pack<T> v;
#pragma unroll
      for (int i = 0; i < pack_size<T>; ++i) v.v[i] = 0;
      if (row >= 0) v = transformed(load_pack(x + row * s.in + of_x.channel));
      store_pack(reinterpret_cast<T*>(tile(1) + (taps_rows + p / of_x.packs) * L::x_pitch + of_x.column * 16), v);
    }
  }
  __device__ __forceinline__ bool waits_for_all() const { return false; }
  __device__ __forceinline__ void locate(int next) {
    if (next < count) rows.locate(next);
  }
  __device__ __forceinline__ void fetch(int next, int slot) const {
    if (next >= count) return;
    const int64_t* const offsets = memory.offsets(next);
    of_dy.fetch(dy, offsets, memory.dy + slot * L::dy_bytes, L::dy_pitch);
    of_x.fetch(x, offsets + taps_rows, memory.x + slot * L::x_bytes, L::x_row);
  }
  __device__ __forceinline__ void arrived(int step, int slot) {
    unsigned char* const dy_tile = memory.dy + slot * L::dy_bytes;
    // Before the rounding to tf32, so the sums for the bias take the values of dy themselves.
    if (bias.has_turn()) {
      const unsigned char* at = dy_tile + of_dy.row * L::dy_pitch + of_dy.column * 16;
#pragma unroll 1
      for (int r = of_dy.row; r < taps_rows; r += of_dy.rows_at_once, at += of_dy.rows_at_once * L::dy_pitch)
        bias.add(at);
      bias.end_turn(gridDim.x);
    }
    if constexpr (P == Product::tf32) {
      for (int p = thread; p < taps_rows * of_dy.packs; p += threads)
        transform_pack<P>(reinterpret_cast<T*>(dy_tile + p / of_dy.packs * L::dy_pitch + p % of_dy.packs * 16),
                          PlainInput<T>{}, {});
    }
    store_tile(memory.x + slot * L::x_bytes, step % 2);
  }
  template <class Fetch>
  __device__ __forceinline__ void multiply(int step, int slot, const Fetch&) {
    if (step < 0) return;
    const unsigned char* const a = memory.dy + slot * L::dy_bytes;
    // The warp of tap k begins k dilation rows further down the tile. 64 rows are one or two steps of the engine.
    const unsigned char* const b = tile(step % 2) + thread / 32 * s.dilation * L::x_pitch;
#pragma unroll 1
    for (int r = 0; r < taps_rows; r += Engine::depth)
      sums.template multiply<Major::mn, Major::mn>(a + r * L::dy_pitch, {}, L::dy_pitch, b + r * L::x_pitch, L::x_pitch,
                                                   thread % 32, Engine::depth, [] {});
  }

 private:
  __device__ __forceinline__ unsigned char* tile(int index) const { return memory.tiles + index * memory.tile_bytes; }
  __device__ __forceinline__ Pack<T> transformed(Pack<T> v) const {
    if constexpr (Input::active) input.apply(parameters, v);
    if constexpr (P == Product::tf32) round_pack(v);
    return v;
  }
  /// Transforms the packs of x that the thread copied itself into tile `index`, and copies the halo before them.
  __device__ __forceinline__ void store_tile(const unsigned char* copied, int index) const {
    unsigned char* const to = tile(index) + of_x.column * 16;
    const unsigned char *from = copied + thread * 16, *const previous = tile(1 - index) + of_x.column * 16;
    for (int r = of_x.row; r < taps_rows; r += of_x.rows_at_once, from += threads * 16) {
      uint4* const at = reinterpret_cast<uint4*>(to + (memory.halo + r) * L::x_pitch);
      if constexpr (Input::active || P == Product::tf32)
        *at = packed(transformed(load_pack(reinterpret_cast<const T*>(from))));
      else
        *at = *reinterpret_cast<const uint4*>(from);
    }
    for (int r = of_x.row; r < memory.halo; r += of_x.rows_at_once)
      *reinterpret_cast<uint4*>(to + r * L::x_pitch) =
          *reinterpret_cast<const uint4*>(previous + (taps_rows + r) * L::x_pitch);
  }
};

/// Stores the warp's result, 64 outputs by taps_channels floats in shared memory with out_stride from row to row.
template <class T>
__device__ __forceinline__ void store_taps(const Taps& s, const float* result, int64_t first_channel, int64_t first_out,
                                           float* to) {
  const int lane = static_cast<int>(threadIdx.x) % 32, tap = static_cast<int>(threadIdx.x) / 32;
  const int64_t channel = first_channel + lane % 8 * 4;
  if (channel >= s.in) return;
  const int64_t weights = s.taps * s.in;
  float* const part = to + (s.parts > 1 ? int64_t{blockIdx.z} * s.out * weights : 0) + tap * s.in + channel;
  for (int r = lane / 8; r < 64 && first_out + r < s.out; r += 4) {
    Pack<float> v = load_pack(result + r * TapsLayout<T>::out_stride + lane % 8 * 4);
    float* const at = part + (first_out + r) * weights;
    if (s.parts == 1 && s.add) {
      const Pack<float> previous = load_pack(at);
#pragma unroll
      for (int i = 0; i < 4; ++i) v.v[i] += previous.v[i];
    }
    store_pack(at, v);
  }
}

/// blockIdx: x tiles of 32 channels, y tiles of 64 outputs, z parts of the rows; warp k has tap k. `to` is dweight
/// itself if there is one part (+= with s.add), else partial sums [parts][out][taps][in]. For Input see PlainInput in
/// conv1d_tile.cuh. bias_to: as BiasSums::to, of dy.
template <Product P, class Input>
__global__ void __launch_bounds__(32 * most_taps, taps_blocks_at_once)
    taps_product_kernel(Taps s, const typename EngineOf<P>::type::T* dy, const typename EngineOf<P>::type::T* x,
                        Input input, float* to, float* bias_to) {
  using T = typename EngineOf<P>::type::T;
  using L = TapsLayout<T>;
  NACRE_DYNAMIC_SHARED(unsigned char, shared);
  const int64_t first_channel = int64_t{blockIdx.x} * taps_channels, first_out = int64_t{blockIdx.y} * taps_outputs;
  const int64_t rows = s.items * s.virtual_rows, begin = rows * blockIdx.z / s.parts,
                end = rows * (int64_t{blockIdx.z} + 1) / s.parts;
  const TapsMemory<T> memory(s, shared);
  TapsSteps<P, Input> steps(s, memory, dy, x, input, bias_to != nullptr, begin, end, first_channel, first_out);
  steps.fill_halo();
  __syncthreads();
  run_pipeline(steps, steps.count);
  finish_pipeline();

  if (bias_to != nullptr) {
    float* const part = bias_to + (int64_t{blockIdx.z} * gridDim.x + blockIdx.x) * s.out + first_out;
    float* const columns = reinterpret_cast<float*>(shared);
    steps.bias.save(columns);
    __syncthreads();
    // A warp has packs of at least two rows of dy.
    steps.bias.template finish<2>(columns, steps.threads, taps_outputs, [&](int c, float sum) {
      if (first_out + c < s.out) part[c] = sum;
    });
    __syncthreads();
  }
  float* const result = reinterpret_cast<float*>(shared + steps.thread / 32 * L::out_bytes);
  steps.sums.template save<Major::mn, Major::mn>(result, L::out_stride, steps.thread % 32);
  __syncwarp();
  store_taps<T>(s, result, first_channel, first_out, to);
}

/// Launches the product. `to` and `bias_to` as for the kernel.
template <Product P, class T, class Input>
void launch_taps_product(Context& ctx, const char* name, const Taps& s, const T* dy, const T* x, const Input& input,
                         float* to, float* bias_to) {
  using L = TapsLayout<T>;
  launch(ctx,
         {.name = name,
          .grid = {blocks_for(s.in, taps_channels), blocks_for(s.out, taps_outputs), static_cast<unsigned>(s.parts)},
          .block = static_cast<unsigned>(L::threads(s)),
          .shared_bytes = L::shared_bytes(s)},
         taps_product_kernel<P, Input>, s, dy, x, input, to, bias_to);
}

}  // namespace nacre::cuda::tile
