#include "nacre/ops/conv1d.h"

#include <cstring>
#include <string>
#include <type_traits>

#include "conv/conv1d_blocks.h"
#include "conv/conv1d_direct.h"
#include "conv/conv1d_karatsuba.h"
#include "conv/conv1d_pointwise.h"
#include "conv/conv1d_windows.h"
#include "runtime/host.h"

namespace nacre {
namespace cuda {
template <class T>
Shape conv1d_forward_scratch(Context&, Shape x, Shape weight, const Conv1dGeometry&);
template <class T>
Shape conv1d_input_gradient_scratch(Context&, Shape dx, Shape weight, Shape dy, const Conv1dGeometry&);
template <class T>
Shape conv1d_weight_gradient_scratch(Context&, Shape x, Shape weight, Shape dy, const Conv1dGeometry&);
template <class T>
void conv1d_forward(Context&, const Conv1dForward<T>&);
template <class T>
void conv1d_input_gradient(Context&, const Conv1dInputGradient<T>&);
template <class T>
void conv1d_weight_gradient(Context&, const Conv1dWeightGradient<T>&);
}  // namespace cuda

namespace {

constexpr int64_t grain = 1 << 14;  // floats that make a thread worth its start

int64_t rounded(int64_t floats) { return (floats + 15) / 16 * 16; }

// ---- conversions, padding, rows

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

/// The sample of x at position `at` of the padded signal, counted from the first sample; -1 for a zero.
int64_t source_sample(int64_t at, int64_t time, Padding padding) {
  if (at >= 0 && at < time) return at;
  if (padding == Padding::zero) return -1;
  return at < 0 ? -at : 2 * (time - 1) - at;
}

/// Writes x with its padding, converted to float.
template <class T>
void pad_rows(Context& ctx, View<const T> x, int64_t left, int64_t right, Padding padding, float* to) {
  const int64_t time = x.shape.time, channels = x.shape.channels, rows = left + time + right;
  parallel_ranges(ctx, x.shape.batch * rows, grain / channels + 1, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end;) {
      const int64_t b = r / rows, at = r % rows - left;
      if (at >= 0 && at < time) {  // a run of samples that are not padding
        const int64_t n = std::min(time - at, end - r);
        to_float_part(x.data + (b * time + at) * channels, to + r * channels, n * channels);
        r += n;
        continue;
      }
      const int64_t source = source_sample(at, time, padding);
      if (source < 0)
        std::memset(to + r * channels, 0, static_cast<size_t>(channels) * sizeof(float));
      else
        to_float_part(x.data + (b * time + source) * channels, to + r * channels, channels);
      ++r;
    }
  });
}

NACRE_CLONES void add_row(const float* __restrict from, float* __restrict to, int64_t n) {
  for (int64_t i = 0; i < n; ++i) to[i] += from[i];
}

/// Adjoint of reflected padding for one sample: adds the gradients of the positions that reflect sample s to its own
/// row, left + s, of `padded`.
void fold_row(float* padded, int64_t s, int64_t left, int64_t right, int64_t time, int64_t channels) {
  float* to = padded + (left + s) * channels;
  if (s >= 1 && s <= left) add_row(padded + (left - s) * channels, to, channels);
  const int64_t mirrored = time - 1 - s;  // distance from the last sample
  if (mirrored >= 1 && mirrored <= right) add_row(padded + (left + time - 1 + mirrored) * channels, to, channels);
}

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
void finish_row(const float* from, const float* bias, bf16* to, int64_t n, bool add) {
  for (int64_t i = 0; i < n; ++i)
    to[i] = to_bf16(from[i] + (bias != nullptr ? bias[i] : 0.0f) + (add ? to_float(to[i]) : 0.0f));
}
// ---- sums of columns

// Per part, rows are added four at a time into one accumulator row; parts are added in order. Narrow rows are joined,
// so that they fill vectors: rows_at_once rows are `width` columns.
struct ColumnSums {
  int64_t channels = 0, rows_at_once = 1, width = 0, groups_of_rows = 0, rest = 0, parts = 1;
  explicit ColumnSums(Shape s) : channels(s.channels) {
    rows_at_once = channels > 0 && channels < 64 ? 64 / channels : 1;
    width = rows_at_once * channels;
    groups_of_rows = s.rows() / rows_at_once;
    rest = s.rows() % rows_at_once;
    parts = std::clamp<int64_t>(groups_of_rows / 64, 1, 64);
  }
  int64_t scratch() const { return parts * rounded(width); }
};

