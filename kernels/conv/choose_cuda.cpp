#include "conv/choose_cuda.h"

#include <algorithm>
#include <initializer_list>

#include "conv/choose.h"
#include "conv/conv1d_sizes.h"
#include "pointwise/snake_tiling.h"

// ---- one channel on one side

namespace nacre::cuda::ends {
namespace {

/// Channels of the wide side; 0 for layers that these kernels do not support.
template <class T>
int64_t wide_channels(Shape x, Shape weight, const Conv1dGeometry& g) {
  const bool first_layer = x.channels == 1,
             plain_geometry = g.stride == 1 && g.dilation == 1 && g.groups == 1 && weight.time == taps;
  const int64_t channels = first_layer ? weight.batch : x.channels;
  const bool one_narrow_side = first_layer != (weight.batch == 1);
  return plain_geometry && one_narrow_side && channels % pack_size<T> == 0 && channels / pack_size<T> <= threads
             ? channels
             : 0;
}
template <class T>
bool supports(Shape x, Shape weight, const Conv1dGeometry& g) {
  return wide_channels<T>(x, weight, g) != 0;
}
/// Snake is in front of the last layer, whose input is the wide side.
template <class T>
bool supports_snake(Shape x, Shape weight, const Conv1dGeometry& g) {
  return x.channels > 1 && supports<T>(x, weight, g) && g.padding == Padding::zero;
}

/// `mirrored`: taps run backwards.
template <class T>
StripPlan strip_plan(Shape x, Shape weight, Shape y, const Conv1dGeometry& g, bool mirrored) {
  const bool first_layer = x.channels == 1;
  StripPlan c{};
  c.wide_time = first_layer ? y.time : x.time, c.narrow_time = first_layer ? x.time : y.time;
  c.shift = mirrored ? g.left - halo : -g.left;
  c.channels = static_cast<int>(wide_channels<T>(x, weight, g)), c.columns = c.channels / pack_size<T>;
  c.strips = threads / c.columns < max_strips ? threads / c.columns : max_strips;
  c.reflect = g.padding == Padding::reflect;
  return c;
}
int64_t tiles(int64_t rows, const StripPlan& c, int strip, int overlap) {
  return ceil_div<int64_t>(rows, c.strips * strip - overlap);
}
/// The first layer expands in the forward and contracts in the input gradient; the last layer does the opposite. With
/// reflected padding the input gradient computes only samples [left + 1, time - 1 - right).
template <class T>
StripPlan product_plan(Shape x, Shape weight, Shape y, const Conv1dGeometry& g, bool input_gradient) {
  const bool first_layer = x.channels == 1, expands = first_layer != input_gradient;
  StripPlan c = strip_plan<T>(x, weight, y, g, input_gradient);
  c.tiles = expands ? tiles(c.wide_time, c, short_strip, 0) : tiles(c.narrow_time, c, short_strip, halo);
  c.out_end = expands ? c.wide_time : c.narrow_time;
  if (input_gradient && c.reflect) c.out_begin = g.left + 1, c.out_end -= g.right + 1;
  c.reflect = c.reflect && !input_gradient;  // dy ends with zeros
  return c;
}
template <class T>
StripPlan weights_plan(Shape x, Shape weight, Shape y, const Conv1dGeometry& g) {
  const bool first_layer = x.channels == 1;
  StripPlan c = strip_plan<T>(x, weight, y, g, !first_layer);
  c.wide_rows = c.wide_time;
  if (!first_layer && c.reflect) {
    c.lead = g.left, c.wide_rows = g.left + x.time + g.right;
    c.shift = -halo;
    c.reflect = false;  // dy ends with zeros
  }
  c.tiles = tiles(std::max(c.wide_rows, c.narrow_time), c, long_strip, 0);
  return c;
}

}  // namespace
}  // namespace nacre::cuda::ends

// ---- tiles

