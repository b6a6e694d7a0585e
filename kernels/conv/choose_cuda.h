#pragma once
// Which kernels compute a convolution, how their work is divided, and the scratch that they need: one function per op.
// The op and its *_scratch function both call it, and nothing else decides, so the scratch that is sized is the scratch
// that is used. A choice depends on shapes, geometry, storage, precision, the limits of the device, and on `aligned`:
// whether the tensors and the scratch begin at multiples of 16 bytes. Nothing is measured at run time.
//
// `scratch` does not depend on `aligned`, because it is sized before there are addresses: it has room for every engine
// that the shape can get.
#include "nacre/ops/conv1d.h"
#include "runtime/limits.h"

namespace nacre::cuda::ends {

/// How the kernels of conv1d_ends.cuh divide a problem: a block has `strips` strips of rows of one batch item, which
/// has `tiles` blocks. `columns`: packs of channels, one per thread of a strip. In contract the strips of neighbouring
/// blocks overlap by the halo.
struct StripPlan {
  int64_t wide_time, narrow_time, tiles, shift;
  int64_t out_begin, out_end;  ///< expand and contract store these rows of the result
  int channels, columns, strips;
  bool reflect;  ///< padding of the side that is read through a window: reflected, else zero
  /// Weight gradient: the rows of the wide side are counted with its reflected padding, of which `lead` come first.
  /// Without such padding, lead is 0 and wide_rows is wide_time.
  int64_t lead, wide_rows;
};

}  // namespace nacre::cuda::ends

namespace nacre::cuda::tile {

/// The tile of the result that a block computes.
struct Blocking {
  int rows, columns;
  bool operator==(const Blocking&) const = default;
};

/// The product. Row r of item b of `a` consists of `samples` samples of `channels` each, from sample r samples - lead
/// on; depth = samples channels. Samples outside [0, time) are zero or reflected. Result row r, column n is
///   sum over taps u and columns c of a[r + u tap_rows][c] w[i], where
///     w is K-major:                     i = n w_row + u w_tap + c
///     w is MN-major, taps backwards:    i = c w_row + (taps - 1 - u) w_tap + n
///   and w[i] is zero where the offset within its row of w_row elements is w_row or more.
/// It is stored to element b out_item + r out_pitch - out_offset + n if that lies in [out_begin, out_end) of item b.
struct Shifted {
  int64_t time, lead, channels;
  int64_t out_item, out_pitch, out_offset, out_begin, out_end;
  int64_t w_row, w_tap;
  int64_t items, rows,  // of the batch; of the result, per item
      virtual_rows;     // from item to item in the numbering of rows: `rows`, plus the halo unless it is a gap
  int samples, taps, tap_rows, depth, columns;
  int gap;            // rows of the halo between items in x's tile that have no number among the result's rows
  int input_bytes;    // shared memory for the input policy's parameters
  int element_bytes;  // of x and w
  Blocking block;
  bool reflect;
};

/// The weight gradient of conv1d_tile_taps.cuh.
struct Taps {
  int64_t items, time, length, left, virtual_rows, in, out, parts;
  int taps = 0, dilation = 0;
  bool reflect = false;
  bool add = true;  // with one part: dweight += instead of =
};

/// The weight gradient of conv1d_tile_weights.cuh.
struct Windows {
  int64_t rows, length, item, step;  // rows of dy; of them per item; elements of x per item; from window to window
  int64_t in, left, dilation;        // channels of x; in samples
  int64_t out, weights;              // weights = taps in
  int64_t parts;
  bool reflect;
  bool add = true;  // with one part: dweight += instead of =
};

}  // namespace nacre::cuda::tile

