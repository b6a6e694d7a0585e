#pragma once
// How the kernels of snake.cu divide their work. It is plain C++, so that every build has it.
#include <algorithm>

#include "nacre/bf16.h"
#include "nacre/view.h"
#include "runtime/limits.h"

namespace nacre::cuda {

inline constexpr int snake_threads = 256;
// Rows per thread. Parameters cost about 30 instructions per channel, so a thread takes as many rows as leave two
// blocks to each multiprocessor. The order of sums therefore depends on shape and device.
inline constexpr int64_t snake_max_rows = 32;
inline constexpr int64_t snake_min_rows_forward = 4;   // one batch: enough loads in flight
inline constexpr int64_t snake_min_rows_backward = 8;  // with fewer, partial sums are as many bytes as the data

/// How a [rows, channels] matrix is divided among blocks. A block has `columns` threads along the channels, P channels
/// each, and handles `rows_at_once` of its `block_rows` rows at once. grid.x runs over rows, grid.y over columns.
struct SnakeTiling {
  int64_t rows, channels, block_rows;
  int columns, rows_at_once;
  unsigned row_blocks, column_blocks;
};
inline SnakeTiling snake_tiling(const DeviceLimits& d, Shape s, int pack, int64_t min_rows) {
  const int64_t min_blocks = two_blocks_each(d);
  SnakeTiling t{s.rows(), s.channels, 0, 0, 0, 0, 0};
  const int64_t columns = s.channels / pack;
  // A warp covers adjacent packs of a row, or of several rows if they are narrow, so accesses are coalesced. Threads
  // beyond rows_at_once x columns are idle.
  t.columns = static_cast<int>(columns < snake_threads ? columns : snake_threads);
  t.rows_at_once = snake_threads / t.columns;
  t.column_blocks = blocks_for(columns, t.columns);
  // Fewer rows per thread until there are enough blocks.
  int64_t rows = snake_max_rows;
  while (rows > min_rows && ceil_div(t.rows, t.rows_at_once * rows) * t.column_blocks < min_blocks) rows /= 2;
  t.block_rows = t.rows_at_once * rows;
  t.row_blocks = blocks_for(t.rows, t.block_rows);
  return t;
}
/// Elements per access that the channels allow. Addresses may reduce it to 1; the scratch has room for either.
template <class T>
int snake_pack(Shape s) {
  return s.channels % pack_size<T> == 0 ? pack_size<T> : 1;
}
/// Parts of the gradients of alpha and beta, two sums per channel each, on aligned tensors of T.
template <class T>
int64_t snake_parts(const DeviceLimits& d, Shape x) {
  return x.elements() == 0 ? 0 : snake_tiling(d, x, snake_pack<T>(x), snake_min_rows_backward).row_blocks;
}
/// The most parts on any storage and alignment, since each has its own tiling.
inline int64_t most_snake_parts(const DeviceLimits& d, Shape x) {
  if (x.elements() == 0) return 0;
  return std::max<int64_t>(
      {snake_tiling(d, x, 1, snake_min_rows_backward).row_blocks, snake_parts<float>(d, x), snake_parts<bf16>(d, x)});
}

}  // namespace nacre::cuda
