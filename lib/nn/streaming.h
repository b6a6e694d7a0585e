#pragma once
// Steps of a streaming plan that keep rows from block to block.
#include "nacre/nn/plan.h"
#include "nacre/ops/conv1d.h"

namespace nacre {

/// How a convolution runs in a streaming plan. With its result it takes `carried` rows of the blocks before in front of
/// the rows of a block. It has no padding then, and its output is `lag` rows late.
struct StreamedRows {
  int64_t carried = 0, lag = 0;
};
/// Of a convolution, or of a transposed one whose geometry is that of the convolution that it reverses. `name` is the
/// layer's, for the message of Error(usage) if the geometry cannot be streamed.
StreamedRows streamed_rows(const std::string& name, int64_t taps, const Conv1dGeometry&, int64_t lag_of_input);
StreamedRows streamed_transposed_rows(const std::string& name, int64_t taps, const Conv1dGeometry&,
                                      int64_t lag_of_input);

/// The rows that such a convolution reads for this block: `carried` ones and those of the block. Rows outside of the
/// signal are zero, or reflected about its ends if the geometry says so. Returns x itself if no row is carried.
Flow with_carried_rows(Plan&, const std::string& name, Flow x, int64_t carried, const Conv1dGeometry&);

/// x with a larger lag: rows wait in a ring. Returns x itself if it has this lag. Throws Error(usage) for a smaller
/// one.
Flow delayed(Plan&, const std::string& name, Flow x, int64_t lag);

/// Rows first ... first + count - 1 of one item of an activation.
template <class T>
View<T> rows(View<T> v, int64_t item, int64_t first, int64_t count) {
  v.data += (item * v.shape.time + first) * v.shape.width * v.shape.channels;
  v.shape.batch = 1, v.shape.time = count;
  return v;
}
/// The first row of a block's activation in the signal, when the step runs.
inline int64_t first_row(const StreamBlock& block, int64_t rows_per_frame, int64_t lag) {
  return block.first * rows_per_frame - lag;
}

}  // namespace nacre