namespace nacre::cuda::groups {

/// The channels of four neighbouring results, whose factors a thread loads at once.
enum class Pattern : uint8_t {
  quads,    ///< all of one group, which has whole packs of four channels on both sides
  pairs,    ///< of two groups of two channels on both sides
  singles,  ///< of four groups of one channel on both sides
  mixed,    ///< any other
};

/// A forward or an input gradient. A row of the result has `phases` samples (the input gradient: the stride; else one),
/// and its source begins at sample row row_step - lead. A block computes `tiles_each` tiles of `tile_rows` rows, of
/// `groups` groups of one item. Sample row result_step + phase - result_lead is stored if it lies in [begin, end).
struct ProductPlan {
  int64_t items, source_time, result_time, source_channels, result_channels;
  int64_t row_step, lead, result_step, result_lead, begin, end;
  int64_t rows, tiles, tiles_each, blocks;  // per item
  int taps, stride, dilation, in, out;      // channels of a group of the weight
  int slabs, groups, reduced, quads;  // slabs of groups; channels per group of the source; packs of four of a result
  int phases, tap_step;               // every tap_step-th tap has the same phase
  int tile_rows, staged, phase_rows;  // samples of the source in a tile; of them with one remainder by the stride
  int pitch, weight_pitch, chunk;     // elements from row to row; taps whose weights are in shared memory at once
  Pattern pattern;
  bool reflect;
};

/// A weight gradient. An item of work is four outputs by as many inputs as the pattern combines, for one tap; a last
/// item per four outputs is the bias gradient. A block has `share` items of one slab and part of the tiles of rows.
struct WeightPlan {
  int64_t items, time, length, in_channels, out_channels, left;
  int64_t tiles, parts;  // tiles per item of the batch
  int taps, stride, dilation, in, out;
  int slabs, groups, tile_rows, pitch;
  int work, share, splits, lanes;  // items of work per slab; of a block; blocks of a slab; threads of an item of work
  Pattern pattern;
  bool reflect;
};

// tile_rows = 0: these kernels do not support the layer. T is the storage; x, in the input gradient, is dx.
template <class T>
ProductPlan product_plan(const DeviceLimits&, Shape x, Shape weight, const Conv1dGeometry&, bool input_gradient);
template <class T>
WeightPlan weight_plan(const DeviceLimits&, Shape x, Shape weight, const Conv1dGeometry&);

}  // namespace nacre::cuda::groups

