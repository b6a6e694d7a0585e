#pragma once
// The weight gradient of several taps at stride 1: all taps of 32 channels in one block, so that a row of x is fetched,
// and changed by the input policy, once, where conv1d_tile_weights.cuh does so for every tap. A warp is one tap of 64
// outputs by 32 channels; taps read the same rows of x, each `dilation` further down. Rows of x arrive 64 at a time:
// the last `halo` of the tile before are copied to the front of the next one. Items of a batch lie below each other
// with their padding, `virtual_rows` each.
//
// 64 rows of dy and x for 128 outputs of bf16 are 20 KB, for 64 * 128 * 32 taps products: with seven taps 23 bytes per
// clock of tensor cores at full rate, where tiles of 128 by 128 weights ask the L2 cache for 64.
#include "conv1d_tile.cuh"

namespace nacre::cuda::tile {

struct Taps {
  int64_t items, time, length, left, virtual_rows, in, out, parts;
  int taps = 0, dilation = 0;
  bool reflect = false;
  bool add = true;  // where there is one part: += instead of =
};
inline constexpr int taps_rows = 64, taps_channels = 32, most_taps = 7;

template <int BM, class T>
struct TapsLayout {
  static constexpr int stages = sizeof(T) == 4 ? 2 : 3;
  static constexpr int spare = sizeof(T) == 4 ? 32 : 16;
  static constexpr int dy_pitch = BM * static_cast<int>(sizeof(T)) + spare, dy_bytes = taps_rows * dy_pitch;
  static constexpr int x_row = taps_channels * static_cast<int>(sizeof(T)), x_pitch = x_row + spare;
  static constexpr int x_bytes = taps_rows * x_row;                                      // as it arrives
  static constexpr int out_stride = taps_channels + 4, out_bytes = 64 * out_stride * 4;  // of a warp
  static __host__ __device__ int halo(const Taps& s) { return (s.taps - 1) * s.dilation; }
  static __host__ __device__ int tile_bytes(const Taps& s) { return (taps_rows + halo(s)) * x_pitch; }
  static int threads(const Taps& s) { return 32 * s.taps * (BM / 64); }
  static size_t shared_bytes(const Taps& s) {
    const int loop = stages * (dy_bytes + x_bytes) + 2 * tile_bytes(s), out = threads(s) / 32 * out_bytes;
    return static_cast<size_t>(loop > out ? loop : out);
  }
};

/// to: dweight itself when there is one part (+= with s.add), else partial sums [parts][out][taps][in]. Input as in
/// conv1d_tile.cuh.
template <int BM, Product P, class Input>
__global__ void __launch_bounds__(32 * most_taps * (BM / 64), 128 / BM)
    taps_product_kernel(Taps s, const typename EngineOf<P>::type::T* dy, const typename EngineOf<P>::type::T* x,
                        Input input, float* to) {
  using Engine = typename EngineOf<P>::type;
  using T = typename Engine::T;
  using L = TapsLayout<BM, T>;
  constexpr int pack = pack_size<T>, dy_packs = BM / pack, x_packs = taps_channels / pack;
  NACRE_DYNAMIC_SHARED(unsigned char, shared);
  const int thread = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x), lane = thread % 32,
            warp = thread / 32;
  const int half = warp / s.taps, tap = warp - half * s.taps, halo = L::halo(s), tile_bytes = L::tile_bytes(s);
  const int64_t first_channel = int64_t{blockIdx.x} * taps_channels, first_out = int64_t{blockIdx.y} * BM;
  const int64_t rows = s.items * s.virtual_rows, begin = rows * blockIdx.z / s.parts,
                end = rows * (int64_t{blockIdx.z} + 1) / s.parts;
  unsigned char* const dy_shared = shared;
  unsigned char* const x_shared = dy_shared + L::stages * L::dy_bytes;
  unsigned char* const tiles = x_shared + L::stages * L::x_bytes;