NACRE_CLONES void sum_rows(const float* __restrict from, int64_t rows, int64_t n, float* __restrict to) {
  for (int64_t i = 0; i < n; ++i) to[i] = 0;
  int64_t r = 0;
  for (; r + 4 <= rows; r += 4, from += 4 * n)
    for (int64_t i = 0; i < n; ++i) to[i] += (from[i] + from[i + n]) + (from[i + 2 * n] + from[i + 3 * n]);
  for (; r < rows; ++r, from += n)
    for (int64_t i = 0; i < n; ++i) to[i] += from[i];
}
void sum_rows(const bf16* from, int64_t rows, int64_t n, float* to) {
  for (int64_t i = 0; i < n; ++i) to[i] = 0;
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t i = 0; i < n; ++i) to[i] += to_float(from[r * n + i]);
}

template <class T>
void add_column_sums(Context& ctx, View<const T> x, View<float> sums, float* scratch) {
  const ColumnSums plan(x.shape);
  const int64_t pitch = rounded(plan.width);
  parallel_parts(ctx, plan.parts, [&](int64_t p) {
    const int64_t begin = plan.groups_of_rows * p / plan.parts, end = plan.groups_of_rows * (p + 1) / plan.parts;
    sum_rows(x.data + begin * plan.width, end - begin, plan.width, scratch + p * pitch);
  });
  for (int64_t p = 0; p < plan.parts; ++p)
    for (int64_t k = 0; k < plan.rows_at_once; ++k)
      for (int64_t c = 0; c < plan.channels; ++c) sums.data[c] += scratch[p * pitch + k * plan.channels + c];
  for (int64_t i = plan.groups_of_rows * plan.width; i < x.elements(); ++i)
    sums.data[i % plan.channels] += to_float(x.data[i]);
}

// ---- checks

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

// ---- scratch and problems of conv1d_windows.h

template <class T>
constexpr bool is_float = std::is_same_v<T, float>;

/// Hands out pieces of scratch in order. Without data it only counts the floats.
struct ScratchAllocator {
  float* data = nullptr;
  int64_t used = 0;
  float* take(int64_t floats) {
    float* piece = data == nullptr ? nullptr : data + used;
    used += rounded(floats);
    return piece;
  }
};

/// Whether x is copied with its padding: reflected padding must be in memory, zero padding is handled by the loops.
bool padding_in_memory(const Conv1dGeometry& g) { return g.padding == Padding::reflect; }
int64_t rows_of(Shape x, const Conv1dGeometry& g) { return padding_in_memory(g) ? g.left + x.time + g.right : x.time; }

windows::Problem forward_problem(Shape x, Shape weight, Shape y, const Conv1dGeometry& g) {
  return {.batch = x.batch,
          .time = rows_of(x, g),
          .length = y.time,
          .in = x.channels,
          .out = y.channels,
          .taps = weight.time,
          .stride = g.stride,
          .dilation = g.dilation,
          .groups = g.groups,
          .left = padding_in_memory(g) ? 0 : g.left};
}

template <class T>
struct ForwardPieces {
  ForwardPieces(ScratchAllocator& allocator, const Context& ctx, Shape x, Shape weight, Shape y,
                const Conv1dGeometry& g, const windows::Problem& p) {
    if (!is_float<T> || padding_in_memory(g)) xs = allocator.take(x.batch * p.time * x.channels);
    if (!is_float<T>) weights = allocator.take(weight.elements()), ys = allocator.take(y.elements());
    inner = allocator.take(windows::scratch(ctx, p));
  }
  float *xs = nullptr, *weights = nullptr, *ys = nullptr, *inner = nullptr;
};

