#include "conv/choose.h"

#include <algorithm>
#include <type_traits>

#include "conv/conv1d_blocks.h"
#include "conv/conv1d_column_sums.h"
#include "conv/conv1d_direct.h"
#include "conv/conv1d_groups.h"
#include "conv/conv1d_karatsuba.h"
#include "conv/conv1d_pointwise.h"
#include "nacre/ops/snake.h"

// The rules rest on measurements (docs/decisions/conv1d-cpu-loops-by-shape.md, conv1d-fewer-products.md and
// conv1d-one-tap.md). The rules of conv1d_karatsuba.cpp count tiles and are therefore in that file.
namespace nacre::conv {
namespace {

template <class T>
constexpr bool is_float = std::is_same_v<T, float>;

int64_t rounded(int64_t floats) { return (floats + 15) / 16 * 16; }

/// Layers with fewer than four outputs, which would fill no vector: one dot product per output and row.
bool has_few_outputs(Shape weight, const Conv1dGeometry& g) { return g.groups == 1 && weight.batch < 4; }

/// One tap, no padding, and enough rows to pay for laying out the weight.
bool is_pointwise(Shape x, Shape weight, const Conv1dGeometry& g) {
  return g.stride == 1 && g.groups == 1 && g.left == 0 && g.right == 0 && weight.time == 1 && x.channels % 16 == 0 &&
         weight.batch % 16 == 0 && x.rows() >= 64;
}

/// In the direct loops short items make short chunks, whose sums are added up too often, and a wide pointwise layer
/// uses the data that it copies only once.
bool suits_blocks(Shape x, Shape weight, Shape y, const Conv1dGeometry& g) {
  return g.groups == 1 && x.channels % 16 == 0 && y.channels % 16 == 0 &&
         (weight.time == 1 ? x.channels >= 64 : y.time < 64);
}

/// The engines that also compute Snake, or Engine::nothing.
template <class T>
Engine forward_with_snake(Shape x, Shape weight, const Conv1dGeometry& g) {
  if (!is_float<T>) return Engine::nothing;
  if (is_pointwise(x, weight, g)) return Engine::pointwise;
  return karatsuba::supports(x, weight, output(x, weight, g), g) ? Engine::karatsuba : Engine::nothing;
}
template <class T>
Engine input_gradient_with_snake(Shape x, Shape weight, const Conv1dGeometry& g) {
  if (!is_float<T>) return Engine::nothing;
  if (is_pointwise(x, weight, g)) return Engine::pointwise;
  return karatsuba::supports_input_gradient(x, weight, output(x, weight, g), g) ? Engine::karatsuba : Engine::nothing;
}
int64_t forward_scratch(const Context& ctx, Engine e, Shape x, Shape weight, const Conv1dGeometry& g, bool snake) {
  return e == Engine::pointwise ? pointwise::forward_scratch(ctx, weight, snake)
                                : karatsuba::forward_scratch(ctx, x, weight, output(x, weight, g), g, snake);
}
int64_t input_gradient_scratch(const Context& ctx, Engine e, Shape x, Shape weight, const Conv1dGeometry& g,
                               bool slope) {
  return e == Engine::pointwise ? pointwise::input_gradient_scratch(ctx, weight, slope)
                                : karatsuba::input_gradient_scratch(ctx, x, weight, output(x, weight, g), g, slope);
}

}  // namespace

std::array<ReflectedStrip, 2> reflected_strips(Shape x, Shape weight, const Conv1dGeometry& g) {
  const int64_t length = output(x, weight, g).time, span = (weight.time - 1) * g.dilation + 1;
  const auto strip = [&](int64_t first, int64_t end, int64_t dy_begin, int64_t dy_end) -> ReflectedStrip {
    if (first >= end || dy_begin >= dy_end) return {};
    // Row dy_begin reads from sample dy_begin stride - left on. Rows of dy that read nothing else complete the last
    // tap.
    ReflectedStrip s{.dx = {x.batch, end - first, 1, x.channels},
                     .dy = {x.batch, dy_end - dy_begin, 1, weight.batch},
                     .first = first,
                     .dy_begin = dy_begin,
                     .geometry = {.stride = g.stride, .dilation = g.dilation, .groups = g.groups}};
    s.geometry.left = first + g.left - dy_begin * g.stride;
    s.geometry.right = std::max<int64_t>((s.dy.time - 1) * g.stride + span - s.dx.time - s.geometry.left, 0);
    return s;
  };
  const int64_t reads_tail = std::max<int64_t>(x.time + g.left - span + g.stride, 0) / g.stride;
  return {strip(-g.left, 0, 0, std::min(length, (g.left + g.stride - 1) / g.stride)),
          strip(std::max(x.time, reads_tail * g.stride - g.left), x.time + g.right, reads_tail, length)};
}

template <class T>
ForwardChoice choose_forward(Context& ctx, Shape x, Shape weight, const Conv1dGeometry& g) {
  const Shape y = output(x, weight, g);
  if (y.elements() == 0) return {};
  if (has_few_outputs(weight, g)) return {.engine = Engine::direct, .own = direct::forward_scratch(ctx, x, weight, g)};
  if (const Engine e = forward_with_snake<T>(x, weight, g); e != Engine::nothing)
    return {.engine = e, .own = forward_scratch(ctx, e, x, weight, g, false)};
  ForwardChoice c{.engine = Engine::windows,
                  .problem = {.batch = x.batch,
                              .time = x.time,
                              .length = y.time,
                              .in = x.channels,
                              .out = y.channels,
                              .taps = weight.time,
                              .stride = g.stride,
                              .dilation = g.dilation,
                              .groups = g.groups,
                              .left = g.left,
                              .reflect = g.padding == Padding::reflect}};
  if (!is_float<T>) c.x = rounded(x.elements()), c.weight = rounded(weight.elements()), c.y = rounded(y.elements());
  c.own = rounded(windows::scratch(ctx, c.problem));
  return c;
}

template <class T>
InputGradientChoice choose_input_gradient(Context& ctx, Shape x, Shape weight, const Conv1dGeometry& g) {
  const Shape y = output(x, weight, g);
  if (y.elements() == 0) return {};
  const bool reflect = g.padding == Padding::reflect, folds = reflect && (!is_float<T> || g.stride > 1);
  int64_t strips = 0;
  if (is_float<T> && reflect)
    for (const ReflectedStrip& s : reflected_strips(x, weight, g))
      strips = std::max(
          strips, s.dy_floats() + s.dx_floats() + choose_input_gradient<T>(ctx, s.dx, weight, s.geometry).scratch());
  Conv1dGeometry zero = g;
  zero.padding = Padding::zero;
  if (const Engine e = input_gradient_with_snake<T>(x, weight, zero); e != Engine::nothing)
    return {.engine = e, .own = input_gradient_scratch(ctx, e, x, weight, zero, false), .strips = strips};
  InputGradientChoice c{.engine = Engine::windows,
                        .problem = {.batch = x.batch,
                                    .time = y.time,
                                    .length = folds ? g.left + x.time + g.right : x.time,
                                    .in = y.channels,
                                    .out = x.channels,
                                    .taps = weight.time,
                                    .dilation = g.dilation,
                                    .groups = g.groups,
                                    .left = (weight.time - 1) * g.dilation - (folds ? 0 : g.left),
                                    .adjoint = true},
                        .left = folds ? g.left : 0,
                        .folds = folds,
                        .strips = folds ? 0 : strips};
  windows::Problem& p = c.problem;
  bool whole = g.stride == 1;  // the rows of p are those of dx
  c.rows = p.length;
  if (g.stride > 1) {
    c.spread = g.dilation > 1 || weight.time % g.stride != 0;
    p.taps = ((weight.time - 1) * g.dilation + g.stride) / g.stride;
    p.length = (g.left + x.time + g.right + g.stride - 1) / g.stride;
    p.out = x.channels * g.stride;
    p.dilation = 1;
    p.left = p.taps - 1;
    p.samples = g.stride;
    // Few rows that begin and end with a whole window are computed alone, and in place.
    if (is_float<T> && !folds && !c.spread && g.left % g.stride == 0 && x.time % g.stride == 0 &&
        windows::is_few(x.rows() / g.stride))
      p.length = x.time / g.stride, p.left -= g.left / g.stride, whole = true;
    c.rows = p.length * g.stride;
    c.left = g.left;
  }
  const bool in_place = is_float<T> && !folds && whole;
  if (!in_place) c.dx = rounded(x.batch * c.rows * x.channels);
  if (c.spread)
    c.weight = rounded(p.in * p.taps * p.out / p.groups);
  else if (!is_float<T>)
    c.weight = rounded(weight.elements());
  if (!is_float<T>) c.dy = rounded(y.elements());
  c.own = rounded(windows::scratch(ctx, p));
  return c;
}

template <class T>
WeightGradientChoice choose_weight_gradient(Context& ctx, Shape x, Shape weight, const Conv1dGeometry& g) {
  const Shape y = output(x, weight, g);
  if (y.elements() == 0) return {};
  const int64_t sums = std::max(column_sums_scratch(x), column_sums_scratch(y));
  if (is_float<T> && karatsuba::supports_weight_gradient(x, weight, y, g))
    return {.engine = Engine::karatsuba,
            .own = std::max(karatsuba::weight_gradient_scratch(ctx, x, weight, y, g), sums)};
  if (is_float<T> && suits_blocks(x, weight, y, g))
    return {.engine = Engine::blocks, .own = std::max(blocks::weight_gradient_scratch(ctx, x, weight, y), sums)};
  WeightGradientChoice c{.engine = Engine::direct};
  if (g.groups == 1) {
    c.own = rounded(std::max(direct::weight_gradient_scratch(ctx, x, weight, y, g), sums));
    return c;
  }
  const Shape group_x{x.batch, x.time, 1, x.channels / g.groups}, group_y{y.batch, y.time, 1, y.channels / g.groups},
      group_weight{weight.batch / g.groups, weight.time, 1, weight.channels};
  if (!is_float<T>) c.x = rounded(x.elements()), c.dy = rounded(y.elements());
  if (groups::supports_weight_gradient(x, weight, g)) {
    c.engine = Engine::groups;
    c.own = rounded(std::max(groups::weight_gradient_scratch(ctx, x, weight, y, g), sums));
    return c;
  }
  c.group_x = rounded(group_x.elements()), c.group_dy = rounded(group_y.elements());
  c.own = rounded(std::max(direct::weight_gradient_scratch(ctx, group_x, group_weight, group_y, g), sums));
  return c;
}

template <class T>
SnakeChoice choose_snake_forward(Context& ctx, Shape x, Shape weight, const Conv1dGeometry& g) {
  if (output(x, weight, g).elements() == 0) return {};
  const Engine e = g.padding == Padding::zero ? forward_with_snake<T>(x, weight, g) : Engine::nothing;
  if (e == Engine::nothing)
    return {.engine = Engine::separate,
            .tensor = tensor_floats<T>(x),
            .own = choose_forward<T>(ctx, x, weight, g).scratch()};
  return {.engine = e, .table = SnakeRows::table(x.channels), .own = forward_scratch(ctx, e, x, weight, g, true)};
}

template <class T>
SnakeChoice choose_snake_input_gradient(Context& ctx, Shape x, Shape weight, const Conv1dGeometry& g) {
  const Shape y = output(x, weight, g);
  if (y.elements() == 0) return {};
  const Engine e = g.padding == Padding::zero ? input_gradient_with_snake<T>(x, weight, g) : Engine::nothing;
  // A layer whose forward is not fused stores u, so it has no use for a fused input gradient.
  if (e == Engine::nothing || e != forward_with_snake<T>(x, weight, g))
    return {.engine = Engine::separate,
            .tensor = tensor_floats<T>(x),
            .own = std::max(choose_input_gradient<T>(ctx, x, weight, g).scratch(),
                            snake_backward_scratch(ctx, x, true).elements())};
  SnakeChoice c{.engine = e, .table = SnakeRows::table(x.channels)};
  c.parts = e == Engine::pointwise ? pointwise::slope_parts(x) : karatsuba::slope_parts(x, weight, y, g);
  c.partials = c.parts * 2 * x.channels;
  c.own = input_gradient_scratch(ctx, e, x, weight, g, true);
  return c;
}

template <class T>
SnakeChoice choose_snake_weight_gradient(Context& ctx, Shape x, Shape weight, const Conv1dGeometry& g) {
  if (output(x, weight, g).elements() == 0) return {};
  return {.engine = Engine::separate,
          .tensor = tensor_floats<T>(x),
          .own = choose_weight_gradient<T>(ctx, x, weight, g).scratch()};
}

void run_forward(Context& ctx, Engine e, const Conv1dForward<float>& a, float* scratch, const SnakeRows* snake) {
  e == Engine::pointwise ? pointwise::forward(ctx, a, scratch, snake) : karatsuba::forward(ctx, a, scratch, snake);
}
void run_input_gradient(Context& ctx, Engine e, const Conv1dInputGradient<float>& a, float* scratch,
                        const SnakeSlope* slope) {
  e == Engine::pointwise ? pointwise::input_gradient(ctx, a, scratch, slope)
                         : karatsuba::input_gradient(ctx, a, scratch, slope);
}

#define NACRE_INSTANTIATE(T)                                                                              \
  template ForwardChoice choose_forward<T>(Context&, Shape, Shape, const Conv1dGeometry&);                \
  template InputGradientChoice choose_input_gradient<T>(Context&, Shape, Shape, const Conv1dGeometry&);   \
  template WeightGradientChoice choose_weight_gradient<T>(Context&, Shape, Shape, const Conv1dGeometry&); \
  template SnakeChoice choose_snake_forward<T>(Context&, Shape, Shape, const Conv1dGeometry&);            \
  template SnakeChoice choose_snake_input_gradient<T>(Context&, Shape, Shape, const Conv1dGeometry&);     \
  template SnakeChoice choose_snake_weight_gradient<T>(Context&, Shape, Shape, const Conv1dGeometry&);
NACRE_INSTANTIATE(float)
NACRE_INSTANTIATE(bf16)
#undef NACRE_INSTANTIATE

}  // namespace nacre::conv
