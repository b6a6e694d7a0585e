#include "nacre/ops/conv1d.h"

#include <cstring>
#include <string>
#include <type_traits>

#include "conv/choose.h"
#include "conv/conv1d_blocks.h"
#include "conv/conv1d_column_sums.h"
#include "conv/conv1d_direct.h"
#include "conv/conv1d_groups.h"
#include "conv/conv1d_karatsuba.h"
#include "runtime/host.h"

// The entry points of conv1d (nacre/ops/conv1d.h) and its loops around the engines of the CPU. An op checks its
// arguments, hands them to conv1d.cu if the context is on CUDA, and else asks choose.h for an engine and the sizes of
// the pieces of scratch. Most engines know only float, and some input gradients only zero padding, so this file
//   - converts bf16 to float copies, and rounds the result once;
//   - computes a strided input gradient on the padded signal, and copies the samples that exist
//     (input_gradient_by_windows);
//   - adds the gradient of reflected padding to the samples that it reflects (fold_row, add_reflections);
//   - cuts groups out of their tensors for the weight gradient (weight_gradient_by_groups).
namespace nacre {
namespace cuda {
// The kernels of conv1d.cu. They repeat no check of this file.
template <class T>
Shape conv1d_forward_scratch(Context&, Shape x, Shape weight, const Conv1dGeometry&);
template <class T>
Shape conv1d_input_gradient_scratch(Context&, Shape dx, Shape weight, Shape dy, const Conv1dGeometry&);
template <class T>
Shape conv1d_weight_gradient_scratch(Context&, Shape x, Shape weight, Shape dy, const Conv1dGeometry&);
template <class T>
Shape conv1d_weight_gradient_parts(Context&, Shape x, Shape weight, Shape dy, const Conv1dGeometry&);
template <class T>
void conv1d_forward(Context&, const Conv1dForward<T>&);
template <class T>
void conv1d_input_gradient(Context&, const Conv1dInputGradient<T>&);
template <class T>
void conv1d_weight_gradient(Context&, const Conv1dWeightGradient<T>&);
}  // namespace cuda

namespace {

using conv::Engine;

constexpr int64_t grain = 1 << 14;  // floats that make a thread worth its start

// ---- conversions, rows

// The overloads for float and bf16 let templates over the storage convert either type. The loops are plain functions,
// not lambdas or templates, so that NACRE_CLONES can compile them for each instruction set.
void to_float_part(const float* from, float* to, int64_t n) {
  std::memcpy(to, from, static_cast<size_t>(n) * sizeof(float));
}
NACRE_CLONES void to_float_part(const bf16* __restrict from, float* __restrict to, int64_t n) {
  for (int64_t i = 0; i < n; ++i) to[i] = std::bit_cast<float>(uint32_t{from[i].bits} << 16);
}
template <class T>
void convert_to_float(Context& ctx, const T* from, float* to, int64_t n) {
  parallel_ranges(ctx, n, grain,
                  [&](int64_t begin, int64_t end) { to_float_part(from + begin, to + begin, end - begin); });
}
void to_bf16_part(const float* from, bf16* to, int64_t n) {
  for (int64_t i = 0; i < n; ++i) to[i] = to_bf16(from[i]);
}

NACRE_CLONES void add_row(const float* __restrict from, float* __restrict to, int64_t n) {
  for (int64_t i = 0; i < n; ++i) to[i] += from[i];
}

/// Adjoint of reflected padding for one sample. `padded` is the gradient of one item's padded signal in rows of
/// `channels` floats, of which row left + s is sample s. The rows left - s and left + 2 (time - 1) - s reflect that
/// sample, if they are padding. They are added to its own row. Padding is shorter than the signal, so there is at most
/// one reflection at each end. Rows of samples are written and rows of padding are only read, so samples can be folded
/// in any order and in parallel.
void fold_row(float* padded, int64_t s, int64_t left, int64_t right, int64_t time, int64_t channels) {
  float* to = padded + (left + s) * channels;
  if (s >= 1 && s <= left) add_row(padded + (left - s) * channels, to, channels);
  const int64_t mirrored = time - 1 - s;  // distance from the last sample
  if (mirrored >= 1 && mirrored <= right) add_row(padded + (left + time - 1 + mirrored) * channels, to, channels);
}

/// to = (or += with `add`) from + bias, for one row of n channels; a null bias adds nothing.
NACRE_CLONES void finish_row(const float* __restrict from, const float* __restrict bias, float* __restrict to,
                             int64_t n, bool add) {
  if (bias != nullptr && add)
    for (int64_t i = 0; i < n; ++i) to[i] += from[i] + bias[i];
  else if (bias != nullptr)
    for (int64_t i = 0; i < n; ++i) to[i] = from[i] + bias[i];
  else if (add)
    for (int64_t i = 0; i < n; ++i) to[i] += from[i];
  else
    for (int64_t i = 0; i < n; ++i) to[i] = from[i];
}
// The sum is rounded to bf16 once, the previous content included.
void finish_row(const float* from, const float* bias, bf16* to, int64_t n, bool add) {
  for (int64_t i = 0; i < n; ++i)
    to[i] = to_bf16(from[i] + (bias != nullptr ? bias[i] : 0.0f) + (add ? to_float(to[i]) : 0.0f));
}
// ---- checks

/// The shape of y for these arguments. Throws if the geometry is invalid, if x and weight do not fit it, or if y would
/// have no row. A batch of 0 is valid.
Shape expected_y(const char* op, Shape x, Shape weight, const Conv1dGeometry& g) {
  if (g.stride < 1 || g.dilation < 1 || g.groups < 1 || g.left < 0 || g.right < 0) [[unlikely]]
    throw_usage(op, "geometry has stride " + std::to_string(g.stride) + ", dilation " + std::to_string(g.dilation) +
                        ", groups " + std::to_string(g.groups) + ", left " + std::to_string(g.left) + ", right " +
                        std::to_string(g.right) + "; the first three must be positive, padding not negative");
  if (x.width != 1 || x.batch < 0 || x.time < 1 || x.channels < 1 || x.channels % g.groups != 0) [[unlikely]]
    throw_usage(op, "x is " + str(x) + ", expected [batch, time, 1, channels], channels a multiple of " +
                        std::to_string(g.groups));
  const Shape expected{weight.batch, weight.time, 1, x.channels / g.groups};
  if (weight != expected || weight.batch < 1 || weight.time < 1) [[unlikely]]
    throw_shape(op, "weight", weight,
                {std::max<int64_t>(weight.batch, 1), std::max<int64_t>(weight.time, 1), 1, expected.channels});
  if (weight.batch % g.groups != 0) [[unlikely]]
    throw_usage(op, "weight has " + std::to_string(weight.batch) + " outputs, not a multiple of " +
                        std::to_string(g.groups) + " groups");
  if (g.padding == Padding::reflect && std::max(g.left, g.right) >= x.time) [[unlikely]]
    throw_usage(op, "x has " + std::to_string(x.time) + " samples, reflect padding of " +
                        std::to_string(std::max(g.left, g.right)) + " needs more than that");
  const int64_t length = conv1d_length(x.time, weight.time, g);
  if (length < 1) [[unlikely]]
    throw_usage(op, "x has " + std::to_string(x.time) + " samples, too few for " + std::to_string(weight.time) +
                        " taps of dilation " + std::to_string(g.dilation) + " with padding " + std::to_string(g.left) +
                        " + " + std::to_string(g.right));
  return {x.batch, length, 1, weight.batch};
}

// ---- scratch

template <class T>
constexpr bool is_float = std::is_same_v<T, float>;

Shape floats(int64_t n) { return {.channels = n}; }

/// Hands out the pieces of scratch in the order of the choice (choose.h); null for pieces of size 0, which stand for
/// tensors that are used in place.
struct Scratch {
  float* data;
  float* take(int64_t floats) {
    float* const piece = floats == 0 ? nullptr : data;
    data += floats;
    return piece;
  }
};

// ---- the engines for every shape

/// Makes a kernel dense: to[o][u] = from[o][k] for u = k dilation, else zero. `to` is
/// [weight.batch][samples][weight.channels] floats, where `samples` is the kernel's span rounded up to whole strides.
template <class T>
void spread_taps(Context& ctx, const T* from, Shape weight, int64_t dilation, int64_t samples, float* to) {
  const int64_t taps = weight.time, width = weight.channels;
  parallel_ranges(ctx, weight.batch, grain / (samples * width) + 1, [&](int64_t begin, int64_t end) {
    std::fill(to + begin * samples * width, to + end * samples * width, 0.0f);
    for (int64_t o = begin; o < end; ++o)
      for (int64_t k = 0; k < taps; ++k)
        to_float_part(from + (o * taps + k) * width, to + (o * samples + k * dilation) * width, width);
  });
}

/// Engine::windows adds a residual as the previous content of y. So the residual is copied to y first, unless it is y.
/// In bf16 everything is computed in float copies, and y is rounded at the end.
template <class T>
void forward_by_windows(Context& ctx, const Conv1dForward<T>& a, const conv::ForwardChoice& choice) {
  Scratch scratch{a.scratch.data};
  float *const xs = scratch.take(choice.x), *const weights = scratch.take(choice.weight),
               *const ys = scratch.take(choice.y);
  windows::Arguments run{
      .bias = a.bias.data, .add = static_cast<bool>(a.residual), .scratch = scratch.take(choice.own)};
  const int64_t outputs = a.y.elements();
  if constexpr (is_float<T>) {
    run.x = a.x.data;
    run.weight = a.weight.data;
    if (a.residual && a.residual.data != a.y.data) convert_to_float(ctx, a.residual.data, a.y.data, outputs);
    run.y = a.y.data;
    windows::run(ctx, choice.problem, run);
  } else {
    convert_to_float(ctx, a.x.data, xs, a.x.elements());
    convert_to_float(ctx, a.weight.data, weights, a.weight.elements());
    if (a.residual) convert_to_float(ctx, a.residual.data, ys, outputs);
    run.x = xs;
    run.weight = weights;
    run.y = ys;
    windows::run(ctx, choice.problem, run);
    parallel_ranges(ctx, outputs, grain,
                    [&](int64_t begin, int64_t end) { to_bf16_part(ys + begin, a.y.data + begin, end - begin); });
  }
}

/// The input gradient as a convolution of dy (see InputGradientChoice). Without a copy of dx the engine writes dx
/// itself, with bias and previous content. Else it writes `dxs`, [batch][choice.rows][channels], of which row
/// choice.left is the first sample. Rows before and behind the samples, if any, belong to padding and to the last
/// incomplete stride. The loop at the end folds reflected padding, adds bias and previous content, and rounds.
template <class T>
void input_gradient_by_windows(Context& ctx, const Conv1dInputGradient<T>& a, const conv::InputGradientChoice& choice) {
  const Conv1dGeometry& g = a.geometry;
  Scratch scratch{a.scratch.data};
  float *const dxs = scratch.take(choice.dx), *const weights = scratch.take(choice.weight),
               *const dys = scratch.take(choice.dy);
  windows::Arguments run{.y = dxs, .scratch = scratch.take(choice.own)};
  // With a copy, bias and previous content are left to finish_row: padding must not receive them.
  if constexpr (is_float<T>) {
    run.x = a.dy.data;
    run.weight = a.weight.data;
    if (dxs == nullptr) run.y = a.dx.data, run.bias = a.bias.data, run.add = a.add_dx;
  } else {
    convert_to_float(ctx, a.dy.data, dys, a.dy.elements());
    run.x = dys;
    if (!choice.spread) convert_to_float(ctx, a.weight.data, weights, a.weight.elements());
    run.weight = weights;
  }
  if (choice.spread) {
    spread_taps(ctx, a.weight.data, a.weight.shape, g.dilation, choice.problem.taps * g.stride, weights);
    run.weight = weights;
  }
  windows::run(ctx, choice.problem, run);
  if (dxs == nullptr) return;

  // Row r of all items is sample s = r % time of an item. Each is folded and finished by one thread.
  const Shape x = a.dx.shape;
  const int64_t channels = x.channels;
  parallel_ranges(ctx, x.rows(), grain / channels + 1, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      T* const to = a.dx.data + r * channels;
      float* const padded = dxs + r / x.time * choice.rows * channels;
      const int64_t s = r % x.time;
      if (choice.folds) fold_row(padded, s, g.left, g.right, x.time, channels);
      finish_row(padded + (choice.left + s) * channels, a.bias.data, to, channels, a.add_dx);
    }
  });
}