/// The input gradient as a convolution of dy. With stride s, a strided kernel is a dense one on the view
/// [time / s, s * channels] of x. Its weight is the same memory if the kernel's length is a multiple of the stride and
/// there is no dilation; else the weight is copied with zeros between and after the taps (`spread`).
struct InputGradientPlan {
  InputGradientPlan(Shape dx, Shape weight, Shape dy, const Conv1dGeometry& g) {
    p = {.batch = dx.batch,
         .time = dy.time,
         .length = rows_of(dx, g),
         .in = dy.channels,
         .out = dx.channels,
         .taps = weight.time,
         .dilation = g.dilation,
         .groups = g.groups,
         .left = (weight.time - 1) * g.dilation - (padding_in_memory(g) ? 0 : g.left),
         .adjoint = true};
    rows = p.length;
    left = padding_in_memory(g) ? g.left : 0;
    if (g.stride == 1) return;
    spread = g.dilation > 1 || weight.time % g.stride != 0;
    p.taps = ((weight.time - 1) * g.dilation + g.stride) / g.stride;
    p.length = (g.left + dx.time + g.right + g.stride - 1) / g.stride;
    p.out = dx.channels * g.stride;
    p.dilation = 1;
    p.left = p.taps - 1;
    p.samples = g.stride;
    rows = p.length * g.stride;
    left = g.left;
  }
  int64_t weights() const { return p.in * p.taps * p.out / p.groups; }
  windows::Problem p;
  int64_t rows = 0, left = 0;  ///< rows of the computed gradient per item; which of them is the first row of dx
  bool spread = false;
};
template <class T>
struct InputGradientPieces {
  InputGradientPieces(ScratchAllocator& allocator, const Context& ctx, Shape dx, Shape weight, Shape dy,
                      const Conv1dGeometry& g, const InputGradientPlan& plan) {
    in_place = is_float<T> && !padding_in_memory(g) && g.stride == 1;
    if (!in_place) dxs = allocator.take(dx.batch * plan.rows * dx.channels);
    if (!is_float<T> || plan.spread) weights = allocator.take(plan.spread ? plan.weights() : weight.elements());
    if (!is_float<T>) dys = allocator.take(dy.elements());
    inner = allocator.take(windows::scratch(ctx, plan.p));
  }
  bool in_place;
  float *dxs = nullptr, *weights = nullptr, *dys = nullptr, *inner = nullptr;
};
/// to[o][u] = from[o][k] where tap k reads sample u of the window, else zero.
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

/// Several groups are computed one after the other, each on copies of its channels.
template <class T>
struct WeightGradientPieces {
  WeightGradientPieces(ScratchAllocator& allocator, const Context& ctx, Shape x, Shape weight, Shape dy,
                       const Conv1dGeometry& g)
      : of_x{x.batch, x.time, 1, x.channels / g.groups},
        of_dy{dy.batch, dy.time, 1, dy.channels / g.groups},
        of_weight{weight.batch / g.groups, weight.time, 1, weight.channels},
        geometry(g) {
    geometry.groups = 1;
    int64_t most = std::max(ColumnSums(x).scratch(), ColumnSums(dy).scratch());
    if (g.groups > 1) {
      if (!is_float<T>) all_x = allocator.take(x.elements()), all_dy = allocator.take(dy.elements());
      xs = allocator.take(of_x.elements()), dys = allocator.take(of_dy.elements());
      most = std::max(most, direct::weight_gradient_scratch(ctx, of_x, of_weight, of_dy, geometry));
    } else {
      most = std::max(most, direct::weight_gradient_scratch(ctx, x, weight, dy, g));
    }
    inner = allocator.take(most);
  }
  Shape of_x, of_dy, of_weight;
  Conv1dGeometry geometry;
  float *all_x = nullptr, *all_dy = nullptr, *xs = nullptr, *dys = nullptr, *inner = nullptr;
};

}  // namespace

int64_t conv1d_length(int64_t time, int64_t taps, const Conv1dGeometry& g) {
  const int64_t span = time + g.left + g.right - g.dilation * (taps - 1) - 1;
  return span < 0 ? 0 : span / g.stride + 1;
}

template <class T>
Shape conv1d_forward_scratch(Context& ctx, Shape x, Shape weight, const Conv1dGeometry& g) {
  const Shape y = expected_y("conv1d_forward_scratch", x, weight, g);
  if constexpr (with_cuda)
    if (on_cuda(ctx)) return cuda::conv1d_forward_scratch<T>(ctx, x, weight, g);
  if (x.batch == 0) return {0, 0, 0, 0};
  if (direct::supports_forward(x, weight, g)) return {1, 1, 1, direct::forward_scratch(ctx, x, weight, g)};
  if (is_float<T> && pointwise::supports(x, weight, y, g)) return {1, 1, 1, pointwise::forward_scratch(ctx, weight)};
  if (is_float<T> && karatsuba::supports(x, weight, y, g))
    return {1, 1, 1, karatsuba::forward_scratch(ctx, x, weight, y, g)};
  ScratchAllocator allocator;
  ForwardPieces<T>(allocator, ctx, x, weight, y, g, forward_problem(x, weight, y, g));
  return {1, 1, 1, allocator.used};
}

