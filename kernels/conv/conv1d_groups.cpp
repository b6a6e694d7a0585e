#include "conv/conv1d_groups.h"

#include <algorithm>

#include "conv/conv1d_karatsuba_tiles.h"
#include "runtime/host.h"
#include "runtime/lanes.h"

// Narrow groups, along time. Columns::fill() transposes a chunk of rows of neighbouring groups, one column per channel.
// Then a vector is 16 neighbouring rows of one channel, and a product multiplies it by one weight (add_tile) or by a
// vector of dy (add_products). The forward and the input gradient transpose their results back (store). The weight
// gradient keeps a sum for each of the 16 lanes and adds them at the end (add_sums). Why and how fast:
// docs/decisions/grouped-convolutions.md.
namespace nacre::groups {
namespace {

using karatsuba::matrices;

constexpr int lanes = 16;
using Lanes = Vector<lanes>::Type;
constexpr int64_t most_rows = 192;    // of a chunk: its columns stay in the first two caches
constexpr int64_t widest = 16;        // channels of a narrow group (docs/decisions/grouped-convolutions.md)
constexpr int64_t max_depth = 512;    // terms of one chain of additions, where a tap has fewer
constexpr int64_t wanted_parts = 16;  // of a weight gradient, for any number of threads
constexpr int64_t grain = 1 << 14;    // floats that make a thread worth its start

int64_t rounded(int64_t n) { return (n + lanes - 1) / lanes * lanes; }

/// Columns of the rows that one chunk reads. Sample u of the window is element u / stride of part u % stride of its
/// channel's column, so that rows of y, `stride` samples apart, are neighbours.
struct Columns {
  int64_t time = 0, channels = 0;  ///< of an item in memory
  int64_t stride = 1, span = 1, left = 0;
  bool reflect = false;
  int64_t rows = 0;  ///< of a chunk at most, whole vectors