/// Adds the gradients of reflected padding to the samples that it reflects. Runs after the engine has computed dx as
/// with zero padding, and reuses the engine's scratch. For each end: the few rows of dy that read the padding are
/// copied, their input gradient at the positions of the padding is computed with zero padding (so this function is not
/// entered again), and each position is added to its sample. A position's contribution is complete before it is added,
/// as the contract's order demands.
void add_reflections(Context& ctx, const Conv1dInputGradient<float>& a) {
  const Shape x = a.dx.shape, y = a.dy.shape;
  for (const conv::ReflectedStrip& s : conv::reflected_strips(x, a.weight.shape, a.geometry)) {
    if (s.dx.elements() == 0) continue;
    float *const dys = a.scratch.data, *const dxs = dys + s.dy_floats(), *const own = dxs + s.dx_floats();
    const int64_t of_dy = s.dy.time * y.channels;
    parallel_ranges(ctx, x.batch, grain / of_dy + 1, [&](int64_t begin, int64_t end) {
      for (int64_t b = begin; b < end; ++b)
        to_float_part(a.dy.data + (b * y.time + s.dy_begin) * y.channels, dys + b * of_dy, of_dy);
    });
    conv1d_input_gradient<float>(
        ctx,
        {.dy = {dys, s.dy},
         .weight = a.weight,
         .dx = {dxs, s.dx},
         .scratch = {own, floats(conv::choose_input_gradient<float>(ctx, s.dx, a.weight.shape, s.geometry).scratch())},
         .geometry = s.geometry});
    // Position `at` of the padded signal, counted from the first sample, reflects sample -at or 2 (time - 1) - at.
    // Positions of one strip reflect different samples, and items are apart.
    parallel_ranges(ctx, x.batch, grain / (s.dx.time * x.channels) + 1, [&](int64_t begin, int64_t end) {
      for (int64_t b = begin; b < end; ++b)
        for (int64_t j = 0; j < s.dx.time; ++j) {
          const int64_t at = s.first + j, reflected = at < 0 ? -at : 2 * (x.time - 1) - at;
          add_row(dxs + (b * s.dx.time + j) * x.channels, a.dx.data + (b * x.time + reflected) * x.channels,
                  x.channels);
        }
    });
  }
}