template <class T>
void conv1d_forward(Context& ctx, const Conv1dForward<T>& a) {
  const char* const op = "conv1d_forward";
  const Conv1dGeometry& g = a.geometry;
  const Shape y = expected_y(op, a.x.shape, a.weight.shape, g);
  expect_shape(op, "x", a.x, a.x.shape);
  expect_shape(op, "weight", a.weight, a.weight.shape);
  expect_shape(op, "y", a.y, y);
  expect_shape_or_empty(op, "bias", a.bias, {1, 1, 1, y.channels});
  expect_shape_or_empty(op, "residual", a.residual, y);
  if constexpr (with_cuda)
    if (on_cuda(ctx)) return cuda::conv1d_forward(ctx, a);
  if (y.batch == 0) return;
  if (direct::supports_forward(a.x.shape, a.weight.shape, g)) {
    expect_scratch(op, a.scratch, {1, 1, 1, direct::forward_scratch(ctx, a.x.shape, a.weight.shape, g)});
    return direct::forward(ctx, a, a.scratch.data);
  }
  if constexpr (is_float<T>) {
    if (pointwise::supports(a.x.shape, a.weight.shape, y, g)) {
      expect_scratch(op, a.scratch, {1, 1, 1, pointwise::forward_scratch(ctx, a.weight.shape)});
      return pointwise::forward(ctx, a, a.scratch.data);
    }
    if (karatsuba::supports(a.x.shape, a.weight.shape, y, g)) {
      expect_scratch(op, a.scratch, {1, 1, 1, karatsuba::forward_scratch(ctx, a.x.shape, a.weight.shape, y, g)});
      return karatsuba::forward(ctx, a, a.scratch.data);
    }
  }

  const windows::Problem p = forward_problem(a.x.shape, a.weight.shape, y, g);
  ScratchAllocator allocator{.data = a.scratch.data};
  const ForwardPieces<T> pieces(allocator, ctx, a.x.shape, a.weight.shape, y, g, p);
  expect_scratch(op, a.scratch, {1, 1, 1, allocator.used});

  windows::Arguments run{.bias = a.bias.data, .add = static_cast<bool>(a.residual), .scratch = pieces.inner};
  if (pieces.xs != nullptr) {
    pad_rows(ctx, a.x, padding_in_memory(g) ? g.left : 0, padding_in_memory(g) ? g.right : 0, g.padding, pieces.xs);
    run.x = pieces.xs;
  }
  if constexpr (is_float<T>) {
    if (run.x == nullptr) run.x = a.x.data;
    run.weight = a.weight.data;
    if (a.residual && a.residual.data != a.y.data) convert_to_float(ctx, a.residual.data, a.y.data, y.elements());
    run.y = a.y.data;
    windows::run(ctx, p, run);
  } else {
    convert_to_float(ctx, a.weight.data, pieces.weights, a.weight.elements());
    if (a.residual) convert_to_float(ctx, a.residual.data, pieces.ys, y.elements());
    run.weight = pieces.weights;
    run.y = pieces.ys;
    windows::run(ctx, p, run);
    parallel_ranges(ctx, y.elements(), grain, [&](int64_t begin, int64_t end) {
      to_bf16_part(pieces.ys + begin, a.y.data + begin, end - begin);
    });
  }
}

template <class T>
Shape conv1d_input_gradient_scratch(Context& ctx, Shape dx, Shape weight, Shape dy, const Conv1dGeometry& g) {
  const char* const op = "conv1d_input_gradient_scratch";
  const Shape y = expected_y(op, dx, weight, g);
  if (dy != y) throw_shape(op, "dy", dy, y);
  if constexpr (with_cuda)
    if (on_cuda(ctx)) return cuda::conv1d_input_gradient_scratch<T>(ctx, dx, weight, dy, g);
  if (dx.batch == 0) return {0, 0, 0, 0};
  if (is_float<T> && pointwise::supports(dx, weight, dy, g))
    return {1, 1, 1, pointwise::input_gradient_scratch(ctx, weight)};
  if (is_float<T> && karatsuba::supports_input_gradient(dx, weight, dy, g))
    return {1, 1, 1, karatsuba::input_gradient_scratch(ctx, dx, weight, dy, g)};
  const InputGradientPlan plan(dx, weight, dy, g);
  ScratchAllocator allocator;
  InputGradientPieces<T>(allocator, ctx, dx, weight, dy, g, plan);
  return {1, 1, 1, allocator.used};
}

