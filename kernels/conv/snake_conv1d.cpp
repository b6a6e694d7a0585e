#include "nacre/ops/snake_conv1d.h"

#include "conv/choose.h"
#include "conv/choose_cuda.h"
#include "runtime/host.h"

// Snake and the convolution in one kernel where such a kernel exists; otherwise the two ops one after the other, with
// the tensor between them in scratch. Each op here checks its arguments, tries CUDA's fused kernels (snake_conv1d.cu,
// snake_conv1d_weights.cu) or the fused loops of the CPU (run_forward and run_input_gradient of choose.h), and falls
// back to the two ops, on either device. The choice and its scratch come from the same function.
namespace nacre {
namespace cuda {
// The fused kernels. Each returns whether its choice is fused; else it does nothing.
template <class T>
bool snake_conv1d_forward(Context&, const SnakeConv1dForward<T>&);
template <class T>
bool snake_conv1d_input_gradient(Context&, const SnakeConv1dInputGradient<T>&);
template <class T>
bool snake_conv1d_weight_gradient(Context&, const SnakeConv1dWeightGradient<T>&);
}  // namespace cuda
namespace {

using conv::Engine;
using conv::output;

bool is_fused(const conv::SnakeChoice& c) { return c.engine == Engine::pointwise || c.engine == Engine::karatsuba; }

// The fused loops of the CPU. Scratch holds the table of Snake's parameters, in the input gradient the partial sums of
// their gradients, and then the engine's own, as SnakeChoice lists them. dx is written by SnakeSlope, not by the
// convolution, which gets only its shape.
void fused_forward(Context& ctx, const conv::SnakeChoice& choice, const SnakeConv1dForward<float>& a) {
  const SnakeRows snake(a.alpha, a.beta, a.log_scale, a.scratch.data);
  const Conv1dForward<float> convolution{
      .x = a.x, .weight = a.weight, .bias = a.bias, .residual = a.residual, .y = a.y, .geometry = a.geometry};
  conv::run_forward(ctx, choice.engine, convolution, a.scratch.data + choice.table, &snake);
}
void fused_input_gradient(Context& ctx, const conv::SnakeChoice& choice, const SnakeConv1dInputGradient<float>& a) {
  const SnakeRows snake(a.alpha, a.beta, a.log_scale, a.scratch.data);
  float* const partials = a.scratch.data + choice.table;
  const SnakeSlope slope{.rows = snake,
                         .x = a.x.data,
                         .dx = a.dx.data,
                         .add = a.add_dx,
                         .partials = a.dalpha || a.dbeta ? partials : nullptr};
  const Conv1dInputGradient<float> convolution{
      .dy = a.dy, .weight = a.weight, .dx = {nullptr, a.x.shape}, .geometry = a.geometry};
  conv::run_input_gradient(ctx, choice.engine, convolution, partials + choice.partials, &slope);
  if (slope.partials == nullptr) return;
  add_snake_parameter_gradients(
      {.alpha = a.alpha, .beta = a.beta, .dalpha = a.dalpha, .dbeta = a.dbeta, .log_scale = a.log_scale}, partials,
      choice.parts);
}

Shape floats(int64_t n) { return {.channels = n}; }

/// Scratch of the two separate ops: a tensor like x, then the scratch that the ops need. They run one after the other,
/// so they share `rest`.
template <class T>
struct SeparateScratch {
  SeparateScratch(View<float> scratch, Shape x)
      : tensor{reinterpret_cast<T*>(scratch.data), x},
        rest{scratch.data + conv::tensor_floats<T>(x), floats(scratch.elements() - conv::tensor_floats<T>(x))} {}
  View<T> tensor;
  View<float> rest;
};

/// u = snake(x), into `to`.
template <class T>
void activate(Context& ctx, View<const T> x, View<const float> alpha, View<const float> beta, bool log_scale,
              View<T> to) {
  snake_forward<T>(ctx, {.x = x, .alpha = alpha, .beta = beta, .y = to, .log_scale = log_scale});
}

/// What the three ops have in common. The *_scratch functions check the shapes of weight, dy and geometry.
template <class T>
void check_parameters(const char* op, const T& a) {
  const Shape per_channel{.channels = a.x.shape.channels};
  expect_shape(op, "x", a.x, a.x.shape);
  expect_shape(op, "alpha", a.alpha, per_channel);
  expect_shape_or_empty(op, "beta", a.beta, per_channel);
}

}  // namespace

/// On the CPU the input gradient is fused only where the forward is (choose_snake_input_gradient), so its choice
/// answers for both.
template <class T>
bool snake_conv1d_fuses(Context& ctx, Shape x, Shape weight, const Conv1dGeometry& g) {
  return on_cuda(ctx) || is_fused(conv::choose_snake_input_gradient<T>(ctx, x, weight, g));
}

template <class T>
Shape snake_conv1d_forward_scratch(Context& ctx, Shape x, Shape weight, const Conv1dGeometry& g) {
  conv1d_forward_scratch<T>(ctx, x, weight, g);  // checks the shapes
  if constexpr (with_cuda)
    if (on_cuda(ctx)) return floats(cuda::conv::choose_snake_forward<T>(ctx, x, weight, g).scratch);
  return floats(conv::choose_snake_forward<T>(ctx, x, weight, g).scratch());
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
    if (!on_cuda(ctx))
      if (const auto choice = conv::choose_snake_forward<T>(ctx, a.x.shape, a.weight.shape, a.geometry);
          is_fused(choice))
        return fused_forward(ctx, choice, a);
  const SeparateScratch<T> pieces(a.scratch, a.x.shape);
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
  conv1d_input_gradient_scratch<T>(ctx, x, weight, dy, g);  // checks the shapes
  if constexpr (with_cuda)
    if (on_cuda(ctx)) return floats(cuda::conv::choose_snake_input_gradient<T>(ctx, x, weight, g).scratch);
  return floats(conv::choose_snake_input_gradient<T>(ctx, x, weight, g).scratch());
}
template <class T>
Shape snake_conv1d_input_gradient_parts(Context& ctx, Shape x, Shape weight, Shape dy, const Conv1dGeometry& g) {
  conv1d_input_gradient_scratch<T>(ctx, x, weight, dy, g);  // checks the shapes
  if constexpr (with_cuda)
    if (on_cuda(ctx)) return floats(cuda::conv::choose_snake_input_gradient<T>(ctx, x, weight, g).of_parts);
  return {0, 0, 0, 0};
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
  if (a.parts)
    expect_parts(op, a.parts,
                 snake_conv1d_input_gradient_parts<T>(ctx, a.x.shape, a.weight.shape, a.dy.shape, a.geometry));
  expect_shape(op, "dy", a.dy, a.dy.shape);
  expect_shape(op, "weight", a.weight, a.weight.shape);
  if (a.x.shape.batch == 0 || (!a.dx && !a.dalpha && !a.dbeta)) return;
  if constexpr (with_cuda)
    if (on_cuda(ctx) && cuda::snake_conv1d_input_gradient(ctx, a)) return;
  if constexpr (std::is_same_v<T, float>)
    if (!on_cuda(ctx))
      if (const auto choice = conv::choose_snake_input_gradient<T>(ctx, a.x.shape, a.weight.shape, a.geometry);
          is_fused(choice))
        return fused_input_gradient(ctx, choice, a);
  // g, the gradient at Snake's output, then Snake's backward pass.
  const SeparateScratch<T> pieces(a.scratch, a.x.shape);
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
                          .parts = a.parts,
                          .log_scale = a.log_scale,
                          .add_dx = a.add_dx});
}

