#include "conv/conv1d_blocks.h"

#include "conv/conv1d_karatsuba_tiles.h"
#include "runtime/host.h"

namespace nacre::blocks {
namespace {

using karatsuba::depth_of_group;
using karatsuba::matrices;

// A task computes a block of the weight, one tap of up to 128 outputs and 256 inputs, summed over its rows. It first
// copies chunks of rows: x in columns of 64 channels, dy in columns of 16. So tiles of 16 outputs by 64 inputs read 32
// KiB of x, which stay in the first-level cache for all outputs, and 8 KiB of dy. Read in place, rows that are hundreds
// of bytes apart would map to few sets of that cache.
constexpr int64_t max_rows = 128, max_outs = 128, max_ins = 256, min_ins = 64;
constexpr int64_t x_column = 64, dy_column = 16;
constexpr int64_t wanted_tasks = 16;  // for any number of threads, so that bits do not depend on it
constexpr int64_t max_sums = 1 << 20;
constexpr int64_t narrow_channels = 96;  // channels: 128 such rows map to enough sets of the cache

/// Tasks are blocks of the weight (tap, range of outputs, range of inputs) by parts of the rows, whose number follows
/// from the shape alone. Scratch: with several parts a copy of the weight for each, and then a slot per thread,
/// [rows][ins] of x and [rows][128] of dy.
struct Plan {
  int64_t rows, out_blocks, ins, in_blocks, taps, parts, weights;