template <class T>
void conv1d_input_gradient(Context& ctx, const Conv1dInputGradient<T>& a) {
  const char* const op = "conv1d_input_gradient";
  const Conv1dGeometry& g = a.geometry;
  const Shape x = a.dx.shape;
  const Shape y = expected_y(op, x, a.weight.shape, g);
  expect_shape(op, "dy", a.dy, y);
  expect_shape(op, "weight", a.weight, a.weight.shape);
  expect_shape(op, "dx", a.dx, x);
  expect_shape_or_empty(op, "bias", a.bias, {1, 1, 1, x.channels});
  if constexpr (with_cuda)
    if (on_cuda(ctx)) return cuda::conv1d_input_gradient(ctx, a);
  if (x.batch == 0) return;
  if constexpr (is_float<T>) {
    if (pointwise::supports(x, a.weight.shape, y, g)) {
      expect_scratch(op, a.scratch, {1, 1, 1, pointwise::input_gradient_scratch(ctx, a.weight.shape)});
      return pointwise::input_gradient(ctx, a, a.scratch.data);
    }
    if (karatsuba::supports_input_gradient(x, a.weight.shape, y, g)) {
      expect_scratch(op, a.scratch, {1, 1, 1, karatsuba::input_gradient_scratch(ctx, x, a.weight.shape, y, g)});
      return karatsuba::input_gradient(ctx, a, a.scratch.data);
    }
  }

  const InputGradientPlan plan(x, a.weight.shape, y, g);
  ScratchAllocator allocator{.data = a.scratch.data};
  const InputGradientPieces<T> pieces(allocator, ctx, x, a.weight.shape, y, g, plan);
  expect_scratch(op, a.scratch, {1, 1, 1, allocator.used});

  windows::Arguments run{.y = pieces.dxs, .scratch = pieces.inner};
  if constexpr (is_float<T>) {
    run.x = a.dy.data;
    run.weight = a.weight.data;
    if (pieces.in_place) run.y = a.dx.data, run.bias = a.bias.data, run.add = a.add_dx;
  } else {
    convert_to_float(ctx, a.dy.data, pieces.dys, y.elements());
    run.x = pieces.dys;
    if (!plan.spread) convert_to_float(ctx, a.weight.data, pieces.weights, a.weight.elements());
    run.weight = pieces.weights;
  }
  if (plan.spread) {
    spread_taps(ctx, a.weight.data, a.weight.shape, g.dilation, plan.p.taps * g.stride, pieces.weights);
    run.weight = pieces.weights;
  }
  windows::run(ctx, plan.p, run);
  if (pieces.in_place) return;

  const int64_t channels = x.channels;
  parallel_ranges(ctx, x.rows(), grain / channels + 1, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      T* const to = a.dx.data + r * channels;
      float* const padded = pieces.dxs + r / x.time * plan.rows * channels;
      const int64_t s = r % x.time;
      if (padding_in_memory(g)) fold_row(padded, s, g.left, g.right, x.time, channels);
      finish_row(padded + (plan.left + s) * channels, a.bias.data, to, channels, a.add_dx);
    }
  });
}

template <class T>
Shape conv1d_weight_gradient_scratch(Context& ctx, Shape x, Shape weight, Shape dy, const Conv1dGeometry& g) {
  const char* const op = "conv1d_weight_gradient_scratch";
  const Shape y = expected_y(op, x, weight, g);
  if (dy != y) throw_shape(op, "dy", dy, y);
  if constexpr (with_cuda)
    if (on_cuda(ctx)) return cuda::conv1d_weight_gradient_scratch<T>(ctx, x, weight, dy, g);
  if (x.batch == 0) return {0, 0, 0, 0};
  const int64_t sums = std::max(ColumnSums(x).scratch(), ColumnSums(dy).scratch());
  if (is_float<T> && karatsuba::supports_weight_gradient(x, weight, dy, g))
    return {1, 1, 1, std::max(karatsuba::weight_gradient_scratch(ctx, x, weight, dy, g), sums)};
  if (is_float<T> && blocks::supports(x, weight, dy, g))
    return {1, 1, 1, std::max(blocks::weight_gradient_scratch(ctx, x, weight, dy), sums)};
  ScratchAllocator allocator;
  WeightGradientPieces<T>(allocator, ctx, x, weight, dy, g);
  return {1, 1, 1, allocator.used};
}

