#include "conv/conv1d_pointwise.h"

#include <cstring>

#include "conv/conv1d_karatsuba_tiles.h"
#include "runtime/host.h"

// One matrix product over all rows: y [rows][out] = x [rows][in] times the weight, in blocks of 96 rows, for the
// forward and (with the weight transposed) for the input gradient. Scratch holds the weight laid out in panels, which
// all threads read, and then a slot for each thread. With Snake the slot holds the activated rows of a block, with
// Snake's slope the rows of g and the sums for alpha and beta, so neither is ever written to a whole tensor.
namespace nacre::pointwise {
namespace {

using karatsuba::matrices;
using karatsuba::panel;

constexpr int64_t block = 96;          // rows
constexpr int64_t blocks_of_part = 8;  // blocks that share one partial sum for Snake's parameters

/// Arguments of product().
struct Factors {
  const float* x;
  int64_t rows, in, out;
  const float* weight;
  bool transposed;  ///< the weight is [in][out] instead of [out][in]
  const float *bias, *add;
  float* y;
  const SnakeRows* snake = nullptr;   ///< applied to x first
  const SnakeSlope* slope = nullptr;  ///< y is only passed on as g: it is not stored, and add is not used
};
/// Floats of scratch per thread.
int64_t slot_of(int64_t in, int64_t out, bool snake, bool slope) {
  return (snake ? block * in : 0) + (slope ? block * out + SnakeRows::sums(out) : 0);
}

/// y = x * weight + bias + add. A unit is a block, or with `slope` the eight blocks that share one partial sum. The
/// number of units depends on the rows alone, and a unit runs on one thread, so the bits do not depend on the number of
/// threads.
void product(Context& ctx, const Factors& f, float* scratch) {
  const auto& matrix = matrices();
  const int64_t in = f.in, out = f.out;
  // The weight is laid out as [panel of outputs][in][outputs of the panel].
  parallel_ranges(ctx, out / 16, 1 + (1 << 14) / (16 * in), [&](int64_t from, int64_t to) {
    for (int64_t o = from * 16; o < to * 16; o += 16) {
      const int64_t column = o / panel * panel, width = std::min(panel, out - column);
      float* const of_column = scratch + column * in + (o - column);
      for (int64_t i = 0; i < in; i += f.transposed ? 1 : 16) {
        if (f.transposed)
          std::memcpy(of_column + i * width, f.weight + i * out + o, 16 * sizeof(float));
        else
          matrix.transpose(f.weight + o * in + i, in, of_column + i * width, width);
      }
    }
  });
  const int64_t slot = slot_of(in, out, f.snake != nullptr, f.slope != nullptr);
  const int64_t unit = f.slope != nullptr ? block * blocks_of_part : block, units = (f.rows + unit - 1) / unit;
  parallel_ranges(ctx, units, 1 + (1 << 16) / (unit * in * out), [&](int64_t first, int64_t last, int thread) {
    float* const local = scratch + in * out + thread * slot;
    float* const partials = f.slope != nullptr && f.slope->partials != nullptr ? local + block * out : nullptr;
    for (int64_t u = first; u < last; ++u) {
      if (partials != nullptr) f.slope->rows.clear(partials);
      const int64_t end = std::min((u + 1) * unit, f.rows);
      for (int64_t r = u * unit; r < end; r += block) {
        const int64_t rows = std::min(block, end - r);
        const float* x = f.x + r * in;
        if (f.snake != nullptr) f.snake->forward(x, local, rows), x = local;
        float* const y = f.slope != nullptr ? local : f.y + r * out;
        // All panels of a block, while its rows of x are in cache.
        for (int64_t j = 0; j < out; j += panel)
          matrix.multiply_all({.a = x, .row = in}, scratch + j * in, std::min(panel, out - j), in,
                              f.bias != nullptr ? f.bias + j : nullptr,
                              f.add != nullptr ? f.add + r * out + j : nullptr, y + j, out, rows);
        if (f.slope != nullptr)
          f.slope->rows.backward(f.slope->x + r * out, local, f.slope->dx == nullptr ? nullptr : f.slope->dx + r * out,
                                 f.slope->add, rows, partials);
      }
      if (partials != nullptr) f.slope->rows.add_up(partials, f.slope->partials + u * 2 * out);
    }
  });
}

}  // namespace

int64_t forward_scratch(const Context& ctx, Shape weight, bool snake) {
  return weight.elements() + ctx.threads() * slot_of(weight.channels, weight.batch, snake, false);
}
void forward(Context& ctx, const Conv1dForward<float>& a, float* scratch, const SnakeRows* snake) {
  product(ctx,
          {.x = a.x.data,
           .rows = a.x.shape.rows(),
           .in = a.x.shape.channels,
           .out = a.y.shape.channels,
           .weight = a.weight.data,
           .transposed = false,
           .bias = a.bias.data,
           .add = a.residual.data,
           .y = a.y.data,
           .snake = snake},
          scratch);
}

int64_t input_gradient_scratch(const Context& ctx, Shape weight, bool slope) {
  return weight.elements() + ctx.threads() * slot_of(weight.batch, weight.channels, false, slope);
}
int64_t slope_parts(Shape dx) { return (dx.rows() + block * blocks_of_part - 1) / (block * blocks_of_part); }
void input_gradient(Context& ctx, const Conv1dInputGradient<float>& a, float* scratch, const SnakeSlope* slope) {
  product(ctx,
          {.x = a.dy.data,
           .rows = a.dy.shape.rows(),
           .in = a.dy.shape.channels,
           .out = a.dx.shape.channels,
           .weight = a.weight.data,
           .transposed = true,
           .bias = a.bias.data,
           .add = a.add_dx ? a.dx.data : nullptr,
           .y = a.dx.data,
           .slope = slope},
          scratch);
}

}  // namespace nacre::pointwise