  Plan(Shape x, Shape weight, Shape y)
      : rows(y.rows()),
        out_blocks((y.channels + max_outs - 1) / max_outs),
        ins(max_ins),
        taps(weight.time),
        weights(weight.elements()) {
    in_blocks = (x.channels + ins - 1) / ins;
    // Parts of the rows, only if there are fewer blocks than tasks wanted, and if a part has a whole chunk and the sums
    // of all parts stay small.
    const int64_t most = std::min((rows + max_rows - 1) / max_rows, max_sums / weights);
    parts = std::clamp<int64_t>(std::min(wanted_tasks / blocks(), most), 1, wanted_tasks);
    // Smaller blocks copy more per product, so they are used only where there are too few tasks.
    while (ins > min_ins && blocks() * parts < wanted_tasks / 2) ins /= 2, in_blocks = (x.channels + ins - 1) / ins;
  }
  int64_t blocks() const { return out_blocks * taps * in_blocks; }
  int64_t slot() const { return max_rows * (ins + max_outs); }
  int64_t sums() const { return parts == 1 ? 0 : parts * weights; }
};

constexpr float zeros[std::max(max_ins, max_outs)] = {};

/// Finds the sample of x, from channel `first` on, that tap k multiplies for row r of y, counted over all items.
struct Gather {
  const float* x;
  int64_t time, channels, length, stride, shift;  // shift: k dilation - left
  Padding padding;
  const float* row(int64_t r, int64_t first) const {
    int64_t s = r % length * stride + shift;
    if (padding == Padding::reflect) s = s < 0 ? -s : s >= time ? 2 * (time - 1) - s : s;
    return s < 0 || s >= time ? zeros : x + (r / length * time + s) * channels + first;
  }
};

typedef float Sixteen __attribute__((vector_size(64), aligned(4), may_alias));

/// Copies `width` floats of every row (a multiple of 16) into columns of `column` floats (16 or more), one after the
/// other. A column is contiguous over its rows. Each row is read from begin to end, for the hardware's prefetcher.
NACRE_CLONES void write_columns(const float* const* rows, int64_t n, int64_t width, int64_t column, float* to) {
  const int64_t whole = width / column * column, rest = width - whole;
  for (int64_t r = 0; r < n; ++r) {
    const float* const row = rows[r];
    for (int64_t j = 0; j < whole; j += column)
      for (int64_t i = 0; i < column; i += 16)
        *reinterpret_cast<Sixteen*>(to + j * n + r * column + i) = *reinterpret_cast<const Sixteen*>(row + j + i);
    for (int64_t i = 0; i < rest; i += 16)
      *reinterpret_cast<Sixteen*>(to + whole * n + r * rest + i) = *reinterpret_cast<const Sixteen*>(row + whole + i);
  }
}

/// to += all parts, one after the other.
NACRE_CLONES void add_parts(const float* __restrict from, int64_t parts, int64_t step, float* __restrict to,
                            int64_t n) {
  for (int64_t p = 0; p < parts; ++p, from += step)
    for (int64_t i = 0; i < n; ++i) to[i] += from[i];
}

}  // namespace

int64_t weight_gradient_scratch(const Context& ctx, Shape x, Shape weight, Shape y) {
  const Plan plan(x, weight, y);
  return plan.sums() + ctx.threads() * plan.slot();
}

void weight_gradient(Context& ctx, const Conv1dWeightGradient<float>& a, float* scratch) {
  const Shape x = a.x.shape, y = a.dy.shape;
  const Conv1dGeometry& g = a.geometry;
  const Plan plan(x, a.dweight.shape, y);
  float* const slots = scratch + plan.sums();
  parallel_parts(ctx, plan.blocks() * plan.parts, [&](int64_t task, int thread) {
    // Neighbouring tasks are parts of the same block. Without parts, sums go straight to dweight (+=); with parts, each
    // has its own copy of the weight in scratch, and these are added in order at the end.
    const int64_t part = task % plan.parts, block = task / plan.parts;
    const int64_t i0 = block % plan.in_blocks * plan.ins, ins = std::min(plan.ins, x.channels - i0);
    const int64_t k = block / plan.in_blocks % plan.taps;
    const int64_t o0 = block / plan.in_blocks / plan.taps * max_outs, outs = std::min(max_outs, y.channels - o0);
    // The tap is fixed in a task, so a row of y has one row of x.
    const Gather gather{.x = a.x.data,
                        .time = x.time,
                        .channels = x.channels,
                        .length = y.time,
                        .stride = g.stride,
                        .shift = k * g.dilation - g.left,
                        .padding = g.padding};
    float* const xs = slots + thread * plan.slot();
    float* const dys = xs + max_rows * plan.ins;
    float* const sums =
        (plan.parts == 1 ? a.dweight.data : scratch + part * plan.weights) + (o0 * plan.taps + k) * x.channels + i0;
    const int64_t end = plan.rows * (part + 1) / plan.parts, step = plan.taps * x.channels;
    bool add = plan.parts == 1;
    int64_t begin = plan.rows * part / plan.parts;
    for (int64_t left = (end - begin + max_rows - 1) / max_rows, rows; left > 0; --left, begin += rows, add = true) {
      // Chunks of nearly equal size, so that the last one is not tiny. Rows up to a whole group are zeros.
      rows = (end - begin + left - 1) / left;
      const int64_t groups = (rows + depth_of_group - 1) / depth_of_group, padded_rows = groups * depth_of_group;
      const float* from[max_rows];
      for (int64_t r = 0; r < padded_rows; ++r) from[r] = r < rows ? gather.row(begin + r, i0) : zeros;
      write_columns(from, padded_rows, ins, x_column, xs);
      // Narrow rows of dy are read in place, except for those of an incomplete last group.
      const float* const dy = a.dy.data + begin * y.channels + o0;
      const int64_t in_place_groups = y.channels <= narrow_channels ? rows / depth_of_group : 0,
                    copied_groups = groups - in_place_groups;
      for (int64_t r = in_place_groups * depth_of_group; r < padded_rows; ++r)
        from[r] = r < rows ? dy + r * y.channels : zeros;
      write_columns(from + in_place_groups * depth_of_group, copied_groups * depth_of_group, outs, dy_column, dys);
      // Tiles: x column by column, and for each all outputs, first the groups read in place, then the copied ones.
      const auto& multiply_across = matrices().multiply_across;
      for (int64_t j = 0; j < ins; j += x_column) {
        const int64_t width = std::min(x_column, ins - j), x_group = width * depth_of_group;
        float* const to = sums + j;
        if (in_place_groups > 0)
          multiply_across(dy, y.channels, y.channels * depth_of_group, outs, xs + j * padded_rows, width, x_group,
                          in_place_groups, to, step, add);
        for (int64_t m = 0; m < outs && copied_groups > 0; m += dy_column)
          multiply_across(dys + m * copied_groups * depth_of_group, dy_column, dy_column * depth_of_group, dy_column,
                          xs + j * padded_rows + in_place_groups * x_group, width, x_group, copied_groups,
                          to + m * step, step, add || in_place_groups > 0);
      }
    }
  });
  if (plan.parts == 1) return;
  parallel_ranges(ctx, plan.weights, 1 << 13, [&](int64_t begin, int64_t end) {
    add_parts(scratch + begin, plan.parts, plan.weights, a.dweight.data + begin, end - begin);
  });
}

}  // namespace nacre::blocks