template <class T>
Shape snake_conv1d_weight_gradient_scratch(Context& ctx, Shape x, Shape weight, Shape dy, const Conv1dGeometry& g) {
  conv1d_weight_gradient_scratch<T>(ctx, x, weight, dy, g);  // checks the shapes
  if constexpr (with_cuda)
    if (on_cuda(ctx)) return floats(cuda::conv::choose_snake_weight_gradient<T>(ctx, x, weight, g).scratch);
  return floats(conv::choose_snake_weight_gradient<T>(ctx, x, weight, g).scratch());
}
template <class T>
Shape snake_conv1d_weight_gradient_parts(Context& ctx, Shape x, Shape weight, Shape dy, const Conv1dGeometry& g) {
  conv1d_weight_gradient_scratch<T>(ctx, x, weight, dy, g);  // checks the shapes
  if constexpr (with_cuda)
    if (on_cuda(ctx)) return floats(cuda::conv::choose_snake_weight_gradient<T>(ctx, x, weight, g).of_parts);
  return {0, 0, 0, 0};
}
template <class T>
void snake_conv1d_weight_gradient(Context& ctx, const SnakeConv1dWeightGradient<T>& a) {
  const char* const op = "snake_conv1d_weight_gradient";
  check_parameters(op, a);
  expect_scratch(op, a.scratch,
                 snake_conv1d_weight_gradient_scratch<T>(ctx, a.x.shape, a.dweight.shape, a.dy.shape, a.geometry));
  if (a.parts)
    expect_parts(op, a.parts,
                 snake_conv1d_weight_gradient_parts<T>(ctx, a.x.shape, a.dweight.shape, a.dy.shape, a.geometry));
  expect_shape(op, "dy", a.dy, a.dy.shape);
  expect_shape(op, "dweight", a.dweight, a.dweight.shape);
  expect_shape_or_empty(op, "dbias", a.dbias, {.channels = a.dweight.shape.batch});
  if (a.x.shape.batch == 0) {
    if (!a.add_dweight) ctx.zero(a.dweight);
    return;
  }
  if constexpr (with_cuda)
    if (on_cuda(ctx) && cuda::snake_conv1d_weight_gradient(ctx, a)) return;
  // Also the only path of the CPU: u is computed again.
  const SeparateScratch<T> pieces(a.scratch, a.x.shape);
  activate(ctx, a.x, a.alpha, a.beta, a.log_scale, pieces.tensor);
  conv1d_weight_gradient<T>(ctx, {.x = pieces.tensor,
                                  .dy = a.dy,
                                  .dweight = a.dweight,
                                  .dbias = a.dbias,
                                  .scratch = pieces.rest,
                                  .parts = a.parts,
                                  .geometry = a.geometry,
                                  .add_dweight = a.add_dweight});
}