  // part(): floats of one phase; at(): where sample u lies in the column. Row r of y reads sample r stride + k dilation
  // for tap k, which is element at(k dilation) + r: rows are neighbours for every tap.
  int64_t part() const { return rounded(rows + (span - 1) / stride); }
  int64_t column() const { return stride * part(); }
  int64_t at(int64_t u) const { return u % stride * part() + u / stride; }
  /// The place in the item of a sample; -1 for a zero. Samples behind those that are read are zeros, too.
  int64_t source(int64_t u, int64_t begin, int64_t samples) const {
    const int64_t s = begin * stride - left + u;
    if (u >= samples) return -1;
    if (s >= 0 && s < time) return s;
    return !reflect ? -1 : s < 0 ? -s : 2 * (time - 1) - s;
  }
  /// Fills columns [0, n) with channels first ... first + n - 1 for rows begin ... begin + count - 1 of y.
  void fill(const float* item, int64_t first, int64_t n, int64_t begin, int64_t count, float* to) const {
    const int64_t samples = (count - 1) * stride + span, from = begin * stride - left;
    // Blocks of 16 elements of one phase. Where all 16 samples exist, 16 channels at a time are transposed; channels
    // that are left, and blocks that reach into padding or behind the chunk, are copied one by one.
    for (int64_t phase = 0; phase < stride; ++phase)
      for (int64_t j = 0; j < part(); j += lanes) {
        float* const block = to + phase * part() + j;
        const int64_t u = phase + j * stride, last = u + (lanes - 1) * stride;
        int64_t c = 0;
        if (last < samples && from + u >= 0 && from + last < time)
          for (; c + lanes <= n; c += lanes)
            matrices().transpose(item + (from + u) * channels + first + c, stride * channels, block + c * column(),
                                 column());
        if (c == n) continue;
        for (int64_t r = 0; r < lanes; ++r) {
          const int64_t s = source(u + r * stride, begin, samples);
          for (int64_t i = c; i < n; ++i) block[i * column() + r] = s < 0 ? 0.0f : item[s * channels + first + i];
        }
      }
  }
};

// ---- products

/// Adds one slice: y[o] = (first) or += the sum over taps [tap, end) and channels of weight times x, for `outs` outputs
/// and `vectors` vectors of rows. The weight is [tap][channel][output].
template <int outs, int vectors>
NACRE_INLINE void add_tile(const Columns& c, int64_t in, int64_t tap, int64_t end, int64_t dilation, const float* x,
                           const float* weight, bool first, float* const* y) {
  Lanes sums[outs][vectors] = {};
  const int64_t column = c.column();
  const float* w = weight + tap * in * outs;
  for (int64_t k = tap; k < end; ++k) {
    const float* from = x + c.at(k * dilation);
    for (int64_t i = 0; i < in; ++i, from += column, w += outs) {
      Lanes v[vectors];
#pragma GCC unroll 8
      for (int j = 0; j < vectors; ++j) v[j] = at<lanes>(from + j * lanes);
#pragma GCC unroll 4
      for (int o = 0; o < outs; ++o)
#pragma GCC unroll 8
        for (int j = 0; j < vectors; ++j) sums[o][j] += w[o] * v[j];
    }
  }
  for (int o = 0; o < outs; ++o)
    for (int j = 0; j < vectors; ++j) {
      float* const to = y[o] + j * lanes;
      at<lanes>(to) = first ? sums[o][j] : at<lanes>(to) + sums[o][j];
    }
}

/// All rows of a chunk for `outs` outputs; `rows` is a multiple of 16. Slices have whole taps, up to max_depth terms.
/// Rows that fill no tile go by single vectors: each row is its own chain of additions, so its bits do not depend on
/// the tile.
template <int outs, int vectors>
NACRE_INLINE void add_rows(const Columns& c, int64_t in, int64_t taps, int64_t dilation, const float* x,
                           const float* weight, int64_t rows, float* const* y) {
  const int64_t together = std::max<int64_t>(1, max_depth / in);
  for (int64_t r = 0; r < rows;) {
    const bool whole = r + vectors * lanes <= rows;
    float* to[outs];
    for (int o = 0; o < outs; ++o) to[o] = y[o] + r;
    for (int64_t k = 0; k < taps; k += together) {
      const int64_t end = std::min(taps, k + together);
      if (whole)
        add_tile<outs, vectors>(c, in, k, end, dilation, x + r, weight, k == 0, to);
      else
        add_tile<outs, 1>(c, in, k, end, dilation, x + r, weight, k == 0, to);
    }
    r += whole ? vectors * lanes : lanes;
  }
}
// Tiles of 12 accumulators for four and two outputs, of 6 for one.
NACRE_CLONES void add_rows_4(const Columns& c, int64_t in, int64_t taps, int64_t dilation, const float* x,
                             const float* weight, int64_t rows, float* const* y) {
  add_rows<4, 3>(c, in, taps, dilation, x, weight, rows, y);
}
NACRE_CLONES void add_rows_2(const Columns& c, int64_t in, int64_t taps, int64_t dilation, const float* x,
                             const float* weight, int64_t rows, float* const* y) {
  add_rows<2, 6>(c, in, taps, dilation, x, weight, rows, y);
}
NACRE_CLONES void add_rows_1(const Columns& c, int64_t in, int64_t taps, int64_t dilation, const float* x,
                             const float* weight, int64_t rows, float* const* y) {
  add_rows<1, 6>(c, in, taps, dilation, x, weight, rows, y);
}

/// Outputs are computed four at a time, and the rest of a group two and one at a time.
int64_t block_of(int64_t outputs_left) { return outputs_left >= 4 ? 4 : outputs_left >= 2 ? 2 : 1; }

/// How a problem is divided: tasks are chunks of rows of an item by slabs of neighbouring groups.
struct Plan {
  windows::Problem p;
  int64_t in, out, channels;  // of a group: channels of x, outputs (all samples), channels of a sample
  int64_t of_slab, slabs;     // groups
  // Chunks of an item, and the rows of each: whole vectors, of which the last chunk may fill only a part.
  int64_t per_item, rows;
  Columns columns;

