#include "nacre/ops/snake_conv1d.h"

#include "conv/conv1d_karatsuba.h"
#include "conv/conv1d_pointwise.h"
#include "pointwise/snake_rows.h"
#include "runtime/host.h"

// Snake and the convolution in one kernel where such a kernel exists; otherwise the two ops one after the other, with
// the tensor between them in scratch.
namespace nacre {
namespace cuda {
// The fused kernels. Each returns whether it ran; it does nothing for layers without a fused kernel. The scratch
// functions return the floats that the kernels may need for a shape.
template <class T>
int64_t snake_conv1d_input_gradient_scratch(Context&, Shape x, Shape weight, Shape dy, const Conv1dGeometry&);
template <class T>
int64_t snake_conv1d_weight_gradient_scratch(Context&, Shape x, Shape weight, Shape dy, const Conv1dGeometry&);
template <class T>
bool snake_conv1d_forward(Context&, const SnakeConv1dForward<T>&);
template <class T>
bool snake_conv1d_input_gradient(Context&, const SnakeConv1dInputGradient<T>&);
template <class T>
bool snake_conv1d_weight_gradient(Context&, const SnakeConv1dWeightGradient<T>&);
}  // namespace cuda
namespace {

Shape output(Shape x, Shape weight, const Conv1dGeometry& g) {
  return {x.batch, conv1d_length(x.time, weight.time, g), 1, weight.batch};
}

/// The fused loops of the CPU, for float only. Their scratch begins with the table of Snake's parameters.
enum class Fused : uint8_t { no, pointwise, karatsuba };
template <class T>
Fused fused(const Context& ctx, Shape x, Shape weight, const Conv1dGeometry& g) {
  if (!std::is_same_v<T, float> || on_cuda(ctx) || g.padding != Padding::zero) return Fused::no;
  const Shape y = output(x, weight, g);
  if (pointwise::supports(x, weight, y, g)) return Fused::pointwise;
  return karatsuba::supports(x, weight, y, g) ? Fused::karatsuba : Fused::no;
}
template <class T>
Fused fused_input_gradient(const Context& ctx, Shape x, Shape weight, const Conv1dGeometry& g) {
  const Fused f = fused<T>(ctx, x, weight, g);
  const bool supported =
      f != Fused::karatsuba || karatsuba::supports_input_gradient(x, weight, output(x, weight, g), g);
  return supported ? f : Fused::no;
}

int64_t fused_forward_scratch(const Context& ctx, Fused f, Shape x, Shape weight, const Conv1dGeometry& g) {
  return SnakeRows::table(x.channels) +
         (f == Fused::pointwise ? pointwise::forward_scratch(ctx, weight, true)
                                : karatsuba::forward_scratch(ctx, x, weight, output(x, weight, g), g, true));
}
void fused_forward(Context& ctx, Fused f, const SnakeConv1dForward<float>& a) {
  const SnakeRows snake(a.alpha, a.beta, a.log_scale, a.scratch.data);
  float* const rest = a.scratch.data + SnakeRows::table(snake.channels());
  const Conv1dForward<float> conv{
      .x = a.x, .weight = a.weight, .bias = a.bias, .residual = a.residual, .y = a.y, .geometry = a.geometry};
  f == Fused::pointwise ? pointwise::forward(ctx, conv, rest, &snake) : karatsuba::forward(ctx, conv, rest, &snake);
}

int64_t slope_parts(Fused f, Shape x, Shape weight, Shape dy, const Conv1dGeometry& g) {
  return f == Fused::pointwise ? pointwise::slope_parts(x) : karatsuba::slope_parts(x, weight, dy, g);
}
int64_t fused_input_gradient_scratch(const Context& ctx, Fused f, Shape x, Shape weight, Shape dy,
                                     const Conv1dGeometry& g) {
  return SnakeRows::table(x.channels) + slope_parts(f, x, weight, dy, g) * 2 * x.channels +
         (f == Fused::pointwise ? pointwise::input_gradient_scratch(ctx, weight, true)
                                : karatsuba::input_gradient_scratch(ctx, x, weight, dy, g, true));
}
void fused_input_gradient(Context& ctx, Fused f, const SnakeConv1dInputGradient<float>& a) {
  const SnakeRows snake(a.alpha, a.beta, a.log_scale, a.scratch.data);
  const int64_t parts = slope_parts(f, a.x.shape, a.weight.shape, a.dy.shape, a.geometry);
  float* const partials = a.scratch.data + SnakeRows::table(snake.channels());
  float* const rest = partials + parts * 2 * snake.channels();
  const SnakeSlope slope{.rows = snake,
                         .x = a.x.data,
                         .dx = a.dx.data,
                         .add = a.add_dx,
                         .partials = a.dalpha || a.dbeta ? partials : nullptr};
  const Conv1dInputGradient<float> conv{
      .dy = a.dy, .weight = a.weight, .dx = {nullptr, a.x.shape}, .geometry = a.geometry};
  f == Fused::pointwise ? pointwise::input_gradient(ctx, conv, rest, &slope)
                        : karatsuba::input_gradient(ctx, conv, rest, &slope);
  if (slope.partials == nullptr) return;
  add_snake_parameter_gradients(
      {.alpha = a.alpha, .beta = a.beta, .dalpha = a.dalpha, .dbeta = a.dbeta, .log_scale = a.log_scale}, partials,
      parts);
}

/// The number of floats that hold n elements of T, rounded up to whole cache lines.
template <class T>
int64_t floats_of(int64_t n) {
  return (n * static_cast<int64_t>(sizeof(T)) + 63) / 64 * 16;
}
Shape floats(int64_t n) { return {.channels = n}; }

/// Scratch of the two separate ops: a tensor like x, then the scratch that the ops need.
template <class T>
struct ComposedScratch {
  ComposedScratch(View<float> scratch, Shape x) {
    const int64_t first = floats_of<T>(x.elements());
    tensor = {reinterpret_cast<T*>(scratch.data), x};
    rest = {scratch.data + first, floats(scratch.elements() - first)};
  }
  View<T> tensor;
  View<float> rest;
};

template <class T>
void activate(Context& ctx, View<const T> x, View<const float> alpha, View<const float> beta, bool log_scale,
              View<T> to) {
  snake_forward<T>(ctx, {.x = x, .alpha = alpha, .beta = beta, .y = to, .log_scale = log_scale});
}

template <class T>
void check_parameters(const char* op, const T& a) {
  const Shape per_channel{.channels = a.x.shape.channels};
  expect_shape(op, "x", a.x, a.x.shape);
  expect_shape(op, "alpha", a.alpha, per_channel);
  expect_shape_or_empty(op, "beta", a.beta, per_channel);
}

}  // namespace

template <class T>
bool snake_conv1d_fuses(Context& ctx, Shape x, Shape weight, const Conv1dGeometry& g) {
  return on_cuda(ctx) || fused_input_gradient<T>(ctx, x, weight, g) != Fused::no;
}

template <class T>
Shape snake_conv1d_forward_scratch(Context& ctx, Shape x, Shape weight, const Conv1dGeometry& g) {
  const int64_t inner = conv1d_forward_scratch<T>(ctx, x, weight, g).elements();  // checks the shapes
  if (const Fused f = fused<T>(ctx, x, weight, g); f != Fused::no)
    return floats(fused_forward_scratch(ctx, f, x, weight, g));
  if (x.batch == 0) return floats(0);
  return floats(floats_of<T>(x.elements()) + inner);
}
template <class T>
void snake_conv1d_forward(Context& ctx, const SnakeConv1dForward<T>& a) {
  const char* const op = "snake_conv1d_forward";
  check_parameters(op, a);
  expect_scratch(op, a.scratch, snake_conv1d_forward_scratch<T>(ctx, a.x.shape, a.weight.shape, a.geometry));
  const Shape y = output(a.x.shape, a.weight.shape, a.geometry);
  expect_shape(op, "weight", a.weight, a.weight.shape);
  expect_shape(op, "y", a.y, y);
  expect_shape_or_empty(op, "bias", a.bias, {.channels = y.channels});
  expect_shape_or_empty(op, "residual", a.residual, y);
  if (a.x.shape.batch == 0) return;
  if constexpr (with_cuda)
    if (on_cuda(ctx) && cuda::snake_conv1d_forward(ctx, a)) return;
  if constexpr (std::is_same_v<T, float>)
    if (const Fused f = fused<T>(ctx, a.x.shape, a.weight.shape, a.geometry); f != Fused::no)
      return fused_forward(ctx, f, a);
  const ComposedScratch<T> pieces(a.scratch, a.x.shape);
  activate(ctx, a.x, a.alpha, a.beta, a.log_scale, pieces.tensor);
  conv1d_forward<T>(ctx, {.x = pieces.tensor,
                          .weight = a.weight,
                          .bias = a.bias,
                          .residual = a.residual,
                          .y = a.y,
                          .scratch = pieces.rest,
                          .geometry = a.geometry});
}

template <class T>
Shape snake_conv1d_input_gradient_scratch(Context& ctx, Shape x, Shape weight, Shape dy, const Conv1dGeometry& g) {
  const int64_t inner = conv1d_input_gradient_scratch<T>(ctx, x, weight, dy, g).elements();
  if (const Fused f = fused_input_gradient<T>(ctx, x, weight, g); f != Fused::no)
    return floats(fused_input_gradient_scratch(ctx, f, x, weight, dy, g));
  if (x.batch == 0) return floats(0);
  const int64_t composed =
      floats_of<T>(x.elements()) + std::max(inner, snake_backward_scratch(ctx, x, true).elements());
  if constexpr (with_cuda)
    if (on_cuda(ctx))
      return floats(std::max(composed, cuda::snake_conv1d_input_gradient_scratch<T>(ctx, x, weight, dy, g)));
  return floats(composed);
}
template <class T>
void snake_conv1d_input_gradient(Context& ctx, const SnakeConv1dInputGradient<T>& a) {
  const char* const op = "snake_conv1d_input_gradient";
  check_parameters(op, a);
  const Shape per_channel{.channels = a.x.shape.channels};
  expect_shape_or_empty(op, "dx", a.dx, a.x.shape);
  expect_shape_or_empty(op, "dalpha", a.dalpha, per_channel);
  expect_shape_or_empty(op, "dbeta", a.dbeta, per_channel);
  if (a.dbeta && !a.beta) throw_usage(op, "dbeta is given without beta");
  expect_scratch(op, a.scratch,
                 snake_conv1d_input_gradient_scratch<T>(ctx, a.x.shape, a.weight.shape, a.dy.shape, a.geometry));
  expect_shape(op, "dy", a.dy, a.dy.shape);
  expect_shape(op, "weight", a.weight, a.weight.shape);
  if (a.x.shape.batch == 0 || (!a.dx && !a.dalpha && !a.dbeta)) return;
  if constexpr (with_cuda)
    if (on_cuda(ctx) && cuda::snake_conv1d_input_gradient(ctx, a)) return;
  if constexpr (std::is_same_v<T, float>)
    if (const Fused f = fused_input_gradient<T>(ctx, a.x.shape, a.weight.shape, a.geometry); f != Fused::no)
      return fused_input_gradient(ctx, f, a);
  const ComposedScratch<T> pieces(a.scratch, a.x.shape);
  conv1d_input_gradient<T>(
      ctx, {.dy = a.dy, .weight = a.weight, .dx = pieces.tensor, .scratch = pieces.rest, .geometry = a.geometry});
  snake_backward<T>(ctx, {.x = a.x,
                          .alpha = a.alpha,
                          .beta = a.beta,
                          .dy = pieces.tensor,
                          .dx = a.dx,
                          .dalpha = a.dalpha,
                          .dbeta = a.dbeta,
                          .scratch = pieces.rest,
                          .log_scale = a.log_scale,
                          .add_dx = a.add_dx});
}

template <class T>
Shape snake_conv1d_weight_gradient_scratch(Context& ctx, Shape x, Shape weight, Shape dy, const Conv1dGeometry& g) {
  const int64_t inner = conv1d_weight_gradient_scratch<T>(ctx, x, weight, dy, g).elements();
  if (x.batch == 0) return floats(0);
  const int64_t composed = floats_of<T>(x.elements()) + inner;
  if constexpr (with_cuda)
    if (on_cuda(ctx))
      return floats(std::max(composed, cuda::snake_conv1d_weight_gradient_scratch<T>(ctx, x, weight, dy, g)));
  return floats(composed);
}
template <class T>
void snake_conv1d_weight_gradient(Context& ctx, const SnakeConv1dWeightGradient<T>& a) {
  const char* const op = "snake_conv1d_weight_gradient";
  check_parameters(op, a);
  expect_scratch(op, a.scratch,
                 snake_conv1d_weight_gradient_scratch<T>(ctx, a.x.shape, a.dweight.shape, a.dy.shape, a.geometry));
  expect_shape(op, "dy", a.dy, a.dy.shape);
  expect_shape(op, "dweight", a.dweight, a.dweight.shape);
  expect_shape_or_empty(op, "dbias", a.dbias, {.channels = a.dweight.shape.batch});
  if (a.x.shape.batch == 0) {
    if (!a.add_dweight) ctx.zero(a.dweight);
    return;
  }
  if constexpr (with_cuda)
    if (on_cuda(ctx) && cuda::snake_conv1d_weight_gradient(ctx, a)) return;
  const ComposedScratch<T> pieces(a.scratch, a.x.shape);
  activate(ctx, a.x, a.alpha, a.beta, a.log_scale, pieces.tensor);
  conv1d_weight_gradient<T>(ctx, {.x = pieces.tensor,
                                  .dy = a.dy,
                                  .dweight = a.dweight,
                                  .dbias = a.dbias,
                                  .scratch = pieces.rest,
                                  .geometry = a.geometry,
                                  .add_dweight = a.add_dweight});
}

#define NACRE_INSTANTIATE(T)                                                                                    \
  template bool snake_conv1d_fuses<T>(Context&, Shape, Shape, const Conv1dGeometry&);                           \
  template Shape snake_conv1d_forward_scratch<T>(Context&, Shape, Shape, const Conv1dGeometry&);                \
  template Shape snake_conv1d_input_gradient_scratch<T>(Context&, Shape, Shape, Shape, const Conv1dGeometry&);  \
  template Shape snake_conv1d_weight_gradient_scratch<T>(Context&, Shape, Shape, Shape, const Conv1dGeometry&); \
  template void snake_conv1d_forward<T>(Context&, const SnakeConv1dForward<T>&);                                \
  template void snake_conv1d_input_gradient<T>(Context&, const SnakeConv1dInputGradient<T>&);                   \
  template void snake_conv1d_weight_gradient<T>(Context&, const SnakeConv1dWeightGradient<T>&);
NACRE_INSTANTIATE(float)
NACRE_INSTANTIATE(bf16)
#undef NACRE_INSTANTIATE

}  // namespace nacre
