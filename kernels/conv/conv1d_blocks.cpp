#include "conv/conv1d_blocks.h"

#include "conv/conv1d_karatsuba_tiles.h"
#include "runtime/host.h"

namespace nacre::blocks {
namespace {

using karatsuba::depth_of_group;
using karatsuba::matrices;

// A task owns a block of the weight, one tap of up to 128 outputs and 256 inputs, and sums it over its rows. Chunks of
// rows are written out first: x in columns of 64 channels, dy in columns of 16, so that tiles of 16 outputs by 64
// inputs read 32 KiB of x, which the first-level cache keeps for all outputs, and 8 KiB of dy. Rows where they lie,
// hundreds of bytes apart, would fall into few sets of that cache.
constexpr int64_t most_rows = 128, most_outs = 128, most_ins = 256, least_ins = 64;
constexpr int64_t x_column = 64, dy_column = 16;
constexpr int64_t wanted_tasks = 16;  // whatever the number of threads
constexpr int64_t most_sums = 1 << 20;
constexpr int64_t narrow = 96;  // channels: 128 rows of them fall into enough sets

struct Plan {
  int64_t rows, out_blocks, ins, in_blocks, taps, parts, weights;

  Plan(Shape x, Shape weight, Shape y)
      : rows(y.rows()),
        out_blocks((y.channels + most_outs - 1) / most_outs),
        ins(most_ins),
        taps(weight.time),
        weights(weight.elements()) {
    in_blocks = (x.channels + ins - 1) / ins;
    const int64_t most = std::min((rows + most_rows - 1) / most_rows, most_sums / weights);
    parts = std::clamp<int64_t>(std::min(wanted_tasks / blocks(), most), 1, wanted_tasks);
    // Smaller blocks write out more for what they multiply.
    while (ins > least_ins && blocks() * parts < wanted_tasks / 2) ins /= 2, in_blocks = (x.channels + ins - 1) / ins;
  }
  int64_t blocks() const { return out_blocks * taps * in_blocks; }
  int64_t slot() const { return most_rows * (ins + most_outs); }
  int64_t sums() const { return parts == 1 ? 0 : parts * weights; }
};

constexpr float zeros[std::max(most_ins, most_outs)] = {};

/// Where row `r` of y, counted over all items, has its sample of x under tap k, from channel `first` on.
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

/// `width` floats of every row, a multiple of 16, to columns of `column`, 16 or more, one behind the other; a column
/// has its rows together. Rows are read in one go, as the hardware fetches ahead.
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

NACRE_CLONES void add_parts(const float* __restrict from, int64_t parts, int64_t step, float* __restrict to,
                            int64_t n) {
  for (int64_t p = 0; p < parts; ++p, from += step)
    for (int64_t i = 0; i < n; ++i) to[i] += from[i];
}

}  // namespace

// Measured (docs/decisions/conv1d-cpu-loops-by-shape.md): elsewhere short items make short chunks, whose sums are
// added up too often, and a wide pointwise layer uses what is written out only once.
bool takes(Shape x, Shape weight, Shape y, const Conv1dGeometry& g) {
  return g.groups == 1 && x.channels % 16 == 0 && y.channels % 16 == 0 &&
         (weight.time == 1 ? x.channels >= 64 : y.time < 64);
}

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
    const int64_t part = task % plan.parts, block = task / plan.parts;
    const int64_t i0 = block % plan.in_blocks * plan.ins, ins = std::min(plan.ins, x.channels - i0);
    const int64_t k = block / plan.in_blocks % plan.taps;
    const int64_t o0 = block / plan.in_blocks / plan.taps * most_outs, outs = std::min(most_outs, y.channels - o0);
    const Gather gather{.x = a.x.data,
                        .time = x.time,
                        .channels = x.channels,
                        .length = y.time,
                        .stride = g.stride,
                        .shift = k * g.dilation - g.left,
                        .padding = g.padding};
    float* const xs = slots + thread * plan.slot();
    float* const dys = xs + most_rows * plan.ins;
    float* const sums =
        (plan.parts == 1 ? a.dweight.data : scratch + part * plan.weights) + (o0 * plan.taps + k) * x.channels + i0;
    const int64_t end = plan.rows * (part + 1) / plan.parts, step = plan.taps * x.channels;
    bool add = plan.parts == 1;
    int64_t begin = plan.rows * part / plan.parts;
    for (int64_t left = (end - begin + most_rows - 1) / most_rows, rows; left > 0; --left, begin += rows, add = true) {
      rows = (end - begin + left - 1) / left;
      const int64_t groups = (rows + depth_of_group - 1) / depth_of_group, whole = groups * depth_of_group;
      const float* from[most_rows];
      for (int64_t r = 0; r < whole; ++r) from[r] = r < rows ? gather.row(begin + r, i0) : zeros;
      write_columns(from, whole, ins, x_column, xs);
      // Narrow rows of dy are read where they lie, but for those of a group that is not full.
      const float* const dy = a.dy.data + begin * y.channels + o0;
      const int64_t lying = y.channels <= narrow ? rows / depth_of_group : 0, written = groups - lying;
      for (int64_t r = lying * depth_of_group; r < whole; ++r) from[r] = r < rows ? dy + r * y.channels : zeros;
      write_columns(from + lying * depth_of_group, written * depth_of_group, outs, dy_column, dys);
      const auto& across = matrices().multiply_across;
      for (int64_t j = 0; j < ins; j += x_column) {
        const int64_t width = std::min(x_column, ins - j), x_group = width * depth_of_group;
        float* const to = sums + j;
        if (lying > 0)
          across(dy, y.channels, y.channels * depth_of_group, outs, xs + j * whole, width, x_group, lying, to, step,
                 add);
        for (int64_t m = 0; m < outs && written > 0; m += dy_column)
          across(dys + m * written * depth_of_group, dy_column, dy_column * depth_of_group, dy_column,
                 xs + j * whole + lying * x_group, width, x_group, written, to + m * step, step, add || lying > 0);
      }
    }
  });
  if (plan.parts == 1) return;
  parallel_ranges(ctx, plan.weights, 1 << 13, [&](int64_t begin, int64_t end) {
    add_parts(scratch + begin, plan.parts, plan.weights, a.dweight.data + begin, end - begin);
  });
}

}  // namespace nacre::blocks