/// dweight of several groups. Narrow groups are computed together by conv1d_groups.h, on whole tensors. For wide
/// groups, where `xs` is not null, the channels of one group after the other are copied to xs and dys, and
/// conv1d_direct.h computes that group's rows of dweight, which are contiguous. all_x and all_dy hold the float copies
/// of bf16 tensors, and are null for float.
template <class T>
void weight_gradient_by_groups(Context& ctx, const Conv1dWeightGradient<T>& a, float* all_x, float* all_dy, float* xs,
                               float* dys, float* own) {
  const Shape x = a.x.shape, y = a.dy.shape;
  const float *from_x, *from_dy;
  if constexpr (is_float<T>) {
    from_x = a.x.data, from_dy = a.dy.data;
  } else {
    convert_to_float(ctx, a.x.data, all_x, x.elements());
    convert_to_float(ctx, a.dy.data, all_dy, y.elements());
    from_x = all_x, from_dy = all_dy;
  }
  if (xs == nullptr) return groups::weight_gradient(ctx, from_x, x, from_dy, y, a.geometry, a.dweight, own);
  Conv1dGeometry geometry = a.geometry;
  geometry.groups = 1;
  const int64_t groups = a.geometry.groups, in = x.channels / groups, out = y.channels / groups;
  const Shape of_weight{a.dweight.shape.batch / groups, a.dweight.shape.time, 1, a.dweight.shape.channels};
  for (int64_t group = 0; group < groups; ++group) {
    windows::take_columns(ctx, from_x, x.rows(), x.channels, group * in, in, xs);
    windows::take_columns(ctx, from_dy, y.rows(), y.channels, group * out, out, dys);
    direct::weight_gradient<float>(ctx,
                                   {.x = {xs, {x.batch, x.time, 1, in}},
                                    .dy = {dys, {y.batch, y.time, 1, out}},
                                    .dweight = {a.dweight.data + group * of_weight.elements(), of_weight},
                                    .geometry = geometry},
                                   own);
  }
}

}  // namespace