namespace nacre::cuda::tile {
namespace {

/// Whether products of T run on tensor cores.
template <class T>
bool on_tensor_cores(Precision precision) {
  return sizeof(T) == 2 || precision == Precision::tf32;
}

// ---- forward and input gradient

/// Shared memory that suffices for a block of this size with any product on elements of this size and any layout of w.
size_t shared_bytes(const Shifted& s, Blocking b) {
  const auto most = [&]<int BM, int BN, Product P>() {
    return std::max(LayoutSizes<BM, BN, P, Major::k>::shared_bytes(s),
                    LayoutSizes<BM, BN, P, Major::mn>::shared_bytes(s));
  };
  const auto bytes = [&]<int BM, int BN>() {
    return s.element_bytes == 2 ? most.template operator()<BM, BN, Product::bf16>()
                                : most.template operator()<BM, BN, Product::fma>();
  };
  if (b.rows == 64) return bytes.template operator()<64, 64>();
  if (b.rows == 128 && b.columns == 64) return bytes.template operator()<128, 64>();
  if (b.rows == 128)
    return b.columns == 96 ? bytes.template operator()<128, 96>() : bytes.template operator()<128, 128>();
  if (b.columns == 32) return bytes.template operator()<256, 32>();
  return b.columns == 64 ? bytes.template operator()<256, 64>() : bytes.template operator()<256, 128>();
}
bool has_room(const DeviceLimits& d, const Shifted& s, Blocking b) { return shared_bytes(s, b) <= d.shared_per_block; }

/// How many blocks of this size a multiprocessor holds at once.
int blocks_each(const DeviceLimits& d, const Shifted& s, Blocking b) {
  const Product p = s.element_bytes == 2 ? Product::bf16 : Product::fma;
  return blocks_that_share(d, shared_bytes(s, b), blocks_at_once(p, b.rows, b.columns));
}
/// Whether tiles of 128 rows are better than tiles of 256 although there are enough of both: a product of one tap is
/// over after few steps, and a block that is alone on its multiprocessor fetches, multiplies and stores one after the
/// other. Two blocks take turns. Tiles of 128 rows read the weights from L2 twice as often, so they are taken only
/// where L2 then delivers no more than DRAM does: a row takes depth + columns elements of DRAM, and columns more where
/// there is a residual; in tiles of 128 by 128 it takes depth * columns / 64 of L2.
bool two_blocks_are_better(const DeviceLimits& d, const Shifted& s, int columns) {
  return s.taps == 1 && columns >= 64 && int64_t{s.depth} * s.columns <= 64 * (int64_t{s.depth} + 2 * s.columns) &&
         blocks_each(d, s, {256, columns}) < 2 && blocks_each(d, s, {128, columns}) >= 2;
}

/// Chooses the size of a block. The width is the one that wastes least: a column of tiles costs its width and, for
/// loading x, about 32 columns more. Tall tiles fetch the weights less often (128 columns at the tensor cores' rate
/// read 5 TB/s from L2 with 128 rows, 3 TB/s with 256). Short products take two blocks per multiprocessor
/// (two_blocks_are_better). Tiles are smaller where there would be too few for all
/// multiprocessors, or where tile and halo exceed a block's shared memory. Among sizes that then have room, 128 rows
/// are better than 64: half the halo, and enough warps for a multiprocessor that holds one block. The smallest size is
/// returned even if it has no room.
Blocking choose_blocks(const DeviceLimits& d, const Shifted& s) {
  const auto columns = [&](int n) { return ceil_div(s.columns, n); };
  const auto least_waste = [&](std::initializer_list<int> widths, const auto& has_room_for) {
    int best = 0;
    int64_t least = INT64_MAX;
    for (const int n : widths) {
      const int64_t cost = columns(n) * int64_t{n + 32};
      if (cost < least && has_room_for(n)) least = cost, best = n;
    }
    return best;
  };
  const int best = least_waste({128, 96, 64, 32}, [](int) { return true; });
  const int64_t rows = s.items * s.virtual_rows;
  const auto busy = [&](int64_t of_block, int n) { return ceil_div(rows, of_block) * columns(n) >= d.multiprocessors; };
  const bool tall = best != 96 && busy(256, best);
  if (tall && two_blocks_are_better(d, s, best)) return {128, best};
  if (tall && has_room(d, s, {256, best})) return {256, best};
  if (best >= 96 && busy(128, best) && has_room(d, s, {128, best})) return {128, best};
  if (tall || (best >= 96 && busy(128, best))) {  // there are enough tiles, but shared memory is short
    const int narrow = least_waste({64, 96}, [&](int n) { return has_room(d, s, {128, n}); });
    if (narrow != 0) return {128, narrow};
  }
  return {64, 64};
}

/// Blocks of this size.
int64_t blocks(const Shifted& s, Blocking b) {
  return ceil_div<int64_t>(s.items * s.virtual_rows, b.rows) * ceil_div(s.columns, b.columns);
}
/// Whether the kernel's int counters and the grid suffice, and the chosen block has room in the device's shared memory.
/// 2^31 blocks have at least 2^40 results, more than a device stores.
bool supports(const DeviceLimits& d, const Shifted& s) {
  return int64_t{s.taps} * s.tap_rows < 4096 && s.samples <= 256 && s.taps * s.w_tap + s.columns < INT32_MAX &&
         blocks(s, s.block) <= INT32_MAX && has_room(d, s, s.block);
}
/// Whether the tiles support the layer: channels that fill packs, no groups, and stride or dilation 1.
template <class T>
bool supports(const Conv1dGeometry& g, int64_t in, int64_t out) {
  return g.groups == 1 && (g.stride == 1 || g.dilation == 1) && in % pack_size<T> == 0 && out % pack_size<T> == 0 &&
         std::max(in, out) * g.stride < (1 << 20) && g.dilation < 4096;
}
/// Rounds of blocks of 256 x 128, one per multiprocessor; 0 for smaller blocks, of which a multiprocessor runs several.
int64_t rounds(const DeviceLimits& d, const Shifted& s) {
  if (s.block != Blocking{256, 128}) return 0;
  return ceil_div<int64_t>(blocks(s, s.block), d.multiprocessors);
}
/// Stacks the items and chooses the blocks. Items of whole groups of 64 rows get a gap (see conv1d_tile.cuh),
/// unless its shared memory would make the blocks smaller. Other items get one on tensor cores where that saves a round
/// of blocks of 256 x 128. Blocks of 128 x 128 are left out: two of them share a multiprocessor, and the gap would
/// leave room for one.
void lay_items(const DeviceLimits& d, Shifted& s, int64_t items, int64_t rows, bool tensor_cores) {
  const int64_t halo = int64_t{s.taps - 1} * s.tap_rows;
  s.items = items, s.rows = rows;
  const auto laid = [&](int64_t gap) {
    Shifted l = s;
    l.gap = static_cast<int>(gap), l.virtual_rows = rows + halo - gap;
    l.block = choose_blocks(d, l);
    return l;
  };
  s = laid(0);
  if (halo == 0 || halo > rows || halo >= 4096) return;
  const Shifted with_gap = laid(halo);
  if (with_gap.block != s.block || !has_room(d, with_gap, with_gap.block)) return;
  if (rows % 64 == 0 || (tensor_cores && rounds(d, with_gap) < rounds(d, s))) s = with_gap;
}
/// The forward convolution as a product.
template <class T>
Shifted forward_product(const DeviceLimits& d, Shape x, Shape weight, Shape y, const Conv1dGeometry& g,
                        bool tensor_cores, int input_bytes = 0) {
  Shifted s{};
  s.element_bytes = sizeof(T);
  s.input_bytes = input_bytes;
  s.time = x.time, s.lead = g.left, s.channels = x.channels, s.samples = static_cast<int>(g.stride);
  s.out_pitch = y.channels, s.out_item = y.time * y.channels, s.out_end = s.out_item;
  s.w_row = weight.time * x.channels, s.w_tap = g.stride * x.channels;
  s.taps = static_cast<int>(ceil_div(weight.time, g.stride)), s.tap_rows = static_cast<int>(g.dilation);
  s.depth = static_cast<int>(s.w_tap), s.columns = static_cast<int>(y.channels);
  lay_items(d, s, x.batch, y.time, tensor_cores);
  s.reflect = g.padding == Padding::reflect;
  return s;
}
/// The input gradient as a product of dy. With reflected padding only samples [left + 1, time - 1 - right) are
/// computed.
template <class T>
Shifted input_gradient_product(const DeviceLimits& d, Shape x, Shape weight, Shape y, const Conv1dGeometry& g,
                               bool tensor_cores) {
  Shifted s{};
  s.element_bytes = sizeof(T);
  s.time = y.time, s.channels = y.channels, s.samples = 1;
  s.out_pitch = g.stride * x.channels, s.out_item = x.time * x.channels;
  const bool reflect = g.padding == Padding::reflect;
  s.out_begin = reflect ? (g.left + 1) * x.channels : 0;
  s.out_end = s.out_item - (reflect ? (g.right + 1) * x.channels : 0);
  s.w_row = weight.time * x.channels, s.w_tap = s.out_pitch;
  s.taps = static_cast<int>(ceil_div(weight.time, g.stride)), s.tap_rows = static_cast<int>(g.dilation);
  s.depth = static_cast<int>(y.channels), s.columns = static_cast<int>(s.out_pitch);
  // Row r of the result holds `stride` samples of the padded x, from sample (first + r) stride on. The last tap (taps
  // run backwards) reads row first + r of dy.
  const int64_t first = g.left / g.stride;
  s.out_offset = (g.left - first * g.stride) * x.channels;
  s.lead = int64_t{s.taps - 1} * s.tap_rows - first;
  lay_items(d, s, x.batch, ceil_div(g.left + x.time, g.stride) - first, tensor_cores);
  return s;
}

/// Whether applying Snake once per column of tiles is faster than a separate Snake kernel (snake_conv1d.cu). It is not
/// where the shared memory of Snake's parameters makes blocks smaller or takes the room for the gap between items, at
/// the cost of a round.
bool fusion_is_faster(const DeviceLimits& d, bool tensor_cores, const Shifted& s, const Shifted& plain) {
  if (!tensor_cores) return true;
  return s.block == plain.block && rounds(d, s) <= rounds(d, plain) && (s.columns <= 256 || s.taps >= stages);
}
/// The number of parts of the sums for alpha and beta: one per row of tiles and sample of a row.
int64_t slope_parts(const Shifted& s, int64_t channels) {
  return ceil_div(s.items * s.virtual_rows, int64_t{s.block.rows}) * (s.columns / channels);
}

// ---- weight gradient

/// The number of parts, at most `most`, that a sum over rows is split into. Each part has `tiles` blocks, and a
/// multiprocessor runs `at_once` blocks. Chosen is the number of parts that fills one round of all multiprocessors, if
/// that keeps nine tenths of them busy; else the smallest number whose rounds do; else the number that keeps most busy.
int64_t even_parts(const DeviceLimits& d, int64_t tiles, int64_t at_once, int64_t most) {
  const int64_t slots = d.multiprocessors * at_once, round = std::min(slots / tiles, most);
  if (round * tiles * 10 >= slots * 9) return round;
  int64_t best = 1;
  double best_used = 0;
  for (int64_t parts = 1; parts <= std::min<int64_t>(most, 1024); ++parts) {
    const int64_t blocks = tiles * parts;
    const double used = static_cast<double>(blocks) / static_cast<double>(ceil_div(blocks, slots) * slots);
    if (used > best_used + 1e-9) best_used = used, best = parts;
    if (used >= 0.9) break;
  }
  return best;
}
template <class T>
bool supports_taps(const Conv1dGeometry& g, int64_t in, int64_t out, int64_t taps) {
  return g.groups == 1 && g.stride == 1 && taps > 1 && taps <= most_taps && (taps - 1) * g.dilation <= longest_halo &&
         in % pack_size<T> == 0 && out % pack_size<T> == 0;
}
/// The problem with its number of parts: no part has fewer than 512 rows, and the partial sums have at most 2^24
/// floats.
template <class T>
Taps taps_problem(const DeviceLimits& d, Shape x, Shape weight, Shape y, const Conv1dGeometry& g) {
  Taps s{x.batch, x.time, y.time, g.left, x.time + g.left + g.right, x.channels, y.channels, 1};
  s.taps = static_cast<int>(weight.time), s.dilation = static_cast<int>(g.dilation);
  s.reflect = g.padding == Padding::reflect;
  const int64_t tiles = ceil_div<int64_t>(s.in, taps_channels) * ceil_div<int64_t>(s.out, taps_outputs);
  const int64_t most_parts = std::min(s.items * s.virtual_rows / 512, (int64_t{1} << 24) / weight.elements());
  const int at_once = blocks_that_share(d, TapsLayout<T>::shared_bytes(s), taps_blocks_at_once);
  s.parts = even_parts(d, tiles, at_once, std::clamp<int64_t>(most_parts, 1, 1024));
  return s;
}

Windows windows(Shape x, Shape weight, Shape y, const Conv1dGeometry& g) {
  Windows s{};
  s.rows = y.rows(), s.length = y.time, s.item = x.time * x.channels, s.step = g.stride * x.channels;
  s.in = x.channels, s.left = g.left, s.dilation = g.dilation;
  s.out = y.channels, s.weights = weight.time * x.channels;
  s.reflect = g.padding == Padding::reflect;
  return s;
}

/// Shared memory of a block of this size, which is the same for all products.
size_t weight_shared_bytes(Blocking b) {
  if (b.rows == 256) return WeightLayoutSizes<256, 128, Product::fma>::shared_bytes;
  if (b.rows == 128)
    return b.columns == 128 ? WeightLayoutSizes<128, 128, Product::fma>::shared_bytes
                            : WeightLayoutSizes<128, 64, Product::fma>::shared_bytes;
  return b.columns == 128 ? WeightLayoutSizes<64, 128, Product::fma>::shared_bytes
                          : WeightLayoutSizes<64, 64, Product::fma>::shared_bytes;
}
static_assert(WeightLayoutSizes<256, 128, Product::fma>::shared_bytes ==
              WeightLayoutSizes<256, 128, Product::bf16>::shared_bytes);
static_assert(WeightLayoutSizes<128, 64, Product::fma>::shared_bytes <= least_shared_per_block);
static_assert(WeightLayoutSizes<64, 128, Product::fma>::shared_bytes <= least_shared_per_block);

/// Outputs by weights of a block: the largest that is not mostly empty and has room in the device's shared memory.
Blocking weight_blocking(const DeviceLimits& d, const Windows& s) {
  const auto has_room = [&](Blocking b) { return weight_shared_bytes(b) <= d.shared_per_block; };
  if (s.weights <= 64) return {s.out > 64 ? 128 : 64, 64};
  if (s.out <= 64) return {64, 128};
  if (s.out >= 256 && has_room({256, 128})) return {256, 128};
  return {128, has_room({128, 128}) ? 128 : 64};
}
/// The number of parts: no part has fewer than 512 rows or more than 2^30 (rows are counted in int), and the partial
/// sums have at most 2^24 floats.
int64_t weight_parts(const DeviceLimits& d, const Windows& s) {
  const Blocking b = weight_blocking(d, s);
  const int64_t tiles = ceil_div(s.out, int64_t{b.rows}) * ceil_div(s.weights, int64_t{b.columns});
  const int at_once = blocks_that_share(d, weight_shared_bytes(b), b.rows == 256 ? 1 : 2);
  const int64_t parts = even_parts(d, tiles, at_once, std::min(s.rows / 512, (int64_t{1} << 24) / (s.out * s.weights)));
  return std::max<int64_t>(parts, ceil_div(s.rows, int64_t{1} << 30));
}
/// As weight_blocking, with Snake: blocks of 128 by 128 float products and Snake's parameters need more registers than
/// there are.
Blocking snake_weight_blocking(const DeviceLimits& d, const Windows& s, bool tensor_cores) {
  if (tensor_cores) return weight_blocking(d, s);
  return {s.out > 64 ? 128 : 64, 64};
}
template <class T>
bool supports_weights(const Conv1dGeometry& g, int64_t in, int64_t out) {
  return g.groups == 1 && in % pack_size<T> == 0 && out % pack_size<T> == 0;
}

/// Whether applying Snake once per window and column of tiles is faster than a separate Snake kernel.
bool fusion_is_faster(bool tensor_cores, Shape weight, const Conv1dGeometry& g) {
  return !tensor_cores || ceil_div(weight.time, g.stride) * ceil_div(weight.batch, int64_t{128}) <= 2;
}

}  // namespace
}  // namespace nacre::cuda::tile

