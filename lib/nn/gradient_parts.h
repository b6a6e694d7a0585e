#pragma once
// Into how many parts CUDA cuts the gradients of a convolution's parameters, for Step::costs(). It follows
// kernels/conv/choose.cu as far as shapes decide, on a device with the multiprocessors and the shared memory of an
// H200. A plan asks no device, so that a build without CUDA counts the same.
#include <algorithm>
#include <cstdint>

#include "nacre/ops/conv1d.h"

namespace nacre {

/// Into how many parts a sum over rows is cut, at most `most`: those that fill whole rounds of 132 multiprocessors with
/// `at_once` blocks each, where a part has `tiles` blocks.
inline int64_t even_parts(int64_t tiles, int64_t at_once, int64_t most) {
  const int64_t slots = 132 * at_once, round = std::min(slots / tiles, most);
  if (round * tiles * 10 >= slots * 9) return round;
  int64_t best = 1;
  double best_used = 0;
  for (int64_t parts = 1; parts <= std::min<int64_t>(most, 1024); ++parts) {
    const int64_t blocks = tiles * parts;
    const double used = static_cast<double>(blocks) / static_cast<double>((blocks + slots - 1) / slots * slots);
    if (used > best_used + 1e-9) best_used = used, best = parts;
    if (used >= 0.9) break;
  }
  return best;
}

/// Rows of the tiles of an input gradient that fill 132 multiprocessors, of `columns` columns: as choose_blocks() in
/// kernels/conv/choose.cu. Snake's gradients have one part per row of tiles.
inline int64_t tile_rows(int64_t rows, int64_t columns) {
  int64_t best = 128;
  for (const int64_t width : {96, 64, 32})
    if ((columns + width - 1) / width * (width + 32) < (columns + best - 1) / best * (best + 32)) best = width;
  const auto busy = [&](int64_t high) { return (rows + high - 1) / high * ((columns + best - 1) / best) >= 132; };
  if (best != 96 && busy(256)) return 256;
  return best >= 96 && busy(128) ? 128 : 64;
}

/// Parts of Snake's gradients that its own kernel leaves: as tiling() in kernels/pointwise/snake.cu. `pack`: channels of
/// an access.
inline int64_t snake_parts(Shape x, int64_t pack) {
  constexpr int64_t threads = 256, most_rows = 32, least_rows = 8;
  const auto blocks = [](int64_t n, int64_t of) { return (n + of - 1) / of; };
  const int64_t packs = x.channels % pack == 0 ? x.channels / pack : x.channels, columns = std::min(packs, threads),
                at_once = threads / columns;
  int64_t rows = most_rows;
  while (rows > least_rows && blocks(x.rows(), at_once * rows) * blocks(packs, columns) < 2 * 132) rows /= 2;
  return blocks(x.rows(), at_once * rows);
}

/// One channel on one side, seven taps: kernels of their own, which add their few parts themselves.
inline bool has_narrow_side(Shape x, Shape weight, const Conv1dGeometry& g) {
  return g.stride == 1 && g.dilation == 1 && g.groups == 1 && weight.time == 7 &&
         (x.channels == 1) != (weight.batch == 1);
}

/// Which kernels compute a convolution: cuda::conv::Engine in kernels/conv/choose_cuda.h, with the tiles of all
/// directions as one.
enum class ConvEngine : uint8_t { plain, ends, tiles, groups };
template <class T>
ConvEngine engine_of(Shape x, Shape weight, const Conv1dGeometry& g) {
  constexpr int64_t pack = 16 / sizeof(T);
  const int64_t in = x.channels, out = weight.batch;
  if (has_narrow_side(x, weight, g) && std::max(in, out) % pack == 0) return ConvEngine::ends;
  if (in % pack != 0 || out % pack != 0) return ConvEngine::plain;
  if (g.groups > 1) return ConvEngine::groups;
  return g.stride == 1 || g.dilation == 1 ? ConvEngine::tiles : ConvEngine::plain;
}

/// The parts of the gradients of a convolution's parameters, which one kernel leaves.
struct GradientParts {
  int64_t weight = 1, bias = 1;
  int64_t bias_of_wide = 0;      ///< of a transposed convolution, whose result is the wide side
  bool bias_apart = false;       ///< the bias gradient is a kernel of its own
  bool wide_bias_apart = false;  ///< that of a transposed convolution is
};

/// Parts of the sums of a tensor's columns: as column_sum_parts() in kernels/conv/choose.cu.
inline int64_t column_sum_parts(Shape x) { return std::clamp<int64_t>(x.rows() / 512, 1, 2 * 2 * 132); }

/// Of several groups: as weight_plan() in kernels/conv/choose_groups.cu. `element`: bytes of a value of x.
inline int64_t group_parts(Shape x, Shape weight, Shape y, const Conv1dGeometry& g, int64_t element) {
  constexpr int64_t most_shared = 96 << 10, most_work = 1024, slab_channels = 64, tile_rows = 128;
  const int64_t in = x.channels / g.groups, out = y.channels / g.groups, pack = 16 / element, sector = 32 / element,
                span = (weight.time - 1) * g.dilation;
  const auto blocks = [](int64_t n, int64_t of) { return (n + of - 1) / of; };
  const bool quads = in % 4 == 0 && out % 4 == 0, small = in == out && in <= 2;
  const auto work = [&](int64_t n) { return n * out / 4 * ((quads ? in / 4 : small ? 1 : in) * weight.time + 1); };
  const auto pitch = [&](int64_t n) { return (n * in / pack | 1) * pack; };
  int64_t groups = 0;
  for (int64_t n = 1; n <= g.groups; ++n) {
    if (g.groups % n != 0 || (n < g.groups && (n * in % sector != 0 || n * out % sector != 0))) continue;
    const int64_t rows = std::max(tile_rows, 4 * span / g.stride),
                  tile = (rows * g.stride + span) * pitch(n) + rows * n * out;
    if (groups != 0 && (n * std::max(in, out) > slab_channels || work(n) > most_work || tile * element >= most_shared))
      break;
    groups = n;
  }
  const auto fits = [&](int64_t rows) {
    const int64_t of_x = ((rows - 1) * g.stride + span + 1) * pitch(groups);
    return (of_x + rows * groups * out) * element + 16 <= most_shared;
  };
  int64_t rows = std::min(tile_rows, blocks(y.time, 8) * 8);
  while (span * 8 > rows * g.stride && rows < y.time && fits(rows + 64)) rows += 64;
  while (rows > 8 && !fits(rows)) rows /= 2;
  const int64_t sums = weight.elements() + y.channels, bytes = (x.elements() + y.elements()) * element,
                most = std::min({bytes / (64 * sums), x.batch * blocks(y.time, rows), (int64_t{1} << 24) / sums}),
                side_by_side = g.groups / groups * blocks(work(groups), most_work);
  return std::clamp<int64_t>(std::min(blocks(2 * 132, side_by_side), most), 1, 1024);
}

/// Those of the weight: at most 2^24 floats in all, 512 rows of y or more each (the plain kernel: 256). A bias gradient
/// has a part for each block that reads other channels of the other side.
template <class T>
GradientParts gradient_parts(Shape x, Shape weight, Shape y, const Conv1dGeometry& g) {
  const auto blocks = [](int64_t n, int64_t of) { return (n + of - 1) / of; };
  const int64_t weights = weight.elements(), in = x.channels, out = weight.batch,
                by_size = (int64_t{1} << 24) / weights;
  const ConvEngine engine = engine_of<T>(x, weight, g);
  if (engine == ConvEngine::ends) return {};
  if (engine == ConvEngine::groups) {
    const int64_t parts = group_parts(x, weight, y, g, sizeof(T));
    return {parts, parts, column_sum_parts(x), false, true};
  }
  if (engine == ConvEngine::plain && !(g.groups == 1 && in % (16 / sizeof(T)) == 0 && out % (16 / sizeof(T)) == 0))
    return {std::clamp<int64_t>(std::min(y.rows() / 256, by_size), 1, 64), column_sum_parts(y), column_sum_parts(x),
            true, true};
  if (g.stride == 1 && weight.time > 1 && weight.time <= 7 && (weight.time - 1) * g.dilation <= 64) {
    const int64_t most = std::clamp<int64_t>(std::min(x.batch * (x.time + g.left + g.right) / 512, by_size), 1, 1024);
    const int64_t parts = even_parts(blocks(in, 32) * blocks(out, 64), 2, most);
    return {parts, parts * blocks(in, 32), column_sum_parts(x), false, true};
  }
  const int64_t row = weight.time * in;
  const int64_t high = row <= 64    ? (out > 64 ? 128 : 64)
                       : out <= 64  ? 64
                       : out >= 256 ? 256
                                    : 128,
                wide = row <= 64 ? 64 : 128;
  const int64_t most = std::min(y.rows() / 512, by_size);
  const int64_t parts = most < 1 ? 1 : even_parts(blocks(out, high) * blocks(row, wide), high == 256 ? 1 : 2, most);
  // The windows hold each sample of x once.
  const bool once = g.dilation == 1 && g.left + g.stride <= weight.time && x.time == y.time * g.stride;
  return {parts, parts * blocks(row, wide), once ? parts * blocks(out, high) * g.stride : column_sum_parts(x), false,
          !once};
}

}  // namespace nacre