namespace nacre::cuda::conv {

enum class Engine : uint8_t {
  nothing,   ///< there is nothing to compute
  plain,     ///< conv1d.cu: every geometry
  ends,      ///< conv1d_ends.cuh: one channel on one side, seven taps at stride 1
  tiles,     ///< conv1d_tile.cuh: forward and input gradient
  taps,      ///< conv1d_tile_taps.cuh: weight gradient of 2 to 7 taps at stride 1
  windows,   ///< conv1d_tile_weights.cuh: weight gradient of the other layers that fill packs
  groups,    ///< conv1d_groups.cuh: several groups, all directions
  separate,  ///< of snake_conv1d: snake and conv1d one after the other, the latter with a choice of its own
};

/// Of a forward or an input gradient.
struct ProductChoice {
  Engine engine = Engine::nothing;
  int64_t scratch = 0;         ///< floats
  int64_t of_parts = 0;        ///< floats of the parts for Snake's parameters
  int64_t head = 0, tail = 0;  ///< input gradient: the first and last samples of an item that the plain kernel computes
  int64_t parts = 0;           ///< of the sums for Snake's parameters
  ends::StripPlan strips{};    ///< of Engine::ends
  tile::Shifted product{};     ///< of Engine::tiles
  groups::ProductPlan groups{};  ///< of Engine::groups
};

/// In scratch lie the partial sums of dweight, behind them those of dbias, and then those of dbias_of_x. Nothing else
/// may use the floats of one of them before its second stage has run.
struct WeightGradientChoice {
  Engine engine = Engine::nothing;
  int64_t scratch = 0;       ///< floats
  int64_t of_parts = 0;      ///< floats of scratch that this engine uses if its sums may be finished later; else 0
  int64_t parts = 0;         ///< of the sum over rows. Engine::taps and windows write a single part to dweight itself
  int64_t bias_at = 0, bias_of_x_at = 0;  ///< floats of scratch before the partial sums; of all engines but ends
  /// Engine::taps and windows: parts of dbias and dbias_of_x, which the product leaves beside those of dweight, of one
  /// of the two per launch. bias_of_x_parts 0: it cannot sum x.
  int64_t bias_parts = 0, bias_of_x_parts = 0;
  ends::StripPlan strips{};  ///< of Engine::ends
  tile::Taps taps{};         ///< of Engine::taps
  tile::Windows windows{};   ///< of Engine::windows
  tile::Blocking block{};    ///< of Engine::windows: outputs by weights
  groups::WeightPlan groups{};  ///< of Engine::groups
};

// T is the storage of activations and weight. x, in the input gradient, is the shape of dx.
template <class T>
ProductChoice choose_forward(const DeviceLimits&, Precision, Shape x, Shape weight, const Conv1dGeometry&,
                             bool aligned = true);
template <class T>
ProductChoice choose_input_gradient(const DeviceLimits&, Precision, Shape x, Shape weight, const Conv1dGeometry&,
                                    bool aligned = true);
template <class T>
WeightGradientChoice choose_weight_gradient(const DeviceLimits&, Shape x, Shape weight, const Conv1dGeometry&,
                                            bool aligned = true);
template <class T>
ProductChoice choose_snake_forward(const DeviceLimits&, Precision, Shape x, Shape weight, const Conv1dGeometry&,
                                   bool aligned = true);
template <class T>
ProductChoice choose_snake_input_gradient(const DeviceLimits&, Precision, Shape x, Shape weight, const Conv1dGeometry&,
                                          bool aligned = true);
template <class T>
WeightGradientChoice choose_snake_weight_gradient(const DeviceLimits&, Precision, Shape x, Shape weight,
                                                  const Conv1dGeometry&, bool aligned = true);

/// Parts of the sums of x's columns, for the gradients of biases.
int64_t column_sum_parts(const DeviceLimits&, Shape x);

/// The forward's blocks if it runs on tiles, for tests. `rows`, `columns`: of a block. `gap`: rows of the halo between
/// two items that are not computed. `input_bytes`: shared memory for Snake's parameters.
struct Tiling {
  bool supported;
  int rows, columns, gap;
  int64_t blocks;
};
template <class T>
Tiling forward_tiling(const DeviceLimits&, Precision, Shape x, Shape weight, const Conv1dGeometry&,
                      int input_bytes = 0);

// The same on a context's device, in its precision.
template <class T>
ProductChoice choose_forward(const Context& c, Shape x, Shape weight, const Conv1dGeometry& g, bool aligned = true) {
  return choose_forward<T>(limits(c), c.precision(), x, weight, g, aligned);
}
template <class T>
ProductChoice choose_input_gradient(const Context& c, Shape x, Shape weight, const Conv1dGeometry& g,
                                    bool aligned = true) {
  return choose_input_gradient<T>(limits(c), c.precision(), x, weight, g, aligned);
}
template <class T>
WeightGradientChoice choose_weight_gradient(const Context& c, Shape x, Shape weight, const Conv1dGeometry& g,
                                            bool aligned = true) {
  return choose_weight_gradient<T>(limits(c), x, weight, g, aligned);
}
template <class T>
ProductChoice choose_snake_forward(const Context& c, Shape x, Shape weight, const Conv1dGeometry& g,
                                   bool aligned = true) {
  return choose_snake_forward<T>(limits(c), c.precision(), x, weight, g, aligned);
}
template <class T>
ProductChoice choose_snake_input_gradient(const Context& c, Shape x, Shape weight, const Conv1dGeometry& g,
                                          bool aligned = true) {
  return choose_snake_input_gradient<T>(limits(c), c.precision(), x, weight, g, aligned);
}
template <class T>
WeightGradientChoice choose_snake_weight_gradient(const Context& c, Shape x, Shape weight, const Conv1dGeometry& g,
                                                  bool aligned = true) {
  return choose_snake_weight_gradient<T>(limits(c), c.precision(), x, weight, g, aligned);
}
template <class T>
Tiling forward_tiling(const Context& c, Shape x, Shape weight, const Conv1dGeometry& g, int input_bytes = 0) {
  return forward_tiling<T>(limits(c), c.precision(), x, weight, g, input_bytes);
}

}  // namespace nacre::cuda::conv