  explicit Plan(const windows::Problem& problem)
      : p(problem), in(p.in / p.groups), out(p.out / p.groups), channels(out / p.samples) {
    // So many groups that rows of a slab are whole vectors, which are transposed fast.
    of_slab = std::clamp<int64_t>(lanes / std::min(in, channels), 1, p.groups);
    slabs = (p.groups + of_slab - 1) / of_slab;
    per_item = (p.length + most_rows - 1) / most_rows;
    rows = rounded((p.length + per_item - 1) / per_item);
    per_item = (p.length + rows - 1) / rows;
    columns = {.time = p.time,
               .channels = p.in,
               .stride = p.stride,
               .span = (p.taps - 1) * p.dilation + 1,
               .left = p.left,
               .reflect = p.reflect,
               .rows = rows};
  }
  // Floats: a row of one output's weight; the packed weight of all groups.
  int64_t depth() const { return p.taps * in; }
  int64_t weights() const { return rounded(p.groups * out * depth()); }
  // A thread's columns: of x for the slab, and of the sums of its outputs.
  int64_t slot() const { return of_slab * (in * columns.column() + out * rows); }
};

/// One group's weight in the order in which it is used: [block of outputs][tap][channel][output of the block].
void pack(const Plan& plan, const float* weight, float* to) {
  const windows::Problem& p = plan.p;
  for (int64_t o = 0; o < plan.out;) {
    const int64_t block = block_of(plan.out - o);
    for (int64_t k = 0; k < p.taps; ++k)
      for (int64_t i = 0; i < plan.in; ++i)
        for (int64_t j = o; j < o + block; ++j)
          *to++ =
              p.adjoint ? weight[(i * p.taps + p.taps - 1 - k) * plan.out + j] : weight[(j * p.taps + k) * plan.in + i];
    o += block;
  }
}

/// y[j] = from[j][r] + bias[j] (+ y[j]) for n channels of one row.
NACRE_INLINE void finish_row(const float* from, int64_t step, const float* bias, float* y, int64_t n, bool add) {
  for (int64_t j = 0; j < n; ++j) {
    float v = from[j * step];
    if (bias != nullptr) v += bias[j];
    y[j] = add ? v + y[j] : v;
  }
}

/// Writes columns of sums to rows of y: `n` neighbouring channels, `count` rows.
void store(const float* sums, int64_t step, int64_t n, int64_t count, const float* bias, float* y, int64_t row,
           bool add) {
  float square[lanes * lanes];
  for (int64_t r = 0; r < count; r += lanes) {
    const int64_t existing = std::min<int64_t>(lanes, count - r);
    int64_t c = 0;
    for (; c + lanes <= n; c += lanes) {
      matrices().transpose(sums + c * step + r, step, square, lanes);
      for (int64_t i = 0; i < existing; ++i)
        finish_row(square + i * lanes, 1, bias != nullptr ? bias + c : nullptr, y + (r + i) * row + c, lanes, add);
    }
    for (int64_t i = 0; i < existing; ++i)
      finish_row(sums + c * step + r + i, step, bias != nullptr ? bias + c : nullptr, y + (r + i) * row + c, n - c,
                 add);
  }
}

}  // namespace

bool supports(const windows::Problem& p) {
  return p.groups > 1 && p.in / p.groups <= widest && p.out / p.samples / p.groups <= widest;
}

int64_t scratch(const Context& ctx, const windows::Problem& p) {
  const Plan plan(p);
  return plan.weights() + ctx.threads() * plan.slot();
}

void run(Context& ctx, const windows::Problem& problem, const windows::Arguments& a) {
  const Plan plan(problem);
  const windows::Problem& p = plan.p;
  float *const weights = a.scratch, *const slots = weights + plan.weights();
  const int64_t of_group = plan.out * plan.depth(), all_channels = plan.channels * p.groups;
  parallel_ranges(ctx, p.groups, 1 + grain / of_group, [&](int64_t begin, int64_t end) {
    for (int64_t g = begin; g < end; ++g) pack(plan, a.weight + g * of_group, weights + g * of_group);
  });
  // Each task fills its columns of x once and multiplies them by all groups of the slab. It writes rows and channels of
  // y that no other task writes.
  parallel_parts(ctx, p.batch * plan.per_item * plan.slabs, [&](int64_t task, int thread) {
    const int64_t slab = task % plan.slabs, chunk = task / plan.slabs % plan.per_item,
                  item = task / plan.slabs / plan.per_item;
    const int64_t first = slab * plan.of_slab, count = std::min(plan.of_slab, p.groups - first);
    const int64_t begin = chunk * plan.rows, rows = std::min(plan.rows, p.length - begin), padded = rounded(rows);
    float *const x = slots + thread * plan.slot(), *const sums = x + plan.of_slab * plan.in * plan.columns.column();
    plan.columns.fill(a.x + item * p.time * p.in, first * plan.in, count * plan.in, begin, rows, x);
    for (int64_t g = 0; g < count; ++g) {
      const float* w = weights + (first + g) * of_group;
      const float* const of_x = x + g * plan.in * plan.columns.column();
      for (int64_t o = 0; o < plan.out;) {
        const int64_t block = block_of(plan.out - o);
        // Sums are [sample][group of the slab][channel], as y has them.
        float* y[4];
        for (int64_t j = 0; j < block; ++j)
          y[j] =
              sums + ((o + j) / plan.channels * count * plan.channels + g * plan.channels + (o + j) % plan.channels) *
                         plan.rows;
        (block == 4   ? add_rows_4
         : block == 2 ? add_rows_2
                      : add_rows_1)(plan.columns, plan.in, p.taps, p.dilation, of_x, w, padded, y);
        o += block, w += block * plan.depth();
      }
    }
    for (int64_t s = 0; s < p.samples; ++s)
      store(sums + s * count * plan.channels * plan.rows, plan.rows, count * plan.channels, rows,
            a.bias != nullptr ? a.bias + first * plan.channels : nullptr,
            a.y + (item * p.length + begin) * p.out + s * all_channels + first * plan.channels, p.out, a.add);
  });
}

// ---- weight gradient

namespace {

/// How a weight gradient is divided: tasks are parts of the chunks of rows by slabs of neighbouring groups.
struct WeightPlan {
  int64_t in, out, taps, dilation, groups;
  int64_t of_slab, slabs, per_item, rows, chunks, parts, length;
  Columns x, dy;

