#include "conv1d_karatsuba.h"

#include <cstring>

#include "conv1d_karatsuba_tiles.h"
#include "host.h"

namespace nacre::karatsuba {
namespace {

constexpr int64_t slice = 64;  // outputs of a weight gradient that one task takes

/// A row of zeros as wide as any that is looked at.
constexpr int64_t widest = 4096;
alignas(64) const float zero_row[widest] = {};

/// Tiles of 8 outputs, `dilation` rows apart: first those of one phase, then the next phase's, then the next item's.
struct Tiles {
  int64_t batch, time, length, dilation, left;
  Padding padding;
  int64_t phases, per_phase, count;

  Tiles(Shape x, Shape y, int64_t dilated, int64_t before, Padding pad)
      : batch(x.batch), time(x.time), length(y.time), dilation(dilated), left(before), padding(pad) {
    phases = std::min(dilation, length);
    per_phase = ((length + dilation - 1) / dilation + rows_out - 1) / rows_out;
    count = batch * phases * per_phase;
  }
  /// Share of the outputs computed that exist.
  double use() const { return static_cast<double>(batch * length) / static_cast<double>(count * rows_out); }
  int64_t item(int64_t tile) const { return tile / (phases * per_phase); }
  int64_t first(int64_t tile) const {
    return tile / per_phase % phases + tile % per_phase * rows_out * dilation;
  }
  /// The rows of x under a tile; `zeros` where there are none.
  void inputs(int64_t tile, const float* x, int64_t channels, const float* zeros, const float** rows) const {
    if (tile >= count) return void(std::fill(rows, rows + rows_in, zeros));
    const float* const of_item = x + item(tile) * time * channels;
    int64_t at = first(tile) - left;
    for (int r = 0; r < rows_in; ++r, at += dilation) {
      int64_t s = at;
      if (padding == Padding::reflect) s = s < 0 ? -s : s >= time ? 2 * (time - 1) - s : s;
      rows[r] = s >= 0 && s < time ? of_item + s * channels : zeros;
    }
  }
  /// The rows of y of a tile; `missing` where there are none.
  template <class F>
  void outputs(int64_t tile, F* y, int64_t channels, F* missing, F** rows) const {
    F* const of_item = y + item(tile) * length * channels;
    int64_t t = first(tile);
    for (int r = 0; r < rows_out; ++r, t += dilation) rows[r] = t < length ? of_item + t * channels : missing;
  }
};

/// Factors and products of a group of tiles lie together, [product][tile][channels]: 26 streams are written or read at
/// a time, which must not meet in one set of the first-level cache, nor lie in more pages than it can keep.
struct Groups {
  int64_t tiles, channels;
  int64_t of_product() const { return tiles * channels + 16; }
  int64_t step() const { return products * of_product(); }
};
/// Where product p of a whole weight begins: likewise.
int64_t apart(int64_t floats) { return floats / 64 * 64 + (floats % 64 > 16 ? 80 : 16); }

struct ProductPlan {
  Tiles tiles;
  int64_t in, out, block, blocks;  // groups of a block
  Groups x, y;
  ProductPlan(Shape of_x, Shape of_y, int64_t dilation, int64_t left, Padding padding)
      : tiles(of_x, of_y, dilation, left, padding), in(of_x.channels), out(of_y.channels) {
    const int64_t rows = out <= 32 ? 12 : 6;
    x = {rows, in}, y = {rows, out};
    // As many as the weights are worth reading for, and for two and four threads alike.
    const int64_t groups = (tiles.count + rows - 1) / rows, most = std::max<int64_t>(512 / (in + out), 4);
    const int64_t wanted = ((groups + most - 1) / most + 3) / 4 * 4;
    block = (groups + wanted - 1) / wanted;
    blocks = (groups + block - 1) / block;
  }
  int64_t weights() const { return products * apart(in * out); }
  int64_t slot() const { return block * (x.step() + y.step()); }
};

/// Factors of the weight, [product][panel of outputs][in][outputs of the panel], for outputs [begin, begin + 16).
void spread_weight(const Product& a, int64_t in, int64_t out, int64_t begin, float* to) {
  const Loops& loop = loops();
  const int64_t column = begin / panel * panel, width = std::min(panel, out - column), step = apart(in * out);
  float* const of_column = to + column * in + (begin - column);
  const float* rows[rows_out] = {};
  if (a.turned) {  // weight [in][taps][out]
    for (int64_t i = 0; i < in; ++i) {
      for (int k = 0; k < taps; ++k) rows[k] = a.weight.data + (i * taps + taps - 1 - k) * out + begin;
      loop.spread(rows, 16, of_column + i * width, step);
    }
    return;
  }
  alignas(64) float square[taps][16][16];  // weight [out][taps][in]
  for (int64_t i = 0; i < in; i += 16) {
    for (int k = 0; k < taps; ++k)
      loop.transpose(a.weight.data + (begin * taps + k) * in + i, taps * in, square[k][0], 16);
    for (int64_t j = 0; j < 16; ++j) {
      for (int k = 0; k < taps; ++k) rows[k] = square[k][j];
      loop.spread(rows, 16, of_column + (i + j) * width, step);
    }
  }
}

struct GradientPlan {
  Tiles tiles;
  int64_t in, out, block, parts, slices;
  Groups x, y;
  GradientPlan(Shape of_x, Shape of_y, int64_t dilation, int64_t left, Padding padding)
      : tiles(of_x, of_y, dilation, left, padding), in(of_x.channels), out(of_y.channels) {
    x = {depth_of_group, in}, y = {depth_of_group, slice};
    block = in <= 64 ? 6 : 3;
    slices = (out + slice - 1) / slice;
    parts = std::clamp<int64_t>(tiles.count / 512, std::max<int64_t>(4 / slices, 1), 16);
  }
  int64_t sums() const { return products * apart(in * out); }
  int64_t slot() const { return block * (x.step() + y.step()); }
};

}  // namespace

bool takes(Shape x, Shape y, Shape weight, const Conv1dGeometry& g) {
  if (g.stride != 1 || g.groups != 1 || weight.time != taps) return false;
  if (x.channels % 16 != 0 || y.channels % 16 != 0 || std::min(x.channels, y.channels) < 32) return false;
  if (std::max(x.channels, y.channels) > widest) return false;
  const Tiles tiles(x, y, g.dilation, 0, g.padding);
  return tiles.use() >= 0.75 && tiles.count >= 48;
}

int64_t product_scratch(const Context& ctx, Shape x, Shape y, int64_t dilation) {
  const ProductPlan plan(x, y, dilation, 0, Padding::zero);
  return plan.weights() + ctx.threads() * plan.slot();
}

void product(Context& ctx, const Product& a, float* scratch) {
  const ProductPlan plan(a.x.shape, a.y.shape, a.dilation, a.left, a.padding);
  const Tiles& tiles = plan.tiles;
  const Loops& loop = loops();
  const int64_t in = plan.in, out = plan.out;
  parallel_parts(ctx, out / 16, [&](int64_t o) { spread_weight(a, in, out, o * 16, scratch); });
  float* const slots = scratch + plan.weights();
  parallel_parts(ctx, plan.blocks, [&](int64_t block) {
    const int64_t rows = plan.x.tiles, begin = block * plan.block * rows;
    const int64_t groups = std::min(plan.block, (tiles.count - begin + rows - 1) / rows);
    float* const factors = slots + omp_get_thread_num() * plan.slot();
    float* const sums = factors + plan.block * plan.x.step();
    for (int64_t t = 0; t < groups * rows; ++t) {
      const float* from[rows_in];
      tiles.inputs(begin + t, a.x.data, in, zero_row, from);
      loop.split(from, in, factors + t / rows * plan.x.step() + t % rows * in, plan.x.of_product());
    }
    for (int p = 0; p < products; ++p)
      for (int64_t j = 0; j < out; j += panel)
        loop.multiply(factors + p * plan.x.of_product(), in, plan.x.step(), scratch + p * apart(in * out) + j * in,
                      std::min(panel, out - j), in, sums + p * plan.y.of_product() + j, out, plan.y.step(), rows,
                      groups);
    for (int64_t t = 0; t < std::min(groups * rows, tiles.count - begin); ++t) {
      float* to[rows_out];
      const float* added[rows_out];
      tiles.outputs<float>(begin + t, a.y.data, out, nullptr, to);
      if (a.add) tiles.outputs<const float>(begin + t, a.add.data, out, nullptr, added);
      loop.gather(sums + t / rows * plan.y.step() + t % rows * out, plan.y.of_product(), out, a.bias.data,
                  a.add ? added : nullptr, to);
    }
  });
}

int64_t weight_gradient_scratch(const Context& ctx, Shape x, Shape y, int64_t dilation) {
  const GradientPlan plan(x, y, dilation, 0, Padding::zero);
  return plan.parts * plan.sums() + ctx.threads() * plan.slot();
}

void weight_gradient(Context& ctx, const Conv1dWeightGradient<float>& a, float* scratch) {
  const Conv1dGeometry& g = a.geometry;
  const GradientPlan plan(a.x.shape, a.dy.shape, g.dilation, g.left, g.padding);
  const Tiles& tiles = plan.tiles;
  const Loops& loop = loops();
  const int64_t in = plan.in, out = plan.out, parts = plan.parts;
  float* const slots = scratch + parts * plan.sums();
  // sums: [part][product][out][in]
  parallel_parts(ctx, parts * plan.slices, [&](int64_t task) {
    const int64_t part = task / plan.slices, from = task % plan.slices * slice, outs = std::min(slice, out - from);
    const int64_t end = tiles.count * (part + 1) / parts, most = plan.block * depth_of_group;
    float* const xs = slots + omp_get_thread_num() * plan.slot();
    float* const dys = xs + plan.block * plan.x.step();
    float* const sums = scratch + part * plan.sums() + from * in;
    bool add = false;
    for (int64_t begin = tiles.count * part / parts; begin < end; begin += most, add = true) {
      const int64_t n = std::min(most, end - begin), groups = (n + depth_of_group - 1) / depth_of_group;
      for (int64_t t = 0; t < groups * depth_of_group; ++t) {
        const int64_t group = t / depth_of_group, row = t % depth_of_group;
        const float* rows[rows_in];
        tiles.inputs(begin + t, a.x.data, in, zero_row, rows);
        for (int64_t j = 0; j < in; j += panel) {
          const int64_t width = std::min(panel, in - j);
          loop.split(rows, width, xs + group * plan.x.step() + j * depth_of_group + row * width, plan.x.of_product());
          for (int r = 0; r < rows_in; ++r) rows[r] += width;
        }
        if (t < n)
          tiles.outputs<const float>(begin + t, a.dy.data + from, out, zero_row, rows);
        else
          std::fill(rows, rows + rows_out, zero_row);
        loop.spread(rows, outs, dys + group * plan.y.step() + row * slice, plan.y.of_product());
      }
      for (int p = 0; p < products; ++p)
        for (int64_t j = 0; j < in; j += panel)
          loop.multiply_across(dys + p * plan.y.of_product(), slice, plan.y.step(), outs,
                               xs + p * plan.x.of_product() + j * depth_of_group, std::min(panel, in - j),
                               plan.x.step(), groups, sums + p * apart(in * out) + j, in, add);
    }
  });
  parallel_ranges(ctx, out, 1 + (1 << 14) / (products * in), [&](int64_t begin, int64_t end) {
    for (int64_t o = begin; o < end; ++o)
      loop.gather_taps(scratch + o * in, apart(in * out), parts, plan.sums(), in, a.dweight.data + o * taps * in, in);
  });
}

}  // namespace nacre::karatsuba
