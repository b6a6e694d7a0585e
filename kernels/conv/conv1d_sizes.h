#pragma once
// The sizes of CUDA's convolution kernels: threads, tiles, and the shared memory of a block. The kernels compute with
// them, and so do choose_cuda.cpp and choose_groups.cpp, which every build contains. It is therefore plain C++, and
// functions that kernels call are constexpr.
#include <type_traits>

#include "conv/choose_cuda.h"
#include "runtime/limits.h"

// ---- one channel on one side: conv1d_ends.cuh

namespace nacre::cuda::ends {

inline constexpr int threads = 128, taps = 7, halo = taps - 1;
inline constexpr int max_strips = 32;
// Rows of a strip: a multiple of the window, whose positions are unrolled, and odd, so that the strips of a warp begin
// in different banks. The products have short strips; the weight gradient has long ones, so that fewer blocks leave
// partial sums.
inline constexpr int short_strip = 3 * taps, long_strip = 5 * taps;

/// Floats of a block's partial sums: the taps and the sum of the wide side per channel, and the sum of the narrow side.
inline constexpr int slots = taps + 1;
inline int64_t partial_size(int64_t channels) { return slots * channels + 1; }

}  // namespace nacre::cuda::ends

// ---- tiles: conv1d_tile.cuh

namespace nacre::cuda::tile {

inline constexpr int step_bytes = 128;  // bytes of k per step
inline constexpr int stages = 3;        // buffers for tiles of weights: one in use, the others being filled
// Bytes from row to row of a K-major tile: 9 times 16 bytes, so that eight rows begin in different banks.
inline constexpr int pitch = step_bytes + 16;
inline constexpr int packs_per_step = step_bytes / 16;

enum class Product : uint8_t { fma, tf32, bf16 };
/// Which dimension of an operand's tile is contiguous in shared memory: the reduced one (K-major: x, and the weights of
/// the forward), or m or n (MN-major).
enum class Major : uint8_t { k, mn };

/// What a product multiplies.
template <Product P>
using Element = std::conditional_t<P == Product::bf16, bf16, float>;
/// Columns per warp: on tensor cores 64, or 48 for 96 columns, where the block still has enough warps; else 32.
constexpr int warp_columns(Product p, int rows, int columns) {
  if (p == Product::fma || rows < 128) return 32;
  return columns % 128 == 0 ? 64 : columns == 96 ? 48 : 32;
}
constexpr int block_threads(Product p, int rows, int columns) {
  return rows / 64 * (columns / warp_columns(p, rows, columns)) * 32;
}
/// Blocks per multiprocessor, for the launch bounds: as many as shared memory holds and as registers allow at 128 to
/// 250 registers per thread.
constexpr int blocks_at_once(Product p, int rows, int columns) {
  const int threads = block_threads(p, rows, columns);
  if (warp_columns(p, rows, columns) > 32) return threads > 128 ? 1 : 2;
  return threads > 256 ? 1 : (threads > 128 ? 2 : 3);
}

/// The element where a row of the result begins, and the range of its columns that are stored.
struct alignas(16) OutputRow {
  int64_t base;
  int begin, end;
};
/// Snake's parameters of a channel, as the input policy keeps them in shared memory.
struct SnakeFactors {
  float frequency, gain;  // a / pi and 1 / (b + eps)
};

// ---- the forward and the input gradient

template <int BM, int BN, Product P, Major B>
struct LayoutSizes {
  using T = Element<P>;
  static constexpr int threads = block_threads(P, BM, BN);
  /// The weights' tile: BN rows of 128 bytes (K-major), or `depth` rows of BN elements (MN-major). The bytes added to a
  /// pitch keep rows that are read together in different banks.
  static constexpr int depth = step_bytes / static_cast<int>(sizeof(T));
  static constexpr int w_pitch = B == Major::k ? pitch : BN * static_cast<int>(sizeof(T)) + (sizeof(T) == 4 ? 32 : 16);
  static constexpr int w_rows = B == Major::k ? BN : depth;
  static constexpr int w_bytes = w_pitch * w_rows;
  static constexpr int out_stride = BN + 4;  // floats
  static constexpr int a_rows(const Shifted& s) {
    // Items begin at multiples of 64 rows, or at any row. `gaps`: the most that lie within a tile of BM rows.
    const int64_t item_alignment = s.virtual_rows % 64 == 0 ? 64 : 1;
    const int64_t gaps = s.gap == 0 || s.virtual_rows % BM == 0 ? 0 : ceil_div(BM - item_alignment, s.virtual_rows);
    return BM + (s.taps - 1) * s.tap_rows + static_cast<int>(gaps) * s.gap;
  }
  /// Buffers for x's tiles: as many chunks as `stages` consecutive steps can belong to. With two or more taps these
  /// are two: the tile being multiplied, and the next one, whose fetch starts as soon as its buffer is free.
  static constexpr int a_tiles(const Shifted& s) {
    const int tiles = (stages - 2 + s.taps) / s.taps + 1, chunks = (s.depth + depth - 1) / depth;
    return tiles < chunks ? tiles : chunks;
  }
  /// Bytes of the table of sample offsets (sample_offset), one int64_t per sample of x's tile.
  static constexpr int table_bytes(const Shifted& s) { return ceil_div(a_rows(s) * s.samples, 2) * 16; }
  /// After the products the tiles' memory is reused for the result and its OutputRows.
  static constexpr int out_bytes = BM * out_stride * 4;
  static size_t shared_bytes(const Shifted& s) {
    const size_t loop = static_cast<size_t>(a_tiles(s)) * a_rows(s) * pitch + stages * w_bytes,
                 out = out_bytes + BM * sizeof(OutputRow);
    return s.input_bytes + table_bytes(s) + (loop > out ? loop : out);
  }
};

// ---- the weight gradient of several taps at stride 1: conv1d_tile_taps.cuh

inline constexpr int taps_rows = 64, taps_channels = 32, taps_outputs = 64, most_taps = 7, longest_halo = taps_rows;
inline constexpr int taps_blocks_at_once = 2;  // per multiprocessor, if its shared memory holds them

/// Shared memory, in this order, with sizes for halo h = (taps - 1) dilation:
///
///   dy       T       [stages][64][64 outputs]        as copied, rounded in place for tf32
///   x        T       [stages][64][32 channels]       as copied
///   tiles    T       [2][h + 64][32 channels]        transformed; rows 0 to h - 1 are the end of the other tile
///   table    int64   [2][dy, x][64]                  offsets of rows (RowLocator)
///
/// and after the products, in the same place, a result of 64 x 32 floats per warp. `spare` bytes are added to the rows
/// of dy and tiles, so that what the tensor cores read together lies in different banks (as in WeightLayoutSizes); rows
/// of x are only read by the threads that copied them. Float has two stages, so that the block fits the 99 KiB that
/// every device has.
template <class T>
struct TapsLayout {
  static constexpr int stages = sizeof(T) == 4 ? 2 : 3;
  static constexpr int spare = sizeof(T) == 4 ? 32 : 16;
  static constexpr int dy_pitch = taps_outputs * static_cast<int>(sizeof(T)) + spare, dy_bytes = taps_rows * dy_pitch;
  static constexpr int x_row = taps_channels * static_cast<int>(sizeof(T)), x_pitch = x_row + spare;
  static constexpr int x_bytes = taps_rows * x_row;  // as copied, before the transform
  static constexpr int out_stride = taps_channels + 4, out_bytes = 64 * out_stride * 4;  // per warp
  static constexpr int halo(const Taps& s) { return (s.taps - 1) * s.dilation; }
  static constexpr int tile_bytes(const Taps& s) { return (taps_rows + halo(s)) * x_pitch; }
  static int threads(const Taps& s) { return 32 * s.taps; }
  static constexpr int table_bytes = 2 * 2 * taps_rows * static_cast<int>(sizeof(int64_t));
  static size_t shared_bytes(const Taps& s) {
    const int loop = stages * (dy_bytes + x_bytes) + 2 * tile_bytes(s) + table_bytes, out = threads(s) / 32 * out_bytes;
    return static_cast<size_t>(loop > out ? loop : out);
  }
  static_assert(stages * (dy_bytes + x_bytes) + 2 * (taps_rows + longest_halo) * x_pitch + table_bytes <=
                int{least_shared_per_block});
};

// ---- other weight gradients: conv1d_tile_weights.cuh

template <int BM, int BN, Product P>
struct WeightLayoutSizes {
  using T = Element<P>;
  static constexpr int threads = block_threads(P, BM, BN);
  static constexpr int depth = step_bytes / static_cast<int>(sizeof(T));
  static constexpr int a_packs = BM / pack_size<T>, b_packs = BN / pack_size<T>;  // in a row of a tile
  static constexpr int spare = sizeof(T) == 4 ? 32 : 16;
  static constexpr int a_pitch = BM * static_cast<int>(sizeof(T)) + spare,
                       b_pitch = BN * static_cast<int>(sizeof(T)) + spare;
  static constexpr int a_bytes = depth * a_pitch, b_bytes = depth * b_pitch;
  static constexpr int out_stride = BN + 4;
  static constexpr int out_bytes = 4 * (BM * out_stride + threads * pack_size<T>);  // the result, sums for a bias
  static constexpr size_t shared_bytes = stages * (a_bytes + b_bytes);
  static_assert(out_bytes <= shared_bytes);
  static_assert(threads / a_packs % 4 == 0 && threads / b_packs % 4 == 0);  // WeightBias::store
};

}  // namespace nacre::cuda::tile

