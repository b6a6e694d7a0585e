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

inline constexpr int taps_rows = 64, taps_channels = 32, taps_outputs = 64, most_taps = 7, longest_halo = taps_rows;
inline constexpr int taps_blocks_at_once = 2;  // per multiprocessor, if its shared memory holds them

template <class T>
struct TapsLayout {
  static constexpr int stages = sizeof(T) == 4 ? 2 : 3;
  static constexpr int spare = sizeof(T) == 4 ? 32 : 16;
  static constexpr int dy_pitch = taps_outputs * static_cast<int>(sizeof(T)) + spare, dy_bytes = taps_rows * dy_pitch;
  static constexpr int x_row = taps_channels * static_cast<int>(sizeof(T)), x_pitch = x_row + spare;
  static constexpr int x_bytes = taps_rows * x_row;  // as copied, before the transform
  static constexpr int out_stride = taps_channels + 4, out_bytes = 64 * out_stride * 4;  // per warp
  static __host__ __device__ int halo(const Taps& s) { return (s.taps - 1) * s.dilation; }
  static __host__ __device__ int tile_bytes(const Taps& s) { return (taps_rows + halo(s)) * x_pitch; }
  static int threads(const Taps& s) { return 32 * s.taps; }
  static constexpr int table_bytes = 2 * 2 * taps_rows * static_cast<int>(sizeof(int64_t));
  static size_t shared_bytes(const Taps& s) {
    const int loop = stages * (dy_bytes + x_bytes) + 2 * tile_bytes(s) + table_bytes, out = threads(s) / 32 * out_bytes;
    return static_cast<size_t>(loop > out ? loop : out);
  }
  static_assert(stages * (dy_bytes + x_bytes) + 2 * (taps_rows + longest_halo) * x_pitch + table_bytes <=
                int{least_shared_per_block});
};