#define NACRE_INSTANTIATE(T)                                                                                    \
  template bool snake_conv1d_fuses<T>(Context&, Shape, Shape, const Conv1dGeometry&);                           \
  template Shape snake_conv1d_forward_scratch<T>(Context&, Shape, Shape, const Conv1dGeometry&);                \
  template Shape snake_conv1d_input_gradient_scratch<T>(Context&, Shape, Shape, Shape, const Conv1dGeometry&);  \
  template Shape snake_conv1d_weight_gradient_scratch<T>(Context&, Shape, Shape, Shape, const Conv1dGeometry&); \
  template Shape snake_conv1d_input_gradient_parts<T>(Context&, Shape, Shape, Shape, const Conv1dGeometry&);    \
  template Shape snake_conv1d_weight_gradient_parts<T>(Context&, Shape, Shape, Shape, const Conv1dGeometry&);   \
  template void snake_conv1d_forward<T>(Context&, const SnakeConv1dForward<T>&);                                \
  template void snake_conv1d_input_gradient<T>(Context&, const SnakeConv1dInputGradient<T>&);                   \
  template void snake_conv1d_weight_gradient<T>(Context&, const SnakeConv1dWeightGradient<T>&);
NACRE_INSTANTIATE(float)
NACRE_INSTANTIATE(bf16)
#undef NACRE_INSTANTIATE

}  // namespace nacre
