// How the kernels of conv1d_groups.cuh divide a convolution of several groups.
#include <algorithm>
#include <numeric>

#include "conv/choose.h"
#include "conv/choose_cuda.h"
#include "conv/conv1d_sizes.h"

namespace nacre::cuda::groups {
namespace {

using nacre::conv::output;

constexpr int slab_channels = 64;       // of either side, unless the least slab has more
constexpr int weight_bytes = 56 << 10;  // of a product's slab; a slab with more takes its weights by taps
constexpr int wide_tile_rows = 128;     // of the weight gradient

/// Whether the kernels' 16-byte copies and int counters suit the layer.
template <class T>
bool supports(Shape x, Shape weight, Shape y, const Conv1dGeometry& g) {
  constexpr int64_t most = 1 << 12;  // of each: products of two of them, and of tile rows, fit into int
  return g.groups > 1 && x.channels % pack_size<T> == 0 && y.channels % pack_size<T> == 0 && g.stride <= 64 &&
         weight.time <= most && g.dilation <= most && (weight.time - 1) * g.dilation <= most;
}
/// `combined`: channels of a group on the side that is read; `results`: on the side that a quad belongs to.
Pattern pattern_of(int64_t combined, int64_t results) {
  if (combined % 4 == 0 && results % 4 == 0) return Pattern::quads;
  if (combined == 2 && results == 2) return Pattern::pairs;
  return combined == 1 && results == 1 ? Pattern::singles : Pattern::mixed;
}
/// The groups of a slab: the most whose channels are few enough and that have_room; else the fewest whose rows are
/// whole sectors of memory on both sides. They divide the groups, so all slabs are equal.
template <class T, class HaveRoom>
int64_t groups_of_slab(int64_t groups, int64_t in, int64_t out, const HaveRoom& have_room) {
  constexpr int64_t sector = 32 / sizeof(T);
  int64_t best = 0;
  for (int64_t n = 1; n <= groups; ++n) {
    if (groups % n != 0 || (n < groups && (n * in % sector != 0 || n * out % sector != 0))) continue;
    if (best != 0 && (n * std::max(in, out) > slab_channels || !have_room(n))) break;
    best = n;
  }
  return best;
}
/// Elements from row to row of a tile: an odd number of 16 bytes, so that eight rows begin in different banks.
template <class T>
int odd_pitch(int64_t channels) {
  return static_cast<int>((channels / pack_size<T> | 1) * pack_size<T>);
}
/// Four more than the results where their number would put neighbouring rows of weights into the same banks.
int64_t pitch_of_weights(int64_t results) { return results % 8 == 0 ? results + 4 : results; }

}  // namespace

template <class T>
ProductPlan product_plan(const DeviceLimits& d, Shape x, Shape weight, const Conv1dGeometry& g, bool input_gradient) {
  const Shape y = output(x, weight, g);
  if (!supports<T>(x, weight, y, g)) return {};
  const Shape &source = input_gradient ? y : x, &result = input_gradient ? x : y;
  const int64_t in = x.channels / g.groups, out = y.channels / g.groups, reduced = source.channels / g.groups,
                results = result.channels / g.groups, span = (weight.time - 1) * g.dilation;
  const auto bytes = [&](int64_t groups, int64_t taps) {
    return 4 * taps * reduced * pitch_of_weights(groups * results);
  };
  const Pattern pattern = pattern_of(reduced, results);
  const int least = rows_of_warp(pattern);
  const int64_t least_samples = input_gradient ? least + span / g.stride : (least - 1) * g.stride + span + 1 + g.stride;
  const int64_t groups = groups_of_slab<T>(g.groups, in, out, [&](int64_t n) {
    const int64_t of_weights = bytes(n, weight.time),
                  of_tile = least_samples * odd_pitch<T>(n * reduced) * static_cast<int64_t>(sizeof(T));
    return of_weights <= weight_bytes && of_weights + of_tile <= most_shared;
  });
  ProductPlan s{};
  s.items = x.batch, s.source_time = source.time, s.result_time = result.time;
  s.source_channels = source.channels, s.result_channels = result.channels;
  s.taps = static_cast<int>(weight.time), s.stride = static_cast<int>(g.stride);
  s.dilation = static_cast<int>(g.dilation);
  s.in = static_cast<int>(in), s.out = static_cast<int>(out);
  s.groups = static_cast<int>(groups), s.slabs = static_cast<int>(g.groups / groups);
  s.reduced = static_cast<int>(reduced), s.quads = static_cast<int>(groups * results / 4);
  s.pitch = odd_pitch<T>(groups * reduced), s.weight_pitch = static_cast<int>(pitch_of_weights(groups * results));
  s.chunk = static_cast<int>(std::clamp<int64_t>(weight_bytes / bytes(groups, 1), 1, weight.time));
  s.pattern = pattern;
  const bool reflect = g.padding == Padding::reflect;
  s.tap_step = s.stride / std::gcd(s.stride, s.dilation);
  int64_t halo = span;  // samples of the source beside those that belong to the tile's rows
  if (input_gradient) {
    const int64_t first = g.left / g.stride;  // the first row; rows are counted from the padded x's first sample
    halo = span / g.stride;
    s.phases = s.stride, s.row_step = 1, s.lead = halo - first;
    s.result_step = g.stride, s.result_lead = g.left - first * g.stride;
    s.rows = ceil_div(g.left + x.time, g.stride) - first;
    s.begin = reflect ? g.left + 1 : 0, s.end = reflect ? x.time - 1 - g.right : x.time;
  } else {
    s.phases = 1, s.row_step = g.stride, s.lead = g.left, s.result_step = 1;
    s.rows = s.end = y.time;
    s.reflect = reflect;
  }
  if (s.begin >= s.end) return {};
  // Every warp has work in one pass. Tiles are longer where the halo is more than a quarter, and shorter where memory
  // is short or there are few rows.
  const int warps = threads / 32, across = ceil_div(s.quads * s.phases, lanes_across(s.pattern));
  const auto lay = [&](int64_t rows) {
    s.tile_rows = static_cast<int>(rows);
    s.staged = static_cast<int>(input_gradient ? rows + halo : (rows - 1) * g.stride + halo + 1);
    s.phase_rows = input_gradient ? s.staged : ceil_div(s.staged, s.stride);
    return shared_bytes(s, sizeof(T)) <= most_shared;
  };
  int64_t rows = least * std::max(1, warps / across);
  while (rows > least && rows / 2 >= s.rows) rows /= 2;
  while (halo * 4 > rows * s.row_step && rows < s.rows && lay(rows * 2)) rows *= 2;
  while (!lay(rows)) {
    rows -= least;
    if (rows < least) return {};
  }
  s.tiles = ceil_div<int64_t>(s.rows, s.tile_rows);
  // A block keeps its weights for up to eight tiles, while there are blocks enough for two on each multiprocessor.
  s.tiles_each =
      std::clamp<int64_t>(s.items * s.slabs * s.tiles / (2 * two_blocks_each(d)), 1, std::min<int64_t>(8, s.tiles));
  s.blocks = ceil_div(s.tiles, s.tiles_each);
  return s;
}

template <class T>
WeightPlan weight_plan(const DeviceLimits& d, Shape x, Shape weight, const Conv1dGeometry& g) {
  const Shape y = output(x, weight, g);
  if (!supports<T>(x, weight, y, g)) return {};
  const int64_t in = x.channels / g.groups, out = y.channels / g.groups;
  WeightPlan s{};
  s.pattern = pattern_of(in, out);
  const auto work = [&](int64_t groups) {
    const int64_t packs = s.pattern == Pattern::quads ? in / 4 : s.pattern == Pattern::mixed ? in : 1;
    return groups * out / 4 * (packs * weight.time + 1);
  };
  const int64_t span = (weight.time - 1) * g.dilation;
  const int64_t groups = groups_of_slab<T>(g.groups, in, out, [&](int64_t n) {
    // Room for rows of which the halo is a quarter.
    const int64_t rows = std::max<int64_t>(wide_tile_rows, 4 * span / g.stride);
    const int64_t tile = (rows * g.stride + span) * odd_pitch<T>(n * in) + rows * n * out;
    return work(n) <= most_work && tile * static_cast<int64_t>(sizeof(T)) < most_shared;
  });
  if (work(groups) > INT32_MAX / 2) return {};
  s.items = x.batch, s.time = x.time, s.length = y.time, s.left = g.left;
  s.in_channels = x.channels, s.out_channels = y.channels;
  s.taps = static_cast<int>(weight.time), s.stride = static_cast<int>(g.stride);
  s.dilation = static_cast<int>(g.dilation);
  s.in = static_cast<int>(in), s.out = static_cast<int>(out);
  s.groups = static_cast<int>(groups), s.slabs = static_cast<int>(g.groups / groups);
  s.pitch = odd_pitch<T>(groups * in);
  s.reflect = g.padding == Padding::reflect;
  s.work = static_cast<int>(work(groups));
  const auto lay = [&](int rows) {
    s.tile_rows = rows;
    return shared_bytes(s, sizeof(T)) <= most_shared;
  };
  int rows = static_cast<int>(std::min<int64_t>(wide_tile_rows, ceil_div<int64_t>(s.length, 8) * 8));
  while (span * 8 > rows * g.stride && rows < s.length && lay(rows + 64)) rows += 64;
  for (; !lay(rows); rows /= 2)
    if (rows <= 8) return {};
  s.tiles = ceil_div<int64_t>(s.length, s.tile_rows);
  // Two blocks on each multiprocessor, once. More parts do that while writing and reading their sums moves at most an
  // eighth of the bytes of x and dy; then more splits, which read the same rows at the same time.
  const int64_t sums = weight.elements() + s.out_channels,
                bytes = (x.elements() + y.elements()) * static_cast<int64_t>(sizeof(T));
  const int64_t least_splits = ceil_div(s.work, most_work),
                most_splits = std::max<int64_t>(least_splits, std::min(8, s.work / 64));
  const auto fill = [&](int64_t blocks) { return ceil_div(two_blocks_each(d), blocks); };
  const int64_t most_parts = std::min({bytes / (8 * 8 * sums), s.items * s.tiles, (int64_t{1} << 24) / sums});
  s.parts = std::clamp<int64_t>(std::min(fill(s.slabs * least_splits), most_parts), 1, 1024);
  s.splits = static_cast<int>(std::clamp(fill(s.slabs * s.parts), least_splits, most_splits));
  s.share = ceil_div(s.work, s.splits);
  s.lanes = std::max(1, threads / s.share);
  return shared_bytes(s, sizeof(T)) <= most_shared ? s : WeightPlan{};
}

template ProductPlan product_plan<float>(const DeviceLimits&, Shape, Shape, const Conv1dGeometry&, bool);
template ProductPlan product_plan<bf16>(const DeviceLimits&, Shape, Shape, const Conv1dGeometry&, bool);
template WeightPlan weight_plan<float>(const DeviceLimits&, Shape, Shape, const Conv1dGeometry&);
template WeightPlan weight_plan<bf16>(const DeviceLimits&, Shape, Shape, const Conv1dGeometry&);

}  // namespace nacre::cuda::groups