  WeightPlan(Shape of_x, Shape weight, Shape of_y, const Conv1dGeometry& g)
      : in(of_x.channels / g.groups),
        out(of_y.channels / g.groups),
        taps(weight.time),
        dilation(g.dilation),
        groups(g.groups),
        length(of_y.time) {
    of_slab = std::clamp<int64_t>(lanes / std::min(in, out), 1, groups);
    slabs = (groups + of_slab - 1) / of_slab;
    per_item = (length + most_rows - 1) / most_rows;
    rows = rounded((length + per_item - 1) / per_item);
    per_item = (length + rows - 1) / rows;
    chunks = of_x.batch * per_item;
    // From the shape alone, and with two chunks or more in each, if there are several.
    parts = std::clamp<int64_t>(std::min(wanted_parts / slabs, chunks / 2), 1, wanted_parts);
    x = {.time = of_x.time,
         .channels = of_x.channels,
         .stride = g.stride,
         .span = (taps - 1) * dilation + 1,
         .left = g.left,
         .reflect = g.padding == Padding::reflect,
         .rows = rows};
    dy = {.time = of_y.time, .channels = of_y.channels, .rows = rows};
  }
  int64_t of_group() const { return out * taps * in; }
  int64_t sums() const { return groups * of_group() * lanes; }  // of a part
  int64_t slot() const { return of_slab * (in * x.column() + out * dy.column()); }
};

/// sums[o sum_o + i sum_i] += the products of all rows of `outs` columns of dy and `ins` of x, one vector each: lane j
/// adds the rows j, j + 16, ... The sums stay in registers over the chunk. In rows that only fill up the last vector dy
/// is zero; x may have samples there that other taps read.
template <int outs, int ins>
NACRE_INLINE void add_products(const float* dy, int64_t dy_column, const float* x, int64_t x_column, int64_t rows,
                               float* sums, int64_t sum_o, int64_t sum_i) {
  Lanes acc[outs][ins];
  for (int o = 0; o < outs; ++o)
    for (int i = 0; i < ins; ++i) acc[o][i] = at<lanes>(sums + o * sum_o + i * sum_i);
  for (int64_t r = 0; r < rows; r += lanes) {
    Lanes v[ins];
#pragma GCC unroll 4
    for (int i = 0; i < ins; ++i) v[i] = at<lanes>(x + i * x_column + r);
#pragma GCC unroll 4
    for (int o = 0; o < outs; ++o) {
      const Lanes w = at<lanes>(dy + o * dy_column + r);
#pragma GCC unroll 4
      for (int i = 0; i < ins; ++i) acc[o][i] += w * v[i];
    }
  }
  for (int o = 0; o < outs; ++o)
    for (int i = 0; i < ins; ++i) at<lanes>(sums + o * sum_o + i * sum_i) = acc[o][i];
}

/// `outs` outputs by all channels of a group: tiles of 4 channels, then single ones.
template <int outs>
NACRE_INLINE void add_channels(const float* dy, int64_t dy_column, const float* x, int64_t x_column, int64_t in,
                               int64_t rows, float* sums, int64_t sum_o) {
  int64_t i = 0;
  for (; i + 4 <= in; i += 4)
    add_products<outs, 4>(dy, dy_column, x + i * x_column, x_column, rows, sums + i * lanes, sum_o, lanes);
  for (; i < in; ++i)
    add_products<outs, 1>(dy, dy_column, x + i * x_column, x_column, rows, sums + i * lanes, sum_o, lanes);
}

/// One group, one tap: all outputs and channels.
NACRE_CLONES void add_tap(const float* dy, int64_t dy_column, int64_t out, const float* x, int64_t x_column, int64_t in,
                          int64_t rows, float* sums, int64_t sum_o) {
  int64_t o = 0;
  for (; o + 4 <= out; o += 4)
    add_channels<4>(dy + o * dy_column, dy_column, x, x_column, in, rows, sums + o * sum_o, sum_o);
  for (; o < out; ++o) add_channels<1>(dy + o * dy_column, dy_column, x, x_column, in, rows, sums + o * sum_o, sum_o);
}

/// to[w] += the sum of all lanes and parts: first each lane over the parts in order, then the 16 lanes in order.
NACRE_CLONES void add_sums(const float* __restrict sums, int64_t parts, int64_t of_part, int64_t n,
                           float* __restrict to) {
  for (int64_t w = 0; w < n; ++w) {
    float lane[lanes];
    for (int j = 0; j < lanes; ++j) lane[j] = sums[w * lanes + j];
    for (int64_t p = 1; p < parts; ++p)
      for (int j = 0; j < lanes; ++j) lane[j] += sums[p * of_part + w * lanes + j];
    float sum = 0;
    for (int j = 0; j < lanes; ++j) sum += lane[j];
    to[w] += sum;
  }
}

}  // namespace

bool supports_weight_gradient(Shape x, Shape weight, const Conv1dGeometry& g) {
  // Long taps have many sums per row of a chunk, which are read and written once per chunk.
  const int64_t wider = std::max(x.channels, weight.batch) / g.groups;
  return g.groups > 1 && (wider <= widest / 2 || (wider <= widest && weight.time <= widest));
}

int64_t weight_gradient_scratch(const Context& ctx, Shape x, Shape weight, Shape y, const Conv1dGeometry& g) {
  const WeightPlan plan(x, weight, y, g);
  return plan.parts * plan.sums() + ctx.threads() * plan.slot();
}

void weight_gradient(Context& ctx, const float* x, Shape of_x, const float* dy, Shape of_y, const Conv1dGeometry& g,
                     View<float> dweight, float* scratch) {
  const WeightPlan plan(of_x, dweight.shape, of_y, g);
  float* const slots = scratch + plan.parts * plan.sums();
  parallel_parts(ctx, plan.parts * plan.slabs, [&](int64_t task, int thread) {
    const int64_t slab = task % plan.slabs, part = task / plan.slabs;
    const int64_t first = slab * plan.of_slab, count = std::min(plan.of_slab, plan.groups - first);
    float *const xs = slots + thread * plan.slot(), *const dys = xs + plan.of_slab * plan.in * plan.x.column();
    float* const sums = scratch + part * plan.sums() + first * plan.of_group() * lanes;
    std::fill_n(sums, count * plan.of_group() * lanes, 0.0f);
    // The chunks of the part, one after the other, add to the same sums. x and dy are transposed once per chunk, for
    // all taps.
    for (int64_t c = plan.chunks * part / plan.parts; c < plan.chunks * (part + 1) / plan.parts; ++c) {
      const int64_t item = c / plan.per_item, begin = c % plan.per_item * plan.rows,
                    rows = std::min(plan.rows, plan.length - begin);
      plan.x.fill(x + item * of_x.time * of_x.channels, first * plan.in, count * plan.in, begin, rows, xs);
      plan.dy.fill(dy + item * of_y.time * of_y.channels, first * plan.out, count * plan.out, begin, rows, dys);
      for (int64_t i = 0; i < count; ++i)
        for (int64_t k = 0; k < plan.taps; ++k)
          add_tap(dys + i * plan.out * plan.dy.column(), plan.dy.column(), plan.out,
                  xs + i * plan.in * plan.x.column() + plan.x.at(k * plan.dilation), plan.x.column(), plan.in,
                  rounded(rows), sums + (i * plan.of_group() + k * plan.in) * lanes, plan.taps * plan.in * lanes);
    }
  });
  parallel_ranges(ctx, dweight.elements(), 1 + grain / (lanes * plan.parts), [&](int64_t begin, int64_t end) {
    add_sums(scratch + begin * lanes, plan.parts, plan.sums(), end - begin, dweight.data + begin);
  });
}

}  // namespace nacre::groups