/// `to` is dweight itself if there is one part (+= with s.add), else partial sums [parts][out][taps][in]. For Input see
/// PlainInput in conv1d_tile.cuh. bias_to: as BiasSums::to, of dy.
template <Product P, class Input>
__global__ void __launch_bounds__(32 * most_taps, taps_blocks_at_once)
    taps_product_kernel(Taps s, const typename EngineOf<P>::type::T* dy, const typename EngineOf<P>::type::T* x,
                        Input input, float* to, float* bias_to) {
  using Engine = typename EngineOf<P>::type;
  using T = typename Engine::T;
  using L = TapsLayout<T>;
  constexpr int pack = pack_size<T>, dy_packs = taps_outputs / pack, x_packs = taps_channels / pack;
  NACRE_DYNAMIC_SHARED(unsigned char, shared);
  const int thread = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x), lane = thread % 32,
            tap = thread / 32;
  const int halo = L::halo(s), tile_bytes = L::tile_bytes(s);
  const int64_t first_channel = int64_t{blockIdx.x} * taps_channels, first_out = int64_t{blockIdx.y} * taps_outputs;
  const int64_t rows = s.items * s.virtual_rows, begin = rows * blockIdx.z / s.parts,
                end = rows * (int64_t{blockIdx.z} + 1) / s.parts;
  unsigned char* const dy_shared = shared;
  unsigned char* const x_shared = dy_shared + L::stages * L::dy_bytes;
  unsigned char* const tiles = x_shared + L::stages * L::x_bytes;

  // The row of x, counted over all items, that is `offset` rows below (item, row) of the padded x; -1 where it is zero.
  const auto x_sample = [&](int64_t item, int64_t row, int offset) -> int64_t {
    row += offset;
    while (row >= s.virtual_rows) row -= s.virtual_rows, ++item;
    int64_t sample = row - s.left;
    if (s.reflect) sample = sample < 0 ? -sample : (sample < s.time ? sample : 2 * (s.time - 1) - sample);
    return item < s.items && sample >= 0 && sample < s.time ? item * s.time + sample : -1;
  };
  // All packs of x that a thread copies have the same channels: the threads of a block are a multiple of x_packs.
  const int x_pack = thread % x_packs;
  const int64_t x_channel = first_channel + x_pack * pack;
  const bool x_exists = x_channel < s.in;
  const auto parameters = input.column(x_exists ? x_channel : 0);
  const auto transformed = [&](Pack<T> v) {
    if constexpr (Input::active) input.apply(parameters, v);
    if constexpr (P == Product::tf32) round_pack(v);
    return v;
  };
  // Byte offsets of the next iteration's rows of dy and x, or zeros_here. One thread per row computes them an iteration
  // ahead. The threads that copy the row's packs only add their column.
  int64_t* const table = reinterpret_cast<int64_t*>(tiles + 2 * tile_bytes);  // [2][dy, x][taps_rows]
  int64_t thread_item = begin / s.virtual_rows, thread_row = begin - thread_item * s.virtual_rows + thread;
  const int64_t first_item = thread_item, first_row = thread_row - thread;
  const auto locate = [&](int iteration) {
    if (thread >= taps_rows) return;
    while (thread_row >= s.virtual_rows) thread_row -= s.virtual_rows, ++thread_item;
    int64_t* const to = table + iteration % 2 * 2 * taps_rows + thread;
    const int64_t x_row = x_sample(thread_item, thread_row, halo), size = sizeof(T);
    to[0] = int64_t{iteration} * taps_rows + thread < end - begin && thread_row < s.length
                ? (thread_item * s.length + thread_row) * s.out * size
                : zeros_here;
    to[taps_rows] = x_row >= 0 ? x_row * s.in * size : zeros_here;
    thread_row += taps_rows;
  };
  const int dy_pack = thread % dy_packs, dy_row = thread / dy_packs, dy_at_once = threads / dy_packs,
            x_row = thread / x_packs, x_at_once = threads / x_packs;
  const int64_t dy_channel = first_out + dy_pack * pack;
  const bool dy_exists = dy_channel < s.out;
  const auto fetch = [&](int table_slot, int slot) {
    const int64_t *const dy_offsets = table + table_slot * 2 * taps_rows, *const x_offsets = dy_offsets + taps_rows;
    unsigned char* to = dy_shared + slot * L::dy_bytes + dy_row * L::dy_pitch + dy_pack * 16;
    for (int r = dy_row; r < taps_rows; r += dy_at_once, to += dy_at_once * L::dy_pitch)
      cp_async_or_zeros(to, reinterpret_cast<const unsigned char*>(dy + dy_channel) + dy_offsets[r],
                        dy_exists && dy_offsets[r] >= 0);
    to = x_shared + slot * L::x_bytes + thread * 16;
    for (int r = x_row; r < taps_rows; r += x_at_once, to += threads * 16)
      cp_async_or_zeros(to, reinterpret_cast<const unsigned char*>(x + x_channel) + x_offsets[r],
                        x_exists && x_offsets[r] >= 0);
  };
  // Each thread transforms the packs that it copied itself. Those of x are stored behind the halo, which is copied from
  // the end of the previous tile.
  const auto transform_and_store = [&](int slot, int tile_index) {
    if constexpr (P == Product::tf32) {
      for (int p = thread; p < taps_rows * dy_packs; p += threads) {
        T* const at =
            reinterpret_cast<T*>(dy_shared + slot * L::dy_bytes + p / dy_packs * L::dy_pitch + p % dy_packs * 16);
        Pack<T> v = load_pack(at);
        round_pack(v);
        store_pack(at, v);
      }
    }
    unsigned char* const current_tile = tiles + tile_index * tile_bytes;
    const unsigned char* const previous_tile = tiles + (1 - tile_index) * tile_bytes;
    unsigned char* to = current_tile + x_pack * 16;
    const unsigned char *from = x_shared + slot * L::x_bytes + thread * 16,
                        *previous_column = previous_tile + x_pack * 16;
    for (int r = x_row; r < taps_rows; r += x_at_once, from += threads * 16) {
      uint4* const at = reinterpret_cast<uint4*>(to + (halo + r) * L::x_pitch);
      if constexpr (Input::active || P == Product::tf32)
        *at = packed(transformed(load_pack(reinterpret_cast<const T*>(from))));
      else
        *at = *reinterpret_cast<const uint4*>(from);
    }
    for (int r = x_row; r < halo; r += x_at_once)
      *reinterpret_cast<uint4*>(to + r * L::x_pitch) =
          *reinterpret_cast<const uint4*>(previous_column + (taps_rows + r) * L::x_pitch);
  };
  // The halo of the first tile, written to where the end of a previous tile would be.
  for (int p = thread; p < halo * x_packs; p += threads) {
    const int64_t row = x_exists ? x_sample(first_item, first_row, p / x_packs) : -1;
    Pack<T> v;
#pragma unroll
    for (int i = 0; i < pack; ++i) v.v[i] = 0;
    if (row >= 0) v = transformed(load_pack(x + row * s.in + x_channel));
    store_pack(reinterpret_cast<T*>(tiles + tile_bytes + (taps_rows + p / x_packs) * L::x_pitch + x_pack * 16), v);
  }
  __syncthreads();

  ColumnSums<T> bias_sums(bias_to != nullptr, blockIdx.x);
  Engine sums;
  sums.clear();
  int next_slot = 0, slot = 0, tile_index = 0;
  const int iterations = static_cast<int>((end - begin + taps_rows - 1) / taps_rows);
  for (int iteration = 1 - L::stages; iteration < iterations; ++iteration) {  // the first iterations only fetch
    const int next = iteration + L::stages - 1;
    if (next < iterations) locate(next);
    if (iteration >= 0) {
      cp_async_wait<L::stages - 2>();
      if (bias_sums.has_turn(gridDim.x)) {
        const unsigned char* at = dy_shared + slot * L::dy_bytes + dy_row * L::dy_pitch + dy_pack * 16;
#pragma unroll 1
        for (int r = dy_row; r < taps_rows; r += dy_at_once, at += dy_at_once * L::dy_pitch) bias_sums.add(at);
      }
      transform_and_store(slot, tile_index);
    }
    __syncthreads();  // publishes this iteration's tiles and the table, and frees the previous tiles
    if (next < iterations) {
      fetch(next % 2, next_slot);
      if (++next_slot == L::stages) next_slot = 0;
    }
    cp_async_commit();
    if (iteration < 0) continue;
    const unsigned char* const a_tile = dy_shared + slot * L::dy_bytes;
    const unsigned char* const b_tile = tiles + tile_index * tile_bytes + tap * s.dilation * L::x_pitch;
#pragma unroll 1
    for (int r = 0; r < taps_rows; r += Engine::depth)
      sums.template multiply<Major::mn, Major::mn>(a_tile + r * L::dy_pitch, {}, L::dy_pitch, b_tile + r * L::x_pitch,
                                                   L::x_pitch, lane, Engine::depth, [] {});
    if (++slot == L::stages) slot = 0;
    tile_index = 1 - tile_index;
  }

  cp_async_wait<0>();
  __syncthreads();
  if (bias_to != nullptr) {
    float* const part = bias_to + (int64_t{blockIdx.z} * gridDim.x + blockIdx.x) * s.out + first_out;
    bias_sums.template finish<taps_outputs>(reinterpret_cast<float*>(shared), threads, [&](int c, float sum) {
      if (first_out + c < s.out) part[c] = sum;
    });
  }
  float* const result = reinterpret_cast<float*>(shared + tap * L::out_bytes);
  sums.template save<Major::mn, Major::mn>(result, L::out_stride, lane);
  __syncwarp();
  const int64_t channel = first_channel + lane % 8 * 4;
  if (channel >= s.in) return;
  const int64_t weights = s.taps * s.in;
  float* const part = to + (s.parts > 1 ? int64_t{blockIdx.z} * s.out * weights : 0) + tap * s.in + channel;
  for (int r = lane / 8; r < 64 && first_out + r < s.out; r += 4) {
    Pack<float> v = load_pack(result + r * L::out_stride + lane % 8 * 4);
    float* const at = part + (first_out + r) * weights;
    if (s.parts == 1 && s.add) {
      const Pack<float> previous = load_pack(at);
#pragma unroll
      for (int i = 0; i < 4; ++i) v.v[i] += previous.v[i];
    }
    store_pack(at, v);
  }
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