// ---- several groups: conv1d_groups.cuh

namespace nacre::cuda::groups {

inline constexpr int threads = 256;
/// Shared memory that a block takes at most, all of it dynamic: every device has it, and an H200 holds two such blocks.
inline constexpr int most_shared = 96 << 10;
static_assert(most_shared <= least_shared_per_block);

// ---- forward and input gradient: a thread computes `rows_each` rows of four channels

inline constexpr int rows_each = 8;
/// Lanes of a warp side by side. The others are rows below each other. With quads the lanes of a row share a group and
/// read one pack of the source; else eight lanes read 32 neighbouring channels.
constexpr int lanes_across(Pattern p) { return p == Pattern::quads ? 4 : 8; }
constexpr int rows_of_warp(Pattern p) { return 32 / lanes_across(p) * rows_each; }
/// Channels of a group that a pattern combines with one pack of four weights.
constexpr int channels_at_once(Pattern p) { return p == Pattern::quads ? 4 : p == Pattern::pairs ? 2 : 1; }

/// Bytes of the source's tile: the rows of each remainder by the stride, one remainder after the other.
inline int64_t tile_bytes(const ProductPlan& s, int element_bytes) {
  const int64_t remainders = s.phases == 1 ? s.stride : 1;
  return remainders * s.phase_rows * s.pitch * element_bytes;
}
inline int64_t shared_bytes(const ProductPlan& s, int element_bytes) {
  return tile_bytes(s, element_bytes) + int64_t{4} * s.chunk * s.reduced * s.weight_pitch;
}

// ---- weight gradient: a thread has `items_each` items of work

inline constexpr int items_each = 4;
inline constexpr int most_work = items_each * threads;

inline int64_t source_rows(const WeightPlan& s) {
  return int64_t{s.tile_rows - 1} * s.stride + int64_t{s.taps - 1} * s.dilation + 1;
}
/// x, dy, a pack of ones, and in their place the sums of an item's threads.
inline int64_t shared_bytes(const WeightPlan& s, int element_bytes) {
  const int64_t tiles = (source_rows(s) * s.pitch + int64_t{s.tile_rows} * s.groups * s.out) * element_bytes + 16;
  const int64_t sums = s.lanes > 1 ? int64_t{s.lanes} * s.share * 4 * channels_at_once(s.pattern) * 4 : 0;
  return tiles > sums ? tiles : sums;
}

}  // namespace nacre::cuda::groups