int64_t conv1d_length(int64_t time, int64_t taps, const Conv1dGeometry& g) {
  const int64_t span = time + g.left + g.right - g.dilation * (taps - 1) - 1;
  // Division truncates towards zero: without this case a span between -stride and 0 would give a length of 1.
  return span < 0 ? 0 : span / g.stride + 1;
}

template <class T>
Shape conv1d_forward_scratch(Context& ctx, Shape x, Shape weight, const Conv1dGeometry& g) {
  expected_y("conv1d_forward_scratch", x, weight, g);
  if constexpr (with_cuda)
    if (on_cuda(ctx)) return cuda::conv1d_forward_scratch<T>(ctx, x, weight, g);
  if (x.batch == 0) return {0, 0, 0, 0};
  return floats(conv::choose_forward<T>(ctx, x, weight, g).scratch());
}

template <class T>
void conv1d_forward(Context& ctx, const Conv1dForward<T>& a) {
  const char* const op = "conv1d_forward";
  const Shape y = expected_y(op, a.x.shape, a.weight.shape, a.geometry);
  // expected_y has checked the shapes of x and weight. Here they are only required to have data.
  expect_shape(op, "x", a.x, a.x.shape);
  expect_shape(op, "weight", a.weight, a.weight.shape);
  expect_shape(op, "y", a.y, y);
  expect_shape_or_empty(op, "bias", a.bias, {1, 1, 1, y.channels});
  expect_shape_or_empty(op, "residual", a.residual, y);
  if constexpr (with_cuda)
    if (on_cuda(ctx)) return cuda::conv1d_forward(ctx, a);
  const conv::ForwardChoice choice = conv::choose_forward<T>(ctx, a.x.shape, a.weight.shape, a.geometry);
  if (choice.engine == Engine::nothing) return;
  expect_scratch(op, a.scratch, floats(choice.scratch()));
  if (choice.engine == Engine::direct) return direct::forward(ctx, a, a.scratch.data);
  if (choice.engine == Engine::windows) return forward_by_windows(ctx, a, choice);
  // What is left is pointwise or karatsuba, which are chosen for float alone.
  if constexpr (is_float<T>) conv::run_forward(ctx, choice.engine, a, a.scratch.data);
}