  // Where row `further` below (item, row) lies in x: the sample's row, or -1 for zeros.
  const auto row_of_x = [&](int64_t item, int64_t row, int further) -> int64_t {
    row += further;
    while (row >= s.virtual_rows) row -= s.virtual_rows, ++item;
    int64_t sample = row - s.left;
    if (s.reflect) sample = sample < 0 ? -sample : (sample < s.time ? sample : 2 * (s.time - 1) - sample);
    return item < s.items && sample >= 0 && sample < s.time ? item * s.time + sample : -1;
  };
  // A thread's packs of x are all of the same channels, since blocks are whole warps.
  const int x_column = thread % x_packs;
  const int64_t channel_of_x = first_channel + x_column * pack;
  const bool x_exists = channel_of_x < s.in;
  const auto column = input.column(x_exists ? channel_of_x : 0);
  const auto changed = [&](Pack<T> v) {
    if constexpr (Input::active) input.apply(column, v);
    if constexpr (P == Product::tf32) round_pack(v);
    return v;
  };
  int64_t next_item = begin / s.virtual_rows, next_row = begin - next_item * s.virtual_rows;
  const auto fetch = [&](int64_t first, int slot) {
    for (int p = thread; p < taps_rows * dy_packs; p += threads) {
      const int r = p / dy_packs, column = p % dy_packs;
      int64_t item = next_item, row = next_row + r;
      while (row >= s.virtual_rows) row -= s.virtual_rows, ++item;
      const int64_t o = first_out + column * pack;
      const bool there = first + r < end && row < s.length && o < s.out;
      cp_async<16>(dy_shared + slot * L::dy_bytes + r * L::dy_pitch + column * 16,
                   there ? dy + (item * s.length + row) * s.out + o : dy, there ? 16 : 0);
    }
    for (int p = thread; p < taps_rows * x_packs; p += threads) {
      const int64_t row = x_exists ? row_of_x(next_item, next_row, p / x_packs + halo) : -1;
      cp_async<16>(x_shared + slot * L::x_bytes + p * 16, row >= 0 ? x + row * s.in + channel_of_x : x,
                   row >= 0 ? 16 : 0);
    }
    next_row += taps_rows;
    while (next_row >= s.virtual_rows) next_row -= s.virtual_rows, ++next_item;
  };
  // The thread that copied packs changes them; x's go below the last rows of the tile before.
  const auto arrive = [&](int slot, int now) {
    if constexpr (P == Product::tf32) {
      for (int p = thread; p < taps_rows * dy_packs; p += threads) {
        T* const at =
            reinterpret_cast<T*>(dy_shared + slot * L::dy_bytes + p / dy_packs * L::dy_pitch + p % dy_packs * 16);
        Pack<T> v = load_pack(at);
        round_pack(v);
        store_pack(at, v);
      }
    }
    unsigned char* const here = tiles + now * tile_bytes;
    const unsigned char* const before = tiles + (1 - now) * tile_bytes;
    for (int p = thread; p < taps_rows * x_packs; p += threads) {
      const Pack<T> v = changed(load_pack(reinterpret_cast<const T*>(x_shared + slot * L::x_bytes + p * 16)));
      store_pack(reinterpret_cast<T*>(here + (halo + p / x_packs) * L::x_pitch + x_column * 16), v);
    }
    for (int p = thread; p < halo * x_packs; p += threads) {
      const int at = p / x_packs * L::x_pitch + x_column * 16;
      *reinterpret_cast<uint4*>(here + at) = *reinterpret_cast<const uint4*>(before + taps_rows * L::x_pitch + at);
    }
  };
  // What the first tile finds as the end of the one before.
  for (int p = thread; p < halo * x_packs; p += threads) {
    const int64_t row = x_exists ? row_of_x(next_item, next_row, p / x_packs) : -1;
    Pack<T> v;
#pragma unroll
    for (int i = 0; i < pack; ++i) v.v[i] = 0;
    if (row >= 0) v = changed(load_pack(x + row * s.in + channel_of_x));
    store_pack(reinterpret_cast<T*>(tiles + tile_bytes + (taps_rows + p / x_packs) * L::x_pitch + x_column * 16), v);
  }
  __syncthreads();