// ---- choices

namespace nacre::cuda::conv {
namespace {

using nacre::conv::output;
using nacre::conv::tensor_floats;

/// The number of parts of the plain kernel's sum over rows. Their sums have at most 2^24 floats.
int64_t plain_parts(int64_t rows, int64_t weights) {
  return std::clamp<int64_t>(std::min(rows / 256, (int64_t{1} << 24) / weights), 1, 64);
}
int64_t column_sums_scratch(const DeviceLimits& d, Shape x) { return column_sum_parts(d, x) * x.channels; }

/// Lays the partial sums of the biases behind those of the weights. The arguments are floats.
void lay_scratch(WeightGradientChoice& c, int64_t of_weights, int64_t of_bias, int64_t of_bias_of_x) {
  c.bias_at = of_weights, c.bias_of_x_at = of_weights + of_bias;
  c.scratch = c.bias_of_x_at + of_bias_of_x;
}

/// The parts of the biases' gradients of Engine::windows. x's tiles hold each of its samples once in the taps
/// [left, left + stride), if the layer has them and the windows reach to the end of x.
void divide_biases(WeightGradientChoice& c, Shape x, Shape y, const Conv1dGeometry& g) {
  const tile::Windows& s = c.windows;
  c.bias_parts = c.parts * ceil_div(s.weights, int64_t{c.block.columns});
  const bool samples_once = g.dilation == 1 && (g.left + g.stride) * s.in <= s.weights && x.time == y.time * g.stride;
  c.bias_of_x_parts = samples_once ? c.parts * ceil_div(s.out, int64_t{c.block.rows}) * g.stride : 0;
}
void lay_tiled_scratch(const DeviceLimits& d, WeightGradientChoice& c, Shape x, Shape weight, Shape y) {
  lay_scratch(c, c.parts > 1 ? c.parts * weight.elements() : 0, c.bias_parts * y.channels,
              std::max(column_sums_scratch(d, x), c.bias_of_x_parts * x.channels));
}

/// The weight gradient on tiles: its engine and how it is divided. Engine::nothing: no tiles for this layer.
template <class T>
WeightGradientChoice tiled_weight_gradient(const DeviceLimits& d, Shape x, Shape weight, const Conv1dGeometry& g) {
  const Shape y = output(x, weight, g);
  if (!tile::supports_weights<T>(g, x.channels, y.channels)) return {};
  WeightGradientChoice c;
  if (tile::supports_taps<T>(g, x.channels, y.channels, weight.time)) {
    c.engine = Engine::taps;
    c.taps = tile::taps_problem<T>(d, x, weight, y, g);
    c.parts = c.taps.parts;
    c.bias_parts = c.parts * ceil_div<int64_t>(x.channels, tile::taps_channels);
  } else {
    c.engine = Engine::windows;
    c.windows = tile::windows(x, weight, y, g);
    c.block = tile::weight_blocking(d, c.windows);
    c.parts = c.windows.parts = tile::weight_parts(d, c.windows);
    divide_biases(c, x, y, g);
  }
  lay_tiled_scratch(d, c, x, weight, y);
  return c;
}

}  // namespace

int64_t column_sum_parts(const DeviceLimits& d, Shape x) {
  return std::clamp<int64_t>(x.rows() / 512, 1, 2 * two_blocks_each(d));
}

template <class T>
ProductChoice choose_forward(const DeviceLimits& d, Precision precision, Shape x, Shape weight, const Conv1dGeometry& g,
                             bool aligned) {
  const Shape y = output(x, weight, g);
  if (y.elements() == 0) return {};
  if (ends::supports<T>(x, weight, g))
    return {.engine = Engine::ends, .strips = ends::product_plan<T>(x, weight, y, g, false)};
  if (aligned && tile::supports<T>(g, x.channels, y.channels)) {
    const tile::Shifted s = tile::forward_product<T>(d, x, weight, y, g, tile::on_tensor_cores<T>(precision));
    if (tile::supports(d, s)) return {.engine = Engine::tiles, .product = s};
  }
  if (aligned) {
    const groups::ProductPlan s = groups::product_plan<T>(d, x, weight, g, false);
    if (s.tile_rows != 0) return {.engine = Engine::groups, .groups = s};
  }
  return {.engine = Engine::plain};
}

// With reflected padding some samples of dx also receive the gradient of their reflections. Only the plain kernel
// computes that.
template <class T>
ProductChoice choose_input_gradient(const DeviceLimits& d, Precision precision, Shape x, Shape weight,
                                    const Conv1dGeometry& g, bool aligned) {
  const Shape y = output(x, weight, g);
  if (y.elements() == 0) return {};
  const bool reflect = g.padding == Padding::reflect;
  const int64_t head = reflect ? g.left + 1 : 0, tail = reflect ? g.right + 1 : 0;
  if (ends::supports<T>(x, weight, g) && head + tail < x.time)
    return {.engine = Engine::ends, .head = head, .tail = tail, .strips = ends::product_plan<T>(x, weight, y, g, true)};
  if (aligned && tile::supports<T>(g, x.channels, y.channels)) {
    const tile::Shifted s = tile::input_gradient_product<T>(d, x, weight, y, g, tile::on_tensor_cores<T>(precision));
    if (tile::supports(d, s) && s.out_begin < s.out_end)
      return {.engine = Engine::tiles, .head = head, .tail = tail, .product = s};
  }
  if (aligned) {
    const groups::ProductPlan s = groups::product_plan<T>(d, x, weight, g, true);
    if (s.tile_rows != 0) return {.engine = Engine::groups, .head = head, .tail = tail, .groups = s};
  }
  return {.engine = Engine::plain, .head = x.time};
}

template <class T>
WeightGradientChoice choose_weight_gradient(const DeviceLimits& d, Shape x, Shape weight, const Conv1dGeometry& g,
                                            bool aligned) {
  const Shape y = output(x, weight, g);
  if (y.elements() == 0) return {};
  const int64_t weights = weight.elements(), parts_of_plain = plain_parts(y.rows(), weights);
  const WeightGradientChoice tiled = tiled_weight_gradient<T>(d, x, weight, g);
  const groups::WeightPlan grouped = groups::weight_plan<T>(d, x, weight, g);
  const int64_t of_x = column_sums_scratch(d, x);
  WeightGradientChoice on_ends, on_groups, plain;
  if (ends::supports<T>(x, weight, g)) {
    on_ends.engine = Engine::ends;
    on_ends.strips = ends::weights_plan<T>(x, weight, y, g);
    on_ends.parts = x.batch * on_ends.strips.tiles;
    on_ends.scratch = on_ends.parts * ends::partial_size(on_ends.strips.channels);
  }
  if (grouped.tile_rows != 0) {
    on_groups.engine = Engine::groups;
    on_groups.groups = grouped;
    on_groups.parts = grouped.parts;
    lay_scratch(on_groups, grouped.parts * weights, grouped.parts * y.channels, of_x);
  }
  plain.engine = Engine::plain;
  plain.parts = parts_of_plain;
  lay_scratch(plain, parts_of_plain * weights, column_sums_scratch(d, y), of_x);
  WeightGradientChoice c = plain;
  if (on_ends.engine != Engine::nothing)
    c = on_ends;
  else if (aligned && tiled.engine != Engine::nothing)
    c = tiled;
  else if (aligned && on_groups.engine != Engine::nothing)
    c = on_groups;
  if (c.engine != Engine::ends) c.of_parts = c.scratch;
  c.scratch = std::max({plain.scratch, tiled.scratch, on_ends.scratch, on_groups.scratch});
  return c;
}

template <class T>
ProductChoice choose_snake_forward(const DeviceLimits& d, Precision precision, Shape x, Shape weight,
                                   const Conv1dGeometry& g, bool aligned) {
  const Shape y = output(x, weight, g);
  if (y.elements() == 0) return {};
  ProductChoice c{.engine = Engine::separate,
                  .scratch = tensor_floats<T>(x) + choose_forward<T>(d, precision, x, weight, g).scratch};
  if (ends::supports_snake<T>(x, weight, g)) {
    c.engine = Engine::ends;
    c.strips = ends::product_plan<T>(x, weight, y, g, false);
  } else if (aligned && tile::supports<T>(g, x.channels, y.channels)) {
    const bool tensor_cores = tile::on_tensor_cores<T>(precision);
    const auto parameter_bytes = static_cast<int>(x.channels * sizeof(tile::SnakeFactors));
    const tile::Shifted s = tile::forward_product<T>(d, x, weight, y, g, tensor_cores, parameter_bytes),
                        plain = tile::forward_product<T>(d, x, weight, y, g, tensor_cores);
    if (tile::supports(d, s) && tile::fusion_is_faster(d, tensor_cores, s, plain))
      c.engine = Engine::tiles, c.product = s;
  }
  return c;
}

template <class T>
ProductChoice choose_snake_input_gradient(const DeviceLimits& d, Precision precision, Shape x, Shape weight,
                                          const Conv1dGeometry& g, bool aligned) {
  const Shape y = output(x, weight, g);
  if (y.elements() == 0) return {};
  const int64_t separate = tensor_floats<T>(x) + std::max(choose_input_gradient<T>(d, precision, x, weight, g).scratch,
                                                          most_snake_parts(d, x) * 2 * x.channels);
  ProductChoice c{.engine = Engine::separate};
  int64_t parts = 0;
  if (ends::supports_snake<T>(x, weight, g)) {
    c.engine = Engine::ends;
    c.strips = ends::product_plan<T>(x, weight, y, g, true);
    parts = c.parts = x.batch * c.strips.tiles;
  } else if (tile::supports<T>(g, x.channels, y.channels) && g.padding == Padding::zero) {
    const tile::Shifted s = tile::input_gradient_product<T>(d, x, weight, y, g, tile::on_tensor_cores<T>(precision));
    parts = tile::slope_parts(s, x.channels);
    if (aligned && tile::supports(d, s) && s.out_begin < s.out_end)
      c.engine = Engine::tiles, c.product = s, c.parts = parts;
  }
  c.of_parts = std::max(most_snake_parts(d, x) * 2 * x.channels, parts * 2 * x.channels);
  c.scratch = std::max(separate, parts * 2 * x.channels);
  return c;
}

template <class T>
WeightGradientChoice choose_snake_weight_gradient(const DeviceLimits& d, Precision precision, Shape x, Shape weight,
                                                  const Conv1dGeometry& g, bool aligned) {
  const Shape y = output(x, weight, g);
  if (y.elements() == 0) return {};
  const bool tensor_cores = tile::on_tensor_cores<T>(precision);
  WeightGradientChoice tiled = tiled_weight_gradient<T>(d, x, weight, g);
  if (tiled.engine == Engine::windows) {
    tiled.block = tile::snake_weight_blocking(d, tiled.windows, tensor_cores);
    divide_biases(tiled, x, y, g);
    lay_tiled_scratch(d, tiled, x, weight, y);
    if (!tile::fusion_is_faster(tensor_cores, weight, g)) tiled = {};
  }
  WeightGradientChoice c{.engine = Engine::separate};
  if (ends::supports_snake<T>(x, weight, g)) {
    c.engine = Engine::ends;
    c.strips = ends::weights_plan<T>(x, weight, y, g);
    c.parts = x.batch * c.strips.tiles;
  } else if (aligned && tiled.engine != Engine::nothing) {
    c = tiled;
  }
  // The separate convolution has room for the parts of every engine, except for parts of dbias by smaller blocks.
  const WeightGradientChoice separate = choose_weight_gradient<T>(d, x, weight, g);
  if (c.engine != Engine::ends) c.of_parts = std::max(tiled.scratch, separate.of_parts);
  c.scratch = std::max(tiled.scratch, tensor_floats<T>(x) + separate.scratch);
  return c;
}

template <class T>
Tiling forward_tiling(const DeviceLimits& d, Precision precision, Shape x, Shape weight, const Conv1dGeometry& g,
                      int input_bytes) {
  const tile::Shifted s =
      tile::forward_product<T>(d, x, weight, output(x, weight, g), g, tile::on_tensor_cores<T>(precision), input_bytes);
  return {tile::supports(d, s), s.block.rows, s.block.columns, s.gap, tile::blocks(s, s.block)};
}

#define NACRE_INSTANTIATE(T)                                                                                           \
  template ProductChoice choose_forward<T>(const DeviceLimits&, Precision, Shape, Shape, const Conv1dGeometry&, bool); \
  template ProductChoice choose_input_gradient<T>(const DeviceLimits&, Precision, Shape, Shape, const Conv1dGeometry&, \
                                                  bool);                                                               \
  template WeightGradientChoice choose_weight_gradient<T>(const DeviceLimits&, Shape, Shape, const Conv1dGeometry&,    \
                                                          bool);                                                       \
  template ProductChoice choose_snake_forward<T>(const DeviceLimits&, Precision, Shape, Shape, const Conv1dGeometry&,  \
                                                 bool);                                                                \
  template ProductChoice choose_snake_input_gradient<T>(const DeviceLimits&, Precision, Shape, Shape,                  \
                                                        const Conv1dGeometry&, bool);                                  \
  template WeightGradientChoice choose_snake_weight_gradient<T>(const DeviceLimits&, Precision, Shape, Shape,          \
                                                                const Conv1dGeometry&, bool);                          \
  template Tiling forward_tiling<T>(const DeviceLimits&, Precision, Shape, Shape, const Conv1dGeometry&, int);
NACRE_INSTANTIATE(float)
NACRE_INSTANTIATE(bf16)
#undef NACRE_INSTANTIATE

}  // namespace nacre::cuda::conv