template <class T>
Shape conv1d_input_gradient_scratch(Context& ctx, Shape dx, Shape weight, Shape dy, const Conv1dGeometry& g) {
  const char* const op = "conv1d_input_gradient_scratch";
  const Shape y = expected_y(op, dx, weight, g);
  if (dy != y) throw_shape(op, "dy", dy, y);
  if constexpr (with_cuda)
    if (on_cuda(ctx)) return cuda::conv1d_input_gradient_scratch<T>(ctx, dx, weight, dy, g);
  if (dx.batch == 0) return {0, 0, 0, 0};
  return floats(conv::choose_input_gradient<T>(ctx, dx, weight, g).scratch());
}

template <class T>
void conv1d_input_gradient(Context& ctx, const Conv1dInputGradient<T>& a) {
  const char* const op = "conv1d_input_gradient";
  const Shape x = a.dx.shape;
  const Shape y = expected_y(op, x, a.weight.shape, a.geometry);
  expect_shape(op, "dy", a.dy, y);
  expect_shape(op, "weight", a.weight, a.weight.shape);
  expect_shape(op, "dx", a.dx, x);
  expect_shape_or_empty(op, "bias", a.bias, {1, 1, 1, x.channels});
  if constexpr (with_cuda)
    if (on_cuda(ctx)) return cuda::conv1d_input_gradient(ctx, a);
  const conv::InputGradientChoice choice = conv::choose_input_gradient<T>(ctx, x, a.weight.shape, a.geometry);
  if (choice.engine == Engine::nothing) return;
  expect_scratch(op, a.scratch, floats(choice.scratch()));
  // In bf16 the engine is always windows, and its copy of dx has rows for the padding. Only float has strips, which
  // follow when dx is complete.
  if (choice.engine == Engine::windows) input_gradient_by_windows(ctx, a, choice);
  if constexpr (is_float<T>) {
    if (choice.engine != Engine::windows) conv::run_input_gradient(ctx, choice.engine, a, a.scratch.data);
    if (choice.strips > 0) add_reflections(ctx, a);
  }
}