  Engine sums;
  sums.clear();
  int64_t next = begin;
  int next_slot = 0, slot = 0, now = 0;
  for (int64_t row = begin - (L::stages - 1) * taps_rows; row < end; row += taps_rows) {  // the first turns only fetch
    if (row >= begin) {
      cp_async_wait<L::stages - 2>();
      arrive(slot, now);
      __syncthreads();  // this turn's tiles are complete, and the last turn's are free
    }
    if (next < end) {
      fetch(next, next_slot);
      next += taps_rows;
      if (++next_slot == L::stages) next_slot = 0;
    }
    cp_async_commit();
    if (row < begin) continue;
    const unsigned char* const left = dy_shared + slot * L::dy_bytes + half * 64 * static_cast<int>(sizeof(T));
    const unsigned char* const right = tiles + now * tile_bytes + tap * s.dilation * L::x_pitch;
#pragma unroll 1
    for (int r = 0; r < taps_rows; r += Engine::depth)
      sums.template multiply<Lies::across, Lies::across>(left + r * L::dy_pitch, L::dy_pitch, right + r * L::x_pitch,
                                                         L::x_pitch, lane);
    if (++slot == L::stages) slot = 0;
    now = 1 - now;
  }

  cp_async_wait<0>();
  __syncthreads();
  float* const result = reinterpret_cast<float*>(shared + warp * L::out_bytes);
  sums.template save<Lies::across, Lies::across>(result, L::out_stride, lane);
  __syncwarp();
  const int64_t channel = first_channel + lane % 8 * 4;
  if (channel >= s.in) return;
  const int64_t weights = s.taps * s.in;
  float* const part = to + (s.parts > 1 ? int64_t{blockIdx.z} * s.out * weights : 0) + tap * s.in + channel;
  for (int r = lane / 8; r < 64 && first_out + half * 64 + r < s.out; r += 4) {
    Pack<float> v = load_pack(result + r * L::out_stride + lane % 8 * 4);
    float* const at = part + (first_out + half * 64 + r) * weights;
    if (s.parts == 1 && s.add) {
      const Pack<float> old = load_pack(at);
#pragma unroll
      for (int i = 0; i < 4; ++i) v.v[i] += old.v[i];
    }
    store_pack(at, v);
  }
}

inline int taps_block(const Taps& s) { return s.out > 64 ? 128 : 64; }
template <class T>
bool suits_taps(const Conv1dGeometry& g, int64_t in, int64_t out, int64_t taps) {
  return g.groups == 1 && g.stride == 1 && taps > 1 && taps <= most_taps && (taps - 1) * g.dilation <= taps_rows &&
         in % pack_size<T> == 0 && out % pack_size<T> == 0;
}
/// Parts: two blocks of 64 outputs, or one of 128, to each of 132 multiprocessors; none below 512 rows, and at most
/// 2^24 floats of partial sums.
inline Taps taps_of(Shape x, Shape weight, Shape y, const Conv1dGeometry& g) {
  Taps s{x.batch, x.time, y.time, g.left, x.time + g.left + g.right, x.channels, y.channels, 1};
  s.taps = static_cast<int>(weight.time), s.dilation = static_cast<int>(g.dilation);
  s.reflect = g.padding == Padding::reflect;
  const int block = taps_block(s);
  const int64_t tiles = ceil_div<int64_t>(s.in, taps_channels) * ceil_div<int64_t>(s.out, block);
  s.parts = std::clamp<int64_t>(
      std::min({132 * (128 / block) / tiles, s.items * s.virtual_rows / 512, (int64_t{1} << 24) / weight.elements()}),
      1, 1024);
  return s;
}

template <int BM, Product P, class T, class Input>
void launch_taps_blocks(Context& ctx, const char* name, const Taps& s, const T* dy, const T* x, const Input& input,
                        float* to) {
  using L = TapsLayout<BM, T>;
  launch(ctx,
         {.name = name,
          .grid = {blocks_for(s.in, taps_channels), blocks_for(s.out, BM), static_cast<unsigned>(s.parts)},
          .block = static_cast<unsigned>(L::threads(s)),
          .shared_bytes = L::shared_bytes(s)},
         taps_product_kernel<BM, P, Input>, s, dy, x, input, to);
}
/// Queues the product. `to` as for the kernel.
template <Product P, class T, class Input>
void launch_taps_product(Context& ctx, const char* name, const Taps& s, const T* dy, const T* x, const Input& input,
                         float* to) {
  if (taps_block(s) == 128) return launch_taps_blocks<128, P>(ctx, name, s, dy, x, input, to);
  return launch_taps_blocks<64, P>(ctx, name, s, dy, x, input, to);
}

}  // namespace nacre::cuda::tile