template <class T>
void conv1d_weight_gradient(Context& ctx, const Conv1dWeightGradient<T>& a) {
  const char* const op = "conv1d_weight_gradient";
  const Conv1dGeometry& g = a.geometry;
  const Shape x = a.x.shape;
  const Shape y = expected_y(op, x, a.dweight.shape, g);
  expect_shape(op, "x", a.x, x);
  expect_shape(op, "dy", a.dy, y);
  expect_shape(op, "dweight", a.dweight, a.dweight.shape);
  expect_shape_or_empty(op, "dbias", a.dbias, {1, 1, 1, y.channels});
  expect_shape_or_empty(op, "dbias_of_x", a.dbias_of_x, {1, 1, 1, x.channels});
  const bool empty = y.elements() == 0;
  if (!a.add_dweight && (empty || !on_cuda(ctx))) ctx.zero(a.dweight);  // the loops of the CPU add
  if (empty) return;
  if constexpr (with_cuda)
    if (on_cuda(ctx)) return cuda::conv1d_weight_gradient(ctx, a);
  if constexpr (is_float<T>) {
    const int64_t sums = std::max(ColumnSums(x).scratch(), ColumnSums(y).scratch());
    const bool use_karatsuba = karatsuba::supports_weight_gradient(x, a.dweight.shape, y, g);
    if (use_karatsuba || blocks::supports(x, a.dweight.shape, y, g)) {
      const int64_t needed = use_karatsuba ? karatsuba::weight_gradient_scratch(ctx, x, a.dweight.shape, y, g)
                                           : blocks::weight_gradient_scratch(ctx, x, a.dweight.shape, y);
      expect_scratch(op, a.scratch, {1, 1, 1, std::max(needed, sums)});
      use_karatsuba ? karatsuba::weight_gradient(ctx, a, a.scratch.data)
                    : blocks::weight_gradient(ctx, a, a.scratch.data);
      if (a.dbias) add_column_sums(ctx, a.dy, a.dbias, a.scratch.data);
      if (a.dbias_of_x) add_column_sums(ctx, a.x, a.dbias_of_x, a.scratch.data);
      return;
    }
  }
  ScratchAllocator allocator{.data = a.scratch.data};
  const WeightGradientPieces<T> pieces(allocator, ctx, x, a.dweight.shape, y, g);
  expect_scratch(op, a.scratch, {1, 1, 1, allocator.used});
  if (g.groups == 1) {
    direct::weight_gradient(ctx, a, pieces.inner);
  } else {
    const float *from_x, *from_dy;
    if constexpr (is_float<T>) {
      from_x = a.x.data, from_dy = a.dy.data;
    } else {
      convert_to_float(ctx, a.x.data, pieces.all_x, x.elements());
      convert_to_float(ctx, a.dy.data, pieces.all_dy, y.elements());
      from_x = pieces.all_x, from_dy = pieces.all_dy;
    }
    const int64_t in = pieces.of_x.channels, out = pieces.of_dy.channels;
    for (int64_t group = 0; group < g.groups; ++group) {
      windows::take_columns(ctx, from_x, x.rows(), x.channels, group * in, in, pieces.xs);
      windows::take_columns(ctx, from_dy, y.rows(), y.channels, group * out, out, pieces.dys);
      direct::weight_gradient<float>(
          ctx,
          {.x = {pieces.xs, pieces.of_x},
           .dy = {pieces.dys, pieces.of_dy},
           .dweight = {a.dweight.data + group * pieces.of_weight.elements(), pieces.of_weight},
           .geometry = pieces.geometry},
          pieces.inner);
    }
  }
  if (a.dbias) add_column_sums(ctx, a.dy, a.dbias, pieces.inner);
  if (a.dbias_of_x) add_column_sums(ctx, a.x, a.dbias_of_x, pieces.inner);
}

#define NACRE_INSTANTIATE(T)                                                                              \
  template Shape conv1d_forward_scratch<T>(Context&, Shape, Shape, const Conv1dGeometry&);                \
  template Shape conv1d_input_gradient_scratch<T>(Context&, Shape, Shape, Shape, const Conv1dGeometry&);  \
  template Shape conv1d_weight_gradient_scratch<T>(Context&, Shape, Shape, Shape, const Conv1dGeometry&); \
  template void conv1d_forward<T>(Context&, const Conv1dForward<T>&);                                     \
  template void conv1d_input_gradient<T>(Context&, const Conv1dInputGradient<T>&);                        \
  template void conv1d_weight_gradient<T>(Context&, const Conv1dWeightGradient<T>&);
NACRE_INSTANTIATE(float)
NACRE_INSTANTIATE(bf16)
#undef NACRE_INSTANTIATE

}  // namespace nacre