template <class T>
Shape conv1d_weight_gradient_scratch(Context& ctx, Shape x, Shape weight, Shape dy, const Conv1dGeometry& g) {
  const char* const op = "conv1d_weight_gradient_scratch";
  const Shape y = expected_y(op, x, weight, g);
  if (dy != y) throw_shape(op, "dy", dy, y);
  if constexpr (with_cuda)
    if (on_cuda(ctx)) return cuda::conv1d_weight_gradient_scratch<T>(ctx, x, weight, dy, g);
  if (x.batch == 0) return {0, 0, 0, 0};
  return floats(conv::choose_weight_gradient<T>(ctx, x, weight, g).scratch());
}

template <class T>
Shape conv1d_weight_gradient_parts(Context& ctx, Shape x, Shape weight, Shape dy, const Conv1dGeometry& g) {
  const char* const op = "conv1d_weight_gradient_parts";
  const Shape y = expected_y(op, x, weight, g);
  if (dy != y) throw_shape(op, "dy", dy, y);
  if constexpr (with_cuda)
    if (on_cuda(ctx)) return cuda::conv1d_weight_gradient_parts<T>(ctx, x, weight, dy, g);
  // On the CPU gradients are complete when the op returns: there are no parts for finish_gradient_sums().
  return {0, 0, 0, 0};
}

template <class T>
void conv1d_weight_gradient(Context& ctx, const Conv1dWeightGradient<T>& a) {
  const char* const op = "conv1d_weight_gradient";
  const Shape x = a.x.shape, weight = a.dweight.shape;
  const Shape y = expected_y(op, x, weight, a.geometry);
  expect_shape(op, "x", a.x, x);
  expect_shape(op, "dy", a.dy, y);
  expect_shape(op, "dweight", a.dweight, weight);
  expect_shape_or_empty(op, "dbias", a.dbias, {1, 1, 1, y.channels});
  expect_shape_or_empty(op, "dbias_of_x", a.dbias_of_x, {1, 1, 1, x.channels});
  const bool empty = y.elements() == 0;
  if (!a.add_dweight && (empty || !on_cuda(ctx))) ctx.zero(a.dweight);  // the loops of the CPU add
  if (empty) return;
  if constexpr (with_cuda)
    if (on_cuda(ctx)) return cuda::conv1d_weight_gradient(ctx, a);
  const conv::WeightGradientChoice choice = conv::choose_weight_gradient<T>(ctx, x, weight, a.geometry);
  expect_scratch(op, a.scratch, floats(choice.scratch()));
  Scratch scratch{a.scratch.data};
  float *const all_x = scratch.take(choice.x), *const all_dy = scratch.take(choice.dy),
               *const xs = scratch.take(choice.group_x), *const dys = scratch.take(choice.group_dy),
               *const own = scratch.take(choice.own);
  if (choice.engine == Engine::direct || choice.engine == Engine::groups)
    a.geometry.groups == 1 ? direct::weight_gradient(ctx, a, own)
                           : weight_gradient_by_groups(ctx, a, all_x, all_dy, xs, dys, own);
  if constexpr (is_float<T>) {
    if (choice.engine == Engine::karatsuba) karatsuba::weight_gradient(ctx, a, own);
    if (choice.engine == Engine::blocks) blocks::weight_gradient(ctx, a, own);
  }
  // The engine has finished, so its scratch is free for the sums of the biases.
  if (a.dbias) conv::add_column_sums(ctx, a.dy, a.dbias, own);
  if (a.dbias_of_x) conv::add_column_sums(ctx, a.x, a.dbias_of_x, own);
}

#define NACRE_INSTANTIATE(T)                                                                              \
  template Shape conv1d_forward_scratch<T>(Context&, Shape, Shape, const Conv1dGeometry&);                \
  template Shape conv1d_input_gradient_scratch<T>(Context&, Shape, Shape, Shape, const Conv1dGeometry&);  \
  template Shape conv1d_weight_gradient_scratch<T>(Context&, Shape, Shape, Shape, const Conv1dGeometry&); \
  template Shape conv1d_weight_gradient_parts<T>(Context&, Shape, Shape, Shape, const Conv1dGeometry&);   \
  template void conv1d_forward<T>(Context&, const Conv1dForward<T>&);                                     \
  template void conv1d_input_gradient<T>(Context&, const Conv1dInputGradient<T>&);                        \
  template void conv1d_weight_gradient<T>(Context&, const Conv1dWeightGradient<T>&);
NACRE_INSTANTIATE(float)
NACRE_INSTANTIATE(bf16)
#undef NACRE_INSTANTIATE

}  // namespace nacre
