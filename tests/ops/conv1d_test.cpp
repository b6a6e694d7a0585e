#include "nacre/ops/conv1d.h"

#include "conv/choose.h"
#include "conv/choose_cuda.h"
#include "conv/conv1d_windows.h"
#include "harness.h"
#include "reference/conv1d.h"

#if defined(NACRE_WITH_CUDA)
#include "runtime/runtime.h"
#endif

using namespace nacre;
using namespace nacre::test;

namespace {

using conv::Engine;

struct Sample {
  const char* why;
  int64_t batch, time, in, out, taps;
  Conv1dGeometry g;
};

Conv1dGeometry same(int64_t taps, int64_t dilation = 1) {
  return {.dilation = dilation, .left = (taps - 1) / 2 * dilation, .right = taps / 2 * dilation};
}
/// The strided layers of the codec: 2 s taps, padding ceil(s / 2).
Conv1dGeometry strided(int64_t s) { return {.stride = s, .left = (s + 1) / 2, .right = (s + 1) / 2}; }

Conv1dGeometry reflected(Conv1dGeometry g) {
  g.padding = Padding::reflect;
  return g;
}

const std::vector<Sample>& samples() {
  static const std::vector<Sample> all{
      {"the smallest", 1, 1, 1, 1, 1, {}},
      {"one row, one tap: a product", 3, 1, 24, 40, 1, {}},
      {"a pointwise layer, odd everything", 2, 37, 19, 23, 1, {}},
      {"first layer of a codec", 2, 203, 1, 16, 7, same(7)},
      {"last layer of a codec", 2, 203, 16, 1, 7, same(7)},
      {"one channel both ways", 1, 50, 1, 1, 7, same(7)},
      {"first layer, more rows than a block takes", 2, 701, 1, 96, 7, same(7)},
      {"last layer, more rows than a block takes", 2, 701, 96, 1, 7, same(7)},
      {"first layer, causal, width that fills no pack of bf16", 1, 90, 1, 12, 7, {.left = 6}},
      {"last layer, no padding", 2, 60, 32, 1, 7, {}},
      {"first layer, padding wider than the kernel", 1, 12, 1, 16, 7, {.left = 9, .right = 8}},
      {"last layer, padding wider than the kernel", 1, 12, 16, 1, 7, {.left = 9, .right = 8}},
      {"first layer, reflected edges", 2, 50, 1, 24, 7, {.left = 3, .right = 3, .padding = Padding::reflect}},
      {"last layer, reflected edges", 2, 50, 24, 1, 7, {.left = 4, .right = 2, .padding = Padding::reflect}},
      {"first layer, wider than a block of threads", 1, 30, 1, 1040, 7, same(7)},
      {"last layer, as wide as a block of threads", 1, 30, 512, 1, 7, same(7)},
      {"last layer of one sample", 3, 1, 64, 1, 7, same(7)},
      {"residual unit, dilation 1", 2, 61, 16, 16, 7, same(7)},
      {"residual unit, dilation 3", 2, 61, 32, 32, 7, same(7, 3)},
      {"residual unit, dilation 9: edges reach over the middle", 2, 61, 32, 32, 7, same(7, 9)},
      {"dilation 9 on fewer samples than one kernel spans", 2, 11, 16, 16, 7, same(7, 9)},
      {"fewer samples than taps", 1, 3, 16, 32, 7, same(7)},
      {"causal: all padding left", 2, 40, 16, 24, 7, {.left = 6}},
      {"causal, dilated", 2, 40, 16, 24, 3, {.dilation = 4, .left = 8}},
      {"padding only on the right", 1, 33, 8, 8, 4, {.right = 3}},
      {"no padding", 2, 64, 12, 20, 5, {}},
      {"padding wider than the kernel", 1, 9, 16, 16, 3, {.left = 7, .right = 5}},
      {"rate change by 2", 2, 64, 16, 32, 4, strided(2)},
      {"rate change by 4", 2, 64, 32, 64, 8, strided(4)},
      {"odd rate change by 5", 2, 60, 64, 128, 10, strided(5)},
      {"rate change by 8", 1, 96, 32, 48, 16, strided(8)},
      {"rate change by 5 with a sample over, as output padding makes it", 2, 44, 24, 16, 10, strided(5)},
      {"rate change by 2, odd length", 1, 35, 16, 16, 4, strided(2)},
      {"rate change by 3, sides of different width", 3, 32, 7, 9, 6, {.stride = 3, .left = 1, .right = 2}},
      {"rate change, causal", 2, 40, 16, 32, 8, {.stride = 4, .left = 4}},
      {"rate change of narrow channels", 1, 50, 1, 3, 10, strided(5)},
      {"stride wider than the kernel: some samples meet nothing",
       2,
       41,
       16,
       16,
       3,
       {.stride = 5, .left = 1, .right = 1}},
      {"stride and dilation together", 2, 50, 8, 16, 3, {.stride = 2, .dilation = 3, .left = 3, .right = 3}},
      {"kernel of three strides", 2, 40, 16, 16, 6, {.stride = 2, .left = 2, .right = 2}},
      {"one output row from a strided kernel", 2, 10, 16, 16, 10, {.stride = 5}},
      {"groups", 2, 30, 32, 64, 5, {.groups = 4, .left = 2, .right = 2}},
      {"groups of odd width with stride", 2, 30, 9, 15, 4, {.stride = 2, .groups = 3, .left = 1, .right = 1}},
      {"one channel per group", 2, 30, 16, 16, 7, {.groups = 16, .left = 3, .right = 3}},
      {"groups of 4 and 16 channels, 41 taps, stride 4",
       2,
       85,
       16,
       64,
       41,
       {.stride = 4, .groups = 4, .left = 20, .right = 20}},
      {"more groups than a slab of CUDA's has", 1, 70, 32, 128, 9, {.stride = 2, .groups = 8, .left = 4, .right = 4}},
      {"groups of a residual unit, dilation 9",
       2,
       150,
       32,
       64,
       7,
       {.dilation = 9, .groups = 4, .left = 27, .right = 27}},
      {"groups of a residual unit, causal", 2, 140, 64, 32, 7, {.dilation = 3, .groups = 4, .left = 18}},
      {"groups, one tap", 2, 67, 64, 32, 1, {.groups = 4}},
      {"groups whose weights fill shared memory many times", 1, 45, 64, 64, 41, {.groups = 2, .left = 20, .right = 20}},
      {"the same with a stride that has phases without taps",
       1,
       90,
       64,
       64,
       40,
       {.stride = 4, .dilation = 2, .groups = 2, .left = 3}},
      {"one channel per group, stride 3", 2, 70, 32, 32, 7, {.stride = 3, .groups = 32, .left = 2, .right = 4}},
      {"one channel per group, dilated, more rows than a tile",
       1,
       300,
       8,
       8,
       3,
       {.dilation = 9, .groups = 8, .left = 9, .right = 9}},
      {"two channels per group", 2, 45, 16, 16, 5, {.dilation = 2, .groups = 8, .left = 4, .right = 4}},
      {"two channels per group become six", 2, 45, 16, 48, 4, {.stride = 2, .groups = 8, .left = 2}},
      {"three channels per group become one", 2, 45, 24, 8, 5, {.groups = 8, .left = 1, .right = 2}},
      {"groups, stride wider than the kernel", 2, 41, 16, 16, 3, {.stride = 5, .groups = 4, .left = 6, .right = 1}},
      {"reflected edges", 2, 30, 16, 16, 7, {.left = 3, .right = 3, .padding = Padding::reflect}},
      {"reflected edges of different width, as wide as can be",
       2,
       8,
       5,
       6,
       7,
       {.left = 7, .right = 4, .padding = Padding::reflect}},
      {"reflected edges with stride and dilation",
       1,
       33,
       4,
       8,
       4,
       {.stride = 2, .dilation = 2, .left = 5, .right = 6, .padding = Padding::reflect}},
      {"reflected, causal, one sample more than the padding", 3, 7, 16, 24, 7, reflected({.left = 6})},
      {"reflected on both sides, one sample more than the padding", 2, 7, 16, 24, 7,
       reflected({.left = 6, .right = 6})},
      {"reflected on the right", 2, 20, 24, 16, 3, reflected({.right = 2})},
      {"reflected, rate change by 2, causal", 2, 41, 16, 32, 4, reflected({.stride = 2, .left = 2, .right = 1})},
      {"reflected, rate change by 8, one sample more than the padding", 2, 9, 16, 32, 16,
       reflected({.stride = 8, .left = 8, .right = 7})},
      {"reflected, stride wider than the kernel", 2, 23, 16, 16, 3, reflected({.stride = 5, .left = 8, .right = 7})},
      {"reflected, one row of output for all padding", 1, 8, 16, 16, 3,
       reflected({.dilation = 7, .left = 7, .right = 2})},
      {"reflected, one tap beside padding", 2, 9, 16, 32, 1, reflected({.left = 3, .right = 2})},
      {"reflected, groups", 2, 12, 12, 18, 5, reflected({.groups = 3, .left = 4})},
      {"reflected, groups that fill packs", 2, 40, 16, 64, 8,
       reflected({.stride = 4, .groups = 4, .left = 6, .right = 5})},
      {"reflected, groups, each sample receives a reflection", 2, 7, 16, 16, 7,
       reflected({.groups = 16, .left = 6, .right = 6})},
      {"reflected, last layer, causal", 2, 50, 32, 1, 7, reflected({.left = 6})},
      {"reflected, first layer, causal", 2, 50, 1, 32, 7, reflected({.left = 6})},
      {"reflected, last layer, more rows than a block takes", 2, 230, 96, 1, 7, reflected({.left = 6, .right = 3})},
      {"reflected, first layer, more rows than a block takes", 2, 230, 1, 96, 7, reflected({.left = 2, .right = 6})},
      {"wide and short, widths that fill no vector", 1, 5, 130, 70, 3, same(3)},
      {"long and narrow", 1, 1031, 3, 2, 5, same(5)},
      {"an even kernel", 2, 31, 16, 17, 2, {.left = 1}},
  };
  return all;
}

Shape x_shape(const Sample& s) { return {s.batch, s.time, 1, s.in}; }
Shape weight_shape(const Sample& s) { return {s.out, s.taps, 1, s.in / s.g.groups}; }
Shape y_shape(const Sample& s) { return {s.batch, conv1d_length(s.time, s.taps, s.g), 1, s.out}; }
reference::Conv1d reference_of(const Sample& s) {
  return {s.batch,
          s.time,
          s.in,
          s.out,
          s.taps,
          s.g.stride,
          s.g.dilation,
          s.g.groups,
          s.g.left,
          s.g.right,
          s.g.padding == Padding::reflect};
}
template <class T>
std::vector<double> doubles(const Buffer<T>& b) {
  std::vector<double> v(static_cast<size_t>(b.size()));
  for (size_t i = 0; i < v.size(); ++i) v[i] = b[static_cast<int64_t>(i)];
  return v;
}
std::vector<double> doubles(const std::vector<float>& from) { return {from.begin(), from.end()}; }
std::vector<double> absolute(std::vector<double> v) {
  for (double& x : v) x = std::fabs(x);
  return v;
}
double dot(const std::vector<double>& a, const std::vector<double>& b) {
  double sum = 0;
  for (size_t i = 0; i < a.size(); ++i) sum += a[i] * b[i];
  return sum;
}
double at(const std::vector<double>& v, int64_t i) { return v[static_cast<size_t>(i)]; }
/// The value of x after rounding to T.
template <class T>
double stored(double x) {
  return static_cast<double>(to_float(store<T>(static_cast<float>(x))));
}
double nothing(int64_t) { return 0; }

/// How often a kernel ran. 0 without CUDA.
int64_t launches(Context& ctx, const std::string& name) {
#if defined(NACRE_WITH_CUDA)
  if (ctx.device().kind == Device::cuda) return cuda::runtime(ctx).launches(name);
#endif
  static_cast<void>(ctx), static_cast<void>(name);
  return 0;
}

/// How often a kernel read a tensor only to sum its columns. 0 without CUDA.
int64_t column_sums(Context& ctx) {
  return launches(ctx, "conv1d_column_sums") + launches(ctx, "conv1d_column_sums_packs");
}

/// All three directions on small integers, which are exact in float in any order of summation. The results must be
/// equal for any number of threads. `product`, if given, is the kind of tile that must run on CUDA in every direction.
template <class T>
void exact(Device device, const Sample& s, int threads, Precision precision = Precision::fp32,
           const std::string& product = {}) {
  INFO(s.why);
  const Shape xs = x_shape(s), ws = weight_shape(s), ys = y_shape(s);
  const reference::Conv1d ref = reference_of(s);
  Case c(std::string("conv1d exact, ") + s.why, device, xs, threads, precision);
  auto &x = c.integers<T>("x", xs, -3, 3), &w = c.integers<T>("weight", ws, -3, 3),
       &dy = c.integers<T>("dy", ys, -3, 3);
  auto &bias = c.integers("bias", {.channels = s.out}, -3, 3), &bias_x = c.integers("bias", {.channels = s.in}, -3, 3);
  auto& residual = c.integers<T>("residual", ys, -3, 3);
  const auto y_ref = ref.forward(doubles(x), doubles(w)), dx_ref = ref.input_gradient(doubles(dy), doubles(w)),
             dw_ref = ref.weight_gradient(doubles(x), doubles(dy));

  const View<float> forward = c.scratch(conv1d_forward_scratch<T>(c.ctx, xs, ws, s.g)),
                    input = c.scratch(conv1d_input_gradient_scratch<T>(c.ctx, xs, ws, ys, s.g)),
                    weight = c.scratch(conv1d_weight_gradient_scratch<T>(c.ctx, xs, ws, ys, s.g));
  auto &y = c.output<T>("y", ys), &y_bias = c.output<T>("y with bias", ys),
       &y_both = c.output<T>("y with bias and residual", ys);
  auto& y_place = c.values<T>("y over residual", ys, residual.before());
  auto &dx = c.output<T>("dx", xs), &dx_bias = c.output<T>("dx with bias", xs);
  auto &dx_add = c.integers<T>("dx added to", xs, -3, 3), &dx_both = c.integers<T>("dx with bias added to", xs, -3, 3);
  auto &dw = c.integers("dweight", ws, -3, 3), &db = c.integers("dbias", {.channels = s.out}, -3, 3),
       &db_x = c.integers("dbias_of_x", {.channels = s.in}, -3, 3), &dw_only = c.output("dweight =", ws);
  auto& db_x_alone = c.integers("dbias_of_x without dbias", {.channels = s.in}, -3, 3);
  const AllocationCounter allocations;
  conv1d_forward<T>(c.ctx, {.x = x, .weight = w, .y = y, .scratch = forward, .geometry = s.g});
  conv1d_forward<T>(c.ctx, {.x = x, .weight = w, .bias = bias, .y = y_bias, .scratch = forward, .geometry = s.g});
  conv1d_forward<T>(
      c.ctx,
      {.x = x, .weight = w, .bias = bias, .residual = residual, .y = y_both, .scratch = forward, .geometry = s.g});
  conv1d_forward<T>(c.ctx,
                    {.x = x, .weight = w, .residual = y_place, .y = y_place, .scratch = forward, .geometry = s.g});
  conv1d_input_gradient<T>(c.ctx, {.dy = dy, .weight = w, .dx = dx, .scratch = input, .geometry = s.g});
  conv1d_input_gradient<T>(c.ctx,
                           {.dy = dy, .weight = w, .bias = bias_x, .dx = dx_bias, .scratch = input, .geometry = s.g});
  conv1d_input_gradient<T>(c.ctx,
                           {.dy = dy, .weight = w, .dx = dx_add, .scratch = input, .geometry = s.g, .add_dx = true});
  conv1d_input_gradient<T>(
      c.ctx, {.dy = dy, .weight = w, .bias = bias_x, .dx = dx_both, .scratch = input, .geometry = s.g, .add_dx = true});
  conv1d_weight_gradient<T>(
      c.ctx, {.x = x, .dy = dy, .dweight = dw, .dbias = db, .dbias_of_x = db_x, .scratch = weight, .geometry = s.g});
  conv1d_weight_gradient<T>(
      c.ctx, {.x = x, .dy = dy, .dweight = dw_only, .scratch = weight, .geometry = s.g, .add_dweight = false});
  conv1d_weight_gradient<T>(c.ctx, {.x = x,
                                    .dy = dy,
                                    .dweight = dw_only,
                                    .dbias_of_x = db_x_alone,
                                    .scratch = weight,
                                    .geometry = s.g,
                                    .add_dweight = false});
  CHECK(allocations.count() == 0);
  if (!product.empty() && device.kind == Device::cuda) {
    CHECK(launches(c.ctx, "conv1d_forward_" + product) == 4);
    CHECK(launches(c.ctx, "conv1d_input_gradient_" + product) == 4);
    const bool taps = s.g.stride == 1 && s.taps > 1;
    CHECK(launches(c.ctx, (taps ? "conv1d_weight_gradient_taps_" : "conv1d_weight_gradient_") + product) == 3);
    // The tiles of windows sum the samples of x, if dbias is not wanted, and `stride` taps hold each sample once.
    const bool once = !taps && s.g.dilation == 1 && s.g.left + s.g.stride <= s.taps && s.time == ys.time * s.g.stride;
    CHECK(column_sums(c.ctx) == (once ? 1 : 2));
    CHECK(launches(c.ctx, "conv1d_forward") == 0);
    CHECK(launches(c.ctx, "conv1d_input_gradient") == (s.g.padding == Padding::zero ? 0 : 4));
    CHECK(launches(c.ctx, "conv1d_weight_gradient") == 0);
  }

  c.expect<T>(
      y, [&](int64_t i) { return stored<T>(at(y_ref, i)); }, nothing);
  c.expect<T>(
      y_bias, [&](int64_t i) { return stored<T>(at(y_ref, i) + bias[i % s.out]); }, nothing);
  c.expect<T>(
      y_both, [&](int64_t i) { return stored<T>(at(y_ref, i) + bias[i % s.out] + residual[i]); }, nothing);
  c.expect<T>(
      y_place, [&](int64_t i) { return stored<T>(at(y_ref, i) + residual[i]); }, nothing);
  c.expect<T>(
      dx, [&](int64_t i) { return stored<T>(at(dx_ref, i)); }, nothing);
  c.expect<T>(
      dx_bias, [&](int64_t i) { return stored<T>(at(dx_ref, i) + bias_x[i % s.in]); }, nothing);
  c.expect<T>(
      dx_add, [&](int64_t i) { return stored<T>(at(dx_ref, i) + dx_add[i]); }, nothing);
  c.expect<T>(
      dx_both, [&](int64_t i) { return stored<T>(at(dx_ref, i) + bias_x[i % s.in] + dx_both[i]); }, nothing);
  c.expect<float>(
      dw, [&](int64_t i) { return at(dw_ref, i) + dw[i]; }, nothing);
  c.expect<float>(
      dw_only, [&](int64_t i) { return at(dw_ref, i); }, nothing);
  std::vector<double> sums(static_cast<size_t>(s.out)), sums_x(static_cast<size_t>(s.in));
  for (int64_t i = 0; i < dy.size(); ++i) sums[static_cast<size_t>(i % s.out)] += dy[i];
  for (int64_t i = 0; i < x.size(); ++i) sums_x[static_cast<size_t>(i % s.in)] += x[i];
  c.expect<float>(
      db, [&](int64_t i) { return at(sums, i) + db[i]; }, nothing);
  c.expect<float>(
      db_x, [&](int64_t i) { return at(sums_x, i) + db_x[i]; }, nothing);
  c.expect<float>(
      db_x_alone, [&](int64_t i) { return at(sums_x, i) + db_x_alone[i]; }, nothing);

  if constexpr (std::is_same_v<T, float>) {  // <Ax, dy> = <x, A'dy> = <weight, dweight>, exactly
    std::vector<double> dw_own = doubles(dw.read());
    for (size_t i = 0; i < dw_own.size(); ++i) dw_own[i] -= dw[static_cast<int64_t>(i)];
    const double forward_way = dot(doubles(y.read()), doubles(dy));
    CHECK(forward_way == dot(doubles(x), doubles(dx.read())));
    CHECK(forward_way == dot(doubles(w), dw_own));
  }
}

}  // namespace

TEST_CASE("conv1d is exact on integers", "[conv1d]") {
  for (const Device device : devices())
    for (const Sample& s : samples())
      for (const int threads : {1, 2, 3})
        if (threads == 1 || device.kind == Device::cpu) exact<float>(device, s, threads);
}

namespace {

/// Cases that the CPU computes with fewer products than the formula, and with its own matrix products. They have enough
/// tiles for that, end at every position within a tile, and have rows that extend over both ends.
const std::vector<Sample>& fewer_products() {
  static const std::vector<Sample> all{
      {"seven taps", 2, 203, 32, 32, 7, same(7)},
      {"seven taps, dilation 3", 2, 203, 48, 64, 7, same(7, 3)},
      {"seven taps, dilation 9", 2, 400, 32, 80, 7, same(7, 9)},
      {"seven taps, causal", 1, 390, 32, 48, 7, {.left = 6}},
      {"seven taps, no padding", 3, 140, 64, 32, 7, {}},
      {"seven taps, padding wider than the kernel", 1, 380, 32, 32, 7, {.left = 9, .right = 8}},
      {"seven taps, more outputs than a task takes", 1, 400, 32, 144, 7, same(7)},
      {"seven taps, more inputs than a panel has", 1, 400, 96, 32, 7, same(7)},
      {"seven taps, several parts of the weight gradient", 3, 2741, 32, 32, 7, same(7)},
      {"two strides of 2", 2, 200, 32, 64, 4, strided(2)},
      {"two strides of 5", 2, 260, 16, 64, 10, strided(5)},
      {"two strides of 8", 1, 832, 16, 80, 16, strided(8)},
      {"two strides of 4, causal", 2, 240, 32, 64, 8, {.stride = 4, .left = 4}},
      {"two strides of 4, samples over", 1, 403, 16, 64, 8, {.stride = 4, .left = 2, .right = 2}},
      {"one tap, odd rows", 1, 131, 48, 80, 1, {}},
      {"one tap, several items", 5, 39, 16, 96, 1, {}},
  };
  return all;
}

}  // namespace

TEST_CASE("conv1d is exact on integers with fewer products", "[conv1d]") {
  Context ctx;
  for (const Sample& s : fewer_products()) {
    const Engine expected = s.taps == 1 ? Engine::pointwise : Engine::karatsuba;
    CHECK(conv::choose_forward<float>(ctx, x_shape(s), weight_shape(s), s.g).engine == expected);
    CHECK(conv::choose_input_gradient<float>(ctx, x_shape(s), weight_shape(s), s.g).engine == expected);
    for (const int threads : {1, 2, 3}) exact<float>(Device{}, s, threads);
  }
}

namespace {

/// Reflected padding on each engine of the CPU, on the left alone (causal), on the right alone, and on both sides.
struct Reflected {
  Sample s;
  Engine forward, input_gradient, weight_gradient;
};
const std::vector<Reflected>& reflected_paddings() {
  constexpr Engine direct = Engine::direct, karatsuba = Engine::karatsuba, windows = Engine::windows,
                   blocks = Engine::blocks;
  static const std::vector<Reflected> all{
      {{"seven taps, causal", 3, 200, 32, 48, 7, reflected({.left = 6})}, karatsuba, karatsuba, karatsuba},
      {{"seven taps, dilated", 2, 205, 32, 96, 7, reflected(same(7, 3))}, karatsuba, karatsuba, karatsuba},
      {{"seven taps, right", 2, 205, 48, 32, 7, reflected({.right = 6})}, karatsuba, karatsuba, karatsuba},
      {{"seven taps, many items of seven samples", 64, 7, 32, 32, 7, reflected({.left = 6})},
       karatsuba,
       karatsuba,
       karatsuba},
      {{"two strides of 2, causal", 2, 200, 32, 64, 4, reflected({.stride = 2, .left = 2})},
       karatsuba,
       karatsuba,
       karatsuba},
      {{"two strides of 2, a sample over", 2, 201, 32, 64, 4, reflected({.stride = 2, .left = 2, .right = 1})},
       karatsuba,
       karatsuba,
       karatsuba},
      {{"two strides of 4, causal", 2, 240, 32, 64, 8, reflected({.stride = 4, .left = 4})},
       karatsuba,
       karatsuba,
       karatsuba},
      {{"two strides of 4, both sides", 2, 240, 32, 64, 8, reflected(strided(4))}, karatsuba, karatsuba, karatsuba},
      {{"two strides of 5, causal", 2, 260, 16, 64, 10, reflected({.stride = 5, .left = 5})},
       karatsuba,
       karatsuba,
       karatsuba},
      {{"two strides of 5, wide padding", 2, 260, 16, 64, 10, reflected({.stride = 5, .left = 12, .right = 11})},
       karatsuba,
       karatsuba,
       karatsuba},
      {{"two strides of 8, causal", 1, 832, 16, 80, 16, reflected({.stride = 8, .left = 8})},
       karatsuba,
       karatsuba,
       karatsuba},
      {{"two strides of 8, right", 1, 832, 16, 80, 16, reflected({.stride = 8, .right = 8})},
       karatsuba,
       karatsuba,
       karatsuba},
      {{"two strides of 8, many items of nine samples", 64, 9, 16, 64, 16,
        reflected({.stride = 8, .left = 8, .right = 7})},
       karatsuba,
       karatsuba,
       karatsuba},
      {{"three taps, causal", 3, 300, 32, 16, 3, reflected({.left = 2})}, windows, windows, direct},
      {{"three taps, both sides", 3, 300, 32, 20, 3, reflected(same(3, 2))}, windows, windows, direct},
      {{"short, causal", 2, 33, 96, 112, 8, reflected({.left = 7})}, windows, windows, blocks},
      {{"long, groups", 2, 190, 48, 96, 3, reflected({.groups = 3, .left = 2})}, windows, windows, direct},
      {{"short, groups of stride 2", 2, 40, 288, 336, 8, reflected({.stride = 2, .groups = 3, .left = 4, .right = 3})},
       windows,
       windows,
       direct},
      {{"last layer, causal", 3, 300, 32, 1, 7, reflected({.left = 6})}, direct, windows, direct},
      {{"first layer, causal", 3, 300, 1, 32, 7, reflected({.left = 6})}, windows, windows, direct},
  };
  return all;
}

}  // namespace

TEST_CASE("conv1d is exact on integers with reflected padding", "[conv1d]") {
  Context ctx;
  for (const auto& [s, forward, input_gradient, weight_gradient] : reflected_paddings()) {
    INFO(s.why);
    CHECK(conv::choose_forward<float>(ctx, x_shape(s), weight_shape(s), s.g).engine == forward);
    CHECK(conv::choose_input_gradient<float>(ctx, x_shape(s), weight_shape(s), s.g).engine == input_gradient);
    CHECK(conv::choose_weight_gradient<float>(ctx, x_shape(s), weight_shape(s), s.g).engine == weight_gradient);
    for (const int threads : {1, 2, 3}) exact<float>(Device{}, s, threads);
    exact<bf16>(Device{}, s, 2);
  }
}

TEST_CASE("conv1d's reflected padding is computed on rows of dy that read it", "[conv1d]") {
  // Every geometry of small sizes: the strips have exactly the padding that some output reads, and the rows of dy that
  // read it.
  for (const int64_t time : {9, 12})
    for (const int64_t taps : {1, 2, 3, 7})
      for (const int64_t stride : {1, 2, 3, 5})
        for (const int64_t dilation : {1, 3})
          for (int64_t left = 0; left < 9; ++left)
            for (int64_t right = 0; right < 9; ++right) {
              const Conv1dGeometry g =
                  reflected({.stride = stride, .dilation = dilation, .left = left, .right = right});
              const int64_t length = conv1d_length(time, taps, g);
              if (length < 1) continue;
              std::vector<int64_t> reads(2);  // (row, tap) pairs that read the padding of a side
              for (int64_t t = 0; t < length; ++t)
                for (int64_t k = 0; k < taps; ++k) {
                  const int64_t at = t * stride + k * dilation - left;
                  if (at < 0 || at >= time) ++reads[at < 0 ? 0 : 1];
                }
              const auto strips = conv::reflected_strips({2, time, 1, 3}, {5, taps, 1, 3}, g);
              for (size_t side = 0; side < 2; ++side) {
                const conv::ReflectedStrip& s = strips[side];
                int64_t of_strip = 0;
                if (s.dx.elements() > 0) {
                  REQUIRE(conv1d_length(s.dx.time, taps, s.geometry) == s.dy.time);
                  REQUIRE(s.dy_begin + s.dy.time <= length);
                  REQUIRE((side == 0 ? s.first == -left && s.dx.time == left
                                     : s.first >= time && s.first + s.dx.time == time + right));
                  for (int64_t t = 0; t < s.dy.time; ++t)
                    for (int64_t k = 0; k < taps; ++k) {
                      const int64_t at = t * stride + k * dilation - s.geometry.left;
                      if (at >= 0 && at < s.dx.time) ++of_strip;
                      // Sample `at` of the strip is the same position of the padded signal.
                      REQUIRE(at + s.first == (s.dy_begin + t) * stride + k * dilation - left);
                    }
                }
                REQUIRE(of_strip == reads[side]);
              }
            }
}

namespace {

/// Cases that the CPU computes in whole windows: short and long signals, slices of taps and of channels, edges, groups.
struct Windowed {
  Sample s;
  bool by_slices;
};
const std::vector<Windowed>& whole_windows() {
  static const std::vector<Windowed> all{
      {{"short", 2, 30, 96, 112, 8, {.left = 4, .right = 3}}, true},
      {{"short, outputs that fill no vector", 1, 50, 128, 100, 6, {.left = 2, .right = 3}}, true},
      {{"short, several dilated taps in a slice", 3, 40, 80, 128, 9, same(9, 2)}, true},
      {{"short, dilated taps of more channels than a slice", 1, 45, 528, 64, 3, same(3, 4)}, true},
      {{"short, 5 taps of stride 3", 2, 91, 112, 128, 5, {.stride = 3, .left = 2, .right = 2}}, true},
      {{"short, one tap beside padding", 1, 60, 256, 272, 1, {.left = 1, .right = 2}}, true},
      {{"short, reflected", 2, 33, 96, 112, 8, reflected({.left = 4, .right = 4})}, true},
      {{"short, more padding than taps", 2, 40, 96, 368, 2, {.left = 5, .right = 4}}, true},
      {{"short, groups", 2, 40, 288, 336, 8, {.groups = 3, .left = 4, .right = 3}}, true},
      {{"long", 1, 700, 16, 48, 5, same(5)}, false},
      {{"long, dilated taps of more channels than a slice", 1, 300, 520, 32, 3, same(3, 7)}, false},
      {{"long, outputs that fill no vector", 2, 210, 24, 20, 5, same(5)}, false},
      {{"long, samples between the windows", 2, 500, 8, 24, 3, {.stride = 7}}, false},
      {{"long, dilation and stride", 2, 301, 16, 24, 4, {.stride = 2, .dilation = 3, .left = 4, .right = 5}}, false},
      {{"long, groups", 2, 190, 48, 96, 3, {.groups = 3, .left = 1, .right = 1}}, false},
      {{"long, a group per channel", 1, 177, 24, 24, 5, {.groups = 24, .left = 2, .right = 2}}, false},
      {{"long, groups of stride 2", 2, 164, 32, 16, 4, {.stride = 2, .groups = 4, .left = 1, .right = 1}}, false},
  };
  return all;
}

/// Few rows, for which the CPU reads the weight in place. No signal continues over an end where nothing is said of it,
/// as in a stream.
const std::vector<Sample>& few_rows() {
  static const std::vector<Sample> all{
      {"one row, several slices", 1, 7, 160, 48, 7, {}},
      {"one row of two strides", 1, 16, 48, 64, 16, {.stride = 8}},
      {"two rows of two strides", 1, 15, 32, 48, 10, {.stride = 5}},
      {"three rows, three taps", 1, 5, 32, 16, 3, {}},
      {"three rows of one tap, odd channels", 1, 3, 37, 19, 1, {}},
      {"five rows of seven taps, odd channels", 1, 11, 21, 35, 7, {}},
      {"six rows, dilated taps of more channels than a slice", 1, 14, 528, 32, 3, {.dilation = 4}},
      {"seven rows, several dilated taps in a slice", 1, 23, 80, 48, 9, {.dilation = 2}},
      {"eight rows, more outputs than are computed together", 1, 10, 16, 304, 3, {}},
      {"nine rows, one input", 1, 15, 1, 32, 7, {}},
      {"sixteen rows", 1, 18, 48, 64, 3, {}},
      {"seventeen rows, which are not few", 1, 19, 48, 64, 3, {}},
      {"rows of several items", 3, 5, 24, 40, 3, {}},
      {"one tap, several items", 5, 3, 48, 64, 1, {}},
      {"padding", 2, 6, 32, 48, 5, same(5)},
      {"reflected, causal", 2, 7, 32, 48, 5, reflected({.left = 4})},
      {"groups", 2, 6, 24, 48, 3, {.groups = 3}},
      {"groups of two strides", 1, 16, 24, 48, 4, {.stride = 2, .groups = 3, .left = 2, .right = 2}},
      {"transposed, one row", 1, 8, 32, 48, 16, {.stride = 8, .left = 8, .right = 8}},
      {"transposed, three rows", 1, 15, 16, 560, 10, {.stride = 5, .left = 5, .right = 5}},
      {"transposed, eight rows of odd channels", 1, 16, 9, 21, 4, {.stride = 2, .left = 2, .right = 2}},
      {"transposed, two items", 2, 8, 32, 16, 8, {.stride = 4, .left = 4, .right = 4}},
      {"transposed, padding that is no whole stride", 1, 8, 32, 16, 8, {.stride = 4, .left = 2, .right = 2}},
      {"transposed, samples over", 1, 9, 32, 16, 8, {.stride = 4, .left = 4, .right = 4}},
      {"transposed, three strides", 1, 12, 16, 48, 6, {.stride = 2, .left = 4, .right = 4}},
  };
  return all;
}

/// Cases that the CPU computes in blocks: one tap and many rows in parts, columns of half a width, rows of many short
/// items.
const std::vector<Sample>& blocks_of_weights() {
  static const std::vector<Sample> all{
      {"one tap, half columns", 3, 150, 80, 144, 1, {}},
      {"one tap, rows in parts", 2, 500, 64, 64, 1, {}},
      {"one tap, more inputs than a block", 1, 77, 272, 16, 1, {}},
      {"one tap, strided, beside padding", 2, 61, 64, 48, 1, {.stride = 3, .left = 2, .right = 1}},
      {"short items", 16, 23, 48, 144, 3, same(3)},
      {"short items, dilated and causal", 5, 25, 16, 32, 4, {.dilation = 5, .left = 15}},
      {"short items, strided", 7, 50, 32, 64, 5, {.stride = 2, .left = 2, .right = 2}},
  };
  return all;
}

}  // namespace

TEST_CASE("conv1d is exact on integers by whole windows", "[conv1d]") {
  Context ctx;
  for (const auto& [s, by_slices] : whole_windows()) {
    INFO(s.why);
    const conv::ForwardChoice choice = conv::choose_forward<float>(ctx, x_shape(s), weight_shape(s), s.g);
    CHECK(choice.engine == Engine::windows);
    CHECK(windows::by_slices(choice.problem) == by_slices);
    for (const int threads : {1, 3}) exact<float>(Device{}, s, threads);
    exact<bf16>(Device{}, s, 2);
  }
}

TEST_CASE("conv1d is exact on integers for few rows", "[conv1d]") {
  for (const Sample& s : few_rows()) {
    for (const int threads : {1, 3}) exact<float>(Device{}, s, threads);
    exact<bf16>(Device{}, s, 1);
  }
}

namespace {

/// Rows [first, first + n) of a tensor of one item.
std::vector<float> rows_of(const std::vector<float>& all, int64_t channels, int64_t first, int64_t n) {
  return {all.begin() + first * channels, all.begin() + (first + n) * channels};
}

/// The forward of few rows at a time, and the input gradient, have the bits of all rows in one call.
void few_of_many(const Sample& s) {
  INFO(s.why);
  Context ctx;
  const Shape ws = weight_shape(s);
  const int64_t many = 40, stride = s.g.stride, span = (s.taps - 1) * s.g.dilation + 1;
  Case c(std::string("conv1d few rows, ") + s.why, Device{}, {1, many, 1, s.in});
  auto& w = c.random("weight", ws, -1, 1);
  const auto forward = [&](const std::vector<float>& x, const std::vector<float>& residual, const Buffer<float>& bias) {
    const int64_t n = static_cast<int64_t>(residual.size()) / s.out;
    const Shape xs{1, (n - 1) * stride + span, 1, s.in}, ys{1, n, 1, s.out};
    REQUIRE(conv::choose_forward<float>(c.ctx, xs, ws, s.g).engine == Engine::windows);
    auto &of_x = c.values<float>("x", xs, x), &y = c.values<float>("y", ys, residual);
    conv1d_forward(c.ctx, {.x = of_x,
                           .weight = w,
                           .bias = bias,
                           .residual = y,
                           .y = y,
                           .scratch = c.scratch(conv1d_forward_scratch(c.ctx, xs, ws, s.g)),
                           .geometry = s.g});
    return y.read();
  };
  // Whole windows of dx: the padding is what a kernel has over its stride.
  Conv1dGeometry g = s.g;
  g.left = g.right = stride > 1 ? s.taps - stride : span - 1;
  const int64_t before = stride > 1 ? s.taps / stride - 1 : span - 1;  // rows of dy over those of dx
  const auto input_gradient = [&](const std::vector<float>& dy, const std::vector<float>& dx,
                                  const Buffer<float>& bias) {
    const int64_t n = static_cast<int64_t>(dx.size()) / s.in / stride;
    const Shape xs{1, n * stride, 1, s.in}, ys{1, n + before, 1, s.out};
    REQUIRE(conv::choose_input_gradient<float>(c.ctx, xs, ws, g).engine == Engine::windows);
    auto &of_dy = c.values<float>("dy", ys, dy), &of_dx = c.values<float>("dx", xs, dx);
    Conv1dInputGradient<float> a{.dy = of_dy,
                                 .weight = w,
                                 .dx = of_dx,
                                 .scratch = c.scratch(conv1d_input_gradient_scratch(c.ctx, xs, ws, ys, g)),
                                 .geometry = g};
    // With a stride, many rows get the bias behind the other slices, and few rows with the first.
    if (stride == 1) a.bias = bias, a.add_dx = true;
    conv1d_input_gradient(c.ctx, a);
    return of_dx.read();
  };
  auto &bias = c.random("bias", {.channels = s.out}, -1, 1), &bias_x = c.random("bias", {.channels = s.in}, -1, 1);
  const std::vector<float> x = c.random("x", {1, (many - 1) * stride + span, 1, s.in}, -1, 1).before(),
                           residual = c.random("residual", {1, many, 1, s.out}, -1, 1).before(),
                           dy = c.random("dy", {1, many + before, 1, s.out}, -1, 1).before(),
                           dx = c.random("dx", {1, many * stride, 1, s.in}, -1, 1).before();
  const std::vector<float> whole_y = forward(x, residual, bias), whole_dx = input_gradient(dy, dx, bias_x);
  for (const int64_t n : {1, 2, 3, 4, 5, 6, 7, 8, 9, 16}) {
    INFO(n << " rows");
    const int64_t first = 3 * n % (many - n);
    CHECK(forward(rows_of(x, s.in, first * stride, (n - 1) * stride + span), rows_of(residual, s.out, first, n),
                  bias) == rows_of(whole_y, s.out, first, n));
    CHECK(input_gradient(rows_of(dy, s.out, first, n + before), rows_of(dx, s.in, first * stride, n * stride),
                         bias_x) == rows_of(whole_dx, s.in, first * stride, n * stride));
  }
}

}  // namespace

TEST_CASE("conv1d gives a row the same bits among few rows and among many", "[conv1d]") {
  // Layers of whole vectors that are not computed with fewer products.
  for (const Sample& s :
       {Sample{"one slice", 1, 0, 32, 48, 3, {}}, Sample{"several slices", 1, 0, 208, 160, 5, {}},
        Sample{"dilated", 1, 0, 80, 64, 9, {.dilation = 2}},
        Sample{"dilated, more channels than a slice", 1, 0, 528, 32, 3, {.dilation = 4}},
        Sample{"one tap", 1, 0, 544, 64, 1, {}}, Sample{"three strides of 2", 1, 0, 48, 64, 6, {.stride = 2}},
        Sample{"three strides of 4, several slices", 1, 0, 32, 208, 12, {.stride = 4}}})
    few_of_many(s);
}

TEST_CASE("conv1d lays out no weight for few rows", "[conv1d]") {
  // The only scratch is the bias in whole vectors.
  Context ctx({.threads = 1});
  for (const int64_t rows : {1, 3, 8, 16}) {
    INFO(rows << " rows");
    CHECK(conv1d_forward_scratch(ctx, {1, (rows - 1) * 8 + 16, 1, 64}, {100, 16, 1, 64}, {.stride = 8}).elements() ==
          112);
    CHECK(conv1d_forward_scratch(ctx, {1, rows + 8, 1, 32}, {16, 3, 1, 32}, {.dilation = 4}).elements() == 16);
    CHECK(conv1d_input_gradient_scratch(ctx, {1, rows * 8, 1, 64}, {96, 16, 1, 64}, {1, rows + 1, 1, 96},
                                        {.stride = 8, .left = 8, .right = 8})
              .elements() == 8 * 64);
  }
}

TEST_CASE("conv1d is exact on integers by blocks of weights", "[conv1d]") {
  Context ctx;
  for (const Sample& s : blocks_of_weights()) {
    INFO(s.why);
    CHECK(conv::choose_weight_gradient<float>(ctx, x_shape(s), weight_shape(s), s.g).engine == Engine::blocks);
    for (const int threads : {1, 3}) exact<float>(Device{}, s, threads);
  }
}

TEST_CASE("conv1d gives the same bits on any number of threads", "[conv1d]") {
  std::vector<Sample> samples = fewer_products();
  for (const Windowed& w : whole_windows()) samples.push_back(w.s);
  for (const Sample& s : few_rows()) samples.push_back(s);
  for (const Sample& s : blocks_of_weights()) samples.push_back(s);
  for (const Reflected& r : reflected_paddings()) samples.push_back(r.s);
  for (const Sample& s : samples) {
    INFO(s.why);
    const Shape xs = x_shape(s), ws = weight_shape(s), ys = y_shape(s);
    std::vector<std::vector<float>> found;
    for (const int threads : {1, 2, 3, 5}) {
      Case c(std::string("conv1d threads, ") + s.why, Device{}, xs, threads);
      auto &x = c.random("x", xs, -1, 1), &w = c.random("weight", ws, -1, 1), &dy = c.random("dy", ys, -1, 1);
      auto &y = c.output("y", ys), &dx = c.output("dx", xs), &dw = c.zeros("dweight", ws);
      conv1d_forward(c.ctx, {.x = x,
                             .weight = w,
                             .y = y,
                             .scratch = c.scratch(conv1d_forward_scratch(c.ctx, xs, ws, s.g)),
                             .geometry = s.g});
      conv1d_input_gradient(c.ctx, {.dy = dy,
                                    .weight = w,
                                    .dx = dx,
                                    .scratch = c.scratch(conv1d_input_gradient_scratch(c.ctx, xs, ws, ys, s.g)),
                                    .geometry = s.g});
      conv1d_weight_gradient(c.ctx, {.x = x,
                                     .dy = dy,
                                     .dweight = dw,
                                     .scratch = c.scratch(conv1d_weight_gradient_scratch(c.ctx, xs, ws, ys, s.g)),
                                     .geometry = s.g});
      std::vector<float> all = y.read();
      for (const Buffer<float>* b : {&dx, &dw}) {
        const std::vector<float> more = b->read();
        all.insert(all.end(), more.begin(), more.end());
      }
      found.push_back(std::move(all));
    }
    for (const auto& other : found) CHECK(other == found.front());
  }
}

TEST_CASE("conv1d with fewer products errs by what is near alone", "[conv1d]") {
  for (const Sample& s : fewer_products()) {
    if (s.taps != 7) continue;
    INFO(s.why);
    const Shape xs = x_shape(s), ws = weight_shape(s), ys = y_shape(s);
    const reference::Conv1d ref = reference_of(s);
    Case c(std::string("conv1d loud, ") + s.why, Device{}, xs);
    auto &noise = c.random("x", xs, -1, 1), &w = c.random("weight", ws, -1, 1);
    // One row is ten thousand times as loud as the others. It must have no effect on distant rows.
    std::vector<double> values = doubles(noise);
    const int64_t loud = s.time / 2, terms = s.taps * s.in;
    for (int64_t i = 0; i < xs.elements(); ++i)
      if (i / s.in % s.time == loud) values[static_cast<size_t>(i)] *= 1e4;
    auto& x = c.values<float>("x with a loud row", xs, std::vector<float>(values.begin(), values.end()));
    auto& y = c.output("y", ys);
    conv1d_forward(c.ctx, {.x = x,
                           .weight = w,
                           .y = y,
                           .scratch = c.scratch(conv1d_forward_scratch(c.ctx, xs, ws, s.g)),
                           .geometry = s.g});
    const auto y_ref = ref.forward(doubles(x), doubles(w));
    const auto allowed = [&](int64_t i) {
      const int64_t first = i / s.out % ys.time - s.g.left, last = first + 6 * s.g.dilation, reach = 14 * s.g.dilation;
      const double size = loud >= first - reach && loud <= last + reach ? 1e4 : 1;
      return 4 * std::sqrt(static_cast<double>(terms)) * ulp * static_cast<double>(terms) * size;
    };
    c.expect<float>(
        y, [&](int64_t i) { return at(y_ref, i); }, allowed);
  }
}

TEST_CASE("conv1d in bf16 rounds once", "[conv1d]") {
  for (const Device device : devices())
    for (const Sample& s : samples()) exact<bf16>(device, s, 2);
}

namespace {

/// Sizes around the edges of the CUDA kernels' tiles: 64 or 128 rows by 32 to 128 outputs, 32 floats or 64 bf16 deep.
/// Channels are multiples of 8, so that both types have whole 16-byte packs.
const std::vector<Sample>& tiles() {
  static const std::vector<Sample> all{
      {"a row less than a tile", 1, 127, 32, 32, 3, same(3)},
      {"a tile's rows", 1, 128, 32, 32, 1, {}},
      {"a row more than a tile, an output more than a warp's", 1, 129, 24, 40, 3, same(3)},
      {"a little more than one step deep", 1, 65, 40, 72, 3, same(3)},
      {"a little less than two steps deep, dilated", 1, 70, 56, 64, 7, same(7, 3)},
      {"two steps of bf16, dilation 9", 1, 75, 72, 96, 7, same(7, 9)},
      {"many items shorter than the halo", 30, 5, 8, 16, 7, same(7, 3)},
      {"items of one sample", 70, 1, 16, 32, 1, {}},
      {"rate change by 2", 3, 131, 16, 32, 4, strided(2)},
      {"rate change by 4, the last window cut", 2, 131, 8, 64, 8, strided(4)},
      {"rate change by 5", 2, 133, 16, 24, 10, strided(5)},
      {"rate change by 8", 2, 129, 8, 16, 16, strided(8)},
      {"a kernel that is no whole number of strides", 2, 61, 16, 16, 5, {.stride = 3, .left = 2, .right = 2}},
      {"stride wider than the kernel", 2, 61, 16, 16, 3, {.stride = 4, .left = 1, .right = 1}},
      {"windows that do not begin at a stride", 2, 61, 16, 16, 8, {.stride = 4, .left = 7, .right = 6}},
      {"reflected", 2, 40, 16, 32, 7, {.dilation = 3, .left = 9, .right = 9, .padding = Padding::reflect}},
      {"reflected, strided", 2, 40, 16, 32, 8, {.stride = 4, .left = 6, .right = 5, .padding = Padding::reflect}},
      {"parts of the weight gradient", 1, 1100, 8, 8, 3, same(3)},
      {"parts of the weight gradient of windows", 1, 1100, 8, 72, 1, {}},
      {"tall tiles of the weight gradient", 1, 70, 16, 256, 1, {}},
      {"tiles of weights that take turns in summing dy, and tiles of outputs in summing x",
       1,
       270,
       72,
       136,
       4,
       {.stride = 2, .left = 1, .right = 1}},
      {"as many windows as strides, whose taps miss the last samples",
       1,
       40,
       16,
       16,
       4,
       {.stride = 4, .left = 1, .right = 2}},
      {"one sum of x over several tiles of weights", 1, 160, 72, 16, 10, {.stride = 5, .left = 3, .right = 2}},
      {"wide tiles of the weight gradient", 1, 70, 72, 128, 1, {}},
  };
  return all;
}

}  // namespace

TEST_CASE("conv1d is exact on integers at the edges of tiles, whatever multiplies", "[conv1d][a100][rtx3090]") {
  for (const Device device : devices())
    for (const Sample& s : tiles()) {
      exact<float>(device, s, 2, Precision::fp32, "fma");
      if (device.kind == Device::cuda) exact<float>(device, s, 2, Precision::tf32, "tf32");
      exact<bf16>(device, s, 2, Precision::fp32, "bf16");
    }
}

namespace {

/// The gradient of the one bias that a codec's layer has, where all numbers are 1 + unit: dbias, or dbias_of_x of a
/// transposed convolution. Every partial sum is a whole number of units below 2^24 (at most 2100 numbers of 2^12 + 1
/// units), so float has it exactly, but only if the numbers are summed before their rounding to tf32.
template <class T>
void bias_of_layer(Device device, const Sample& s, bool transposed, Precision precision) {
  INFO(s.why);
  const double unit = std::is_same_v<T, float> ? std::ldexp(1.0, -12) : std::ldexp(1.0, -7);
  const Shape xs = x_shape(s), ws = weight_shape(s), ys = y_shape(s);
  Case c(std::string("conv1d bias, ") + s.why, device, xs, 2, precision);
  const auto all = [&](const char* name, Shape shape) -> Buffer<T>& {
    return c.values<T>(name, shape,
                       std::vector<T>(static_cast<size_t>(shape.elements()), store<T>(static_cast<float>(1 + unit))));
  };
  auto &x = all("x", xs), &dy = all("dy", ys);
  auto &dw = c.output("dweight", ws), &db = c.zeros("dbias", {.channels = transposed ? s.in : s.out});
  Conv1dWeightGradient<T> a{.x = x, .dy = dy, .dweight = dw, .geometry = s.g, .add_dweight = false};
  a.scratch = c.scratch(conv1d_weight_gradient_scratch<T>(c.ctx, xs, ws, ys, s.g));
  (transposed ? a.dbias_of_x : a.dbias) = db;
  conv1d_weight_gradient<T>(c.ctx, a);
  CHECK(column_sums(c.ctx) == 0);
  const auto rows = static_cast<double>((transposed ? xs : ys).rows());
  c.expect<float>(
      db, [&](int64_t) { return rows * (1 + unit); }, nothing);
}

}  // namespace

TEST_CASE("conv1d's weight gradient sums what biases need in its own tiles, before any rounding",
          "[conv1d][a100][rtx3090]") {
  for (const Device device : devices())
    for (const Precision precision : {Precision::fp32, Precision::tf32}) {
      const auto layer = [&](const Sample& s, bool transposed = false) {
        if (device.kind == Device::cpu && precision == Precision::tf32) return;
        bias_of_layer<float>(device, s, transposed, precision);
        if (precision == Precision::fp32) bias_of_layer<bf16>(device, s, transposed, precision);
      };
      layer({"residual unit", 2, 61, 16, 32, 7, same(7, 3)});
      layer({"residual unit in parts", 1, 1100, 64, 24, 3, same(3)});
      layer({"pointwise", 3, 70, 136, 264, 1, {}});
      layer({"pointwise in parts", 1, 1100, 72, 72, 1, {}});
      layer({"rate change", 2, 80, 24, 48, 8, strided(4)});
      layer({"transposed", 2, 80, 24, 48, 8, strided(4)}, true);
      layer({"transposed, odd", 2, 60, 72, 136, 10, {.stride = 5, .left = 3, .right = 2}}, true);
      layer({"transposed, causal", 2, 64, 16, 32, 4, {.stride = 2, .right = 2}}, true);
      layer({"transposed, in parts", 1, 2100, 16, 72, 2, {.stride = 2}}, true);
      layer({"first layer of a codec", 2, 203, 1, 16, 7, same(7)});
      layer({"last layer of a codec", 2, 203, 16, 1, 7, same(7)});
    }
}

namespace {

template <class T>
void wide(Device device, int64_t items, int64_t time, int64_t taps, int64_t out, Precision precision,
          const std::string& product, int64_t dilation = 1) {
  INFO(product << ", " << out << ", " << items << " items");
  const Conv1dGeometry g{.dilation = dilation, .left = (taps - 1) * dilation};
  const Sample s{"", items, time, 8, out, taps, g};
  const Shape xs = x_shape(s), ws = weight_shape(s), ys = y_shape(s);
  const reference::Conv1d ref = reference_of(s);
  Case c("conv1d wide", device, xs, 2, precision);
  auto &x = c.integers<T>("x", xs, -3, 3), &w = c.integers<T>("weight", ws, -3, 3), &y = c.output<T>("y", ys);
  conv1d_forward<T>(c.ctx, {.x = x,
                            .weight = w,
                            .y = y,
                            .scratch = c.scratch(conv1d_forward_scratch<T>(c.ctx, xs, ws, s.g)),
                            .geometry = s.g});
  const auto y_ref = ref.forward(doubles(x), doubles(w));
  c.expect<T>(
      y, [&](int64_t i) { return stored<T>(at(y_ref, i)); }, nothing);
  if (device.kind == Device::cuda) CHECK(launches(c.ctx, "conv1d_forward_" + product) == 1);
  if (out == 64) return;
  // The transposed layer has the same sizes. Its forward is the input gradient.
  const Sample across{"", items, time, out, 8, taps, g};
  const Shape wa = weight_shape(across);
  auto &w2 = c.integers<T>("weight", wa, -3, 3), &dx = c.output<T>("dx", ys);
  conv1d_input_gradient<T>(c.ctx, {.dy = x,
                                   .weight = w2,
                                   .dx = dx,
                                   .scratch = c.scratch(conv1d_input_gradient_scratch<T>(c.ctx, ys, wa, xs, across.g)),
                                   .geometry = across.g});
  const auto dx_ref = reference_of(across).input_gradient(doubles(x), doubles(w2));
  c.expect<T>(
      dx, [&](int64_t i) { return stored<T>(at(dx_ref, i)); }, nothing);
  if (device.kind == Device::cuda) CHECK(launches(c.ctx, "conv1d_input_gradient_" + product) == 1);
}

}  // namespace

TEST_CASE("conv1d is exact on integers in wide tiles", "[conv1d][a100][rtx3090]") {
  for (const Device device : devices())
    for (const int64_t out : {64, 96, 128}) {   // enough to fill a device, so that tiles stay large
      const int64_t taps = out == 128 ? 2 : 1;  // 133 tiles of 256 rows
      if (out == 128) wide<float>(device, 3, 11300, taps, out, Precision::fp32, "fma");
      if (out != 64 && device.kind == Device::cuda) wide<float>(device, 3, 11300, taps, out, Precision::tf32, "tf32");
      if (out != 96) wide<bf16>(device, 3, 11300, taps, out, Precision::fp32, "bf16");
    }
}

TEST_CASE("conv1d is exact on integers in tiles of 96 columns, of which a warp has 48", "[conv1d]") {
  for (const Device device : devices()) {
    if (device.kind != Device::cuda) continue;
    for (const int64_t out : {88, 96}) {  // 134 tiles; the last columns of 88 are empty
      wide<bf16>(device, 3, 5700, 3, out, Precision::fp32, "bf16");
      wide<float>(device, 3, 5700, 3, out, Precision::tf32, "tf32");
    }
    wide<bf16>(device, 3, 2900, 2, 184, Precision::fp32, "bf16");  // two tiles beside each other
  }
}

TEST_CASE("conv1d is exact on integers in wide tiles with a halo longer than they", "[conv1d][a100][rtx3090]") {
  for (const Device device : devices()) {
    if (device.kind != Device::cuda) continue;  // 128 x 64 in 99 KiB of shared memory, 128 x 128 in more
    wide<float>(device, 5, 2000, 2, 128, Precision::fp32, "fma", 200);
    wide<float>(device, 5, 2000, 2, 128, Precision::tf32, "tf32", 200);
    wide<bf16>(device, 5, 2000, 2, 128, Precision::fp32, "bf16", 200);
  }
}

TEST_CASE("conv1d is exact on integers in wide tiles whose warps end with their items", "[conv1d]") {
  for (const Device device : devices()) {
    if (device.kind != Device::cuda) continue;
    wide<float>(device, 178, 192, 3, 64, Precision::fp32, "fma");
    for (const int64_t out : {64, 128}) wide<bf16>(device, 178, 192, 3, out, Precision::fp32, "bf16");
    for (const int64_t out : {96, 128}) wide<bf16>(device, 88, 192, 3, out, Precision::fp32, "bf16");
    wide<float>(device, 530, 64, 5, 128, Precision::tf32, "tf32");
  }
}

#if defined(NACRE_WITH_CUDA)
TEST_CASE("conv1d's blocks: no rows for the halo where that saves some, and no smaller blocks for it",
          "[conv1d][a100][rtx3090][rtx4090]") {
  for (const Device device : devices()) {
    if (device.kind != Device::cuda) continue;
    const Context ctx({.device = device});
    const auto tiling = [&](int64_t items, int64_t time, int64_t channels, int64_t taps, int64_t dilation,
                            int bytes = 0) {
      const int64_t halo = (taps - 1) * dilation;
      return cuda::conv::forward_tiling<bf16>(ctx, {items, time, 1, channels}, {channels, taps, 1, channels},
                                              {.dilation = dilation, .left = halo / 2, .right = halo - halo / 2},
                                              bytes);
    };
    const cuda::conv::Tiling found[] = {
        tiling(72, 2112, 256, 7, 9),       // items of whole warps
        tiling(72, 264, 768, 7, 9),        // the gap saves a round on an H200, none on an A100
        tiling(72, 264, 768, 7, 1),        // the halo costs no round
        tiling(72, 264, 768, 7, 9, 6144),  // 163 KiB with Snake's parameters have no room for the gap
        tiling(72, 320, 768, 7, 9, 6144),  // the gap would halve the tiles
        tiling(8, 24000, 256, 3, 32),      //
        tiling(8, 24000, 256, 3, 64),      // the gap would leave none
        tiling(16, 264, 768, 7, 9),        // 120 blocks of 256 rows
        cuda::conv::forward_tiling<bf16>(ctx, {5, 3400, 1, 8}, {128, 2, 1, 8}, {.dilation = 200, .left = 200}),
        tiling(16, 8000, 128, 1, 1),  // two blocks of 92 KiB per multiprocessor, where it has room for them
        tiling(16, 8000, 128, 1, 1, 1024),
        tiling(16, 8000, 128, 2, 1),  // two taps: tall
        tiling(16, 2000, 256, 1, 1),  // L2 would be the bound
        tiling(16, 16000, 64, 1, 1),  // two tall blocks have room
        tiling(16, 8000, 192, 1, 1),
    };
    struct Expected {
      int rows, columns, gap;
      int64_t blocks;
    };
    const Expected h200[] = {{256, 128, 54, 1188}, {256, 128, 54, 450},  {256, 128, 0, 456},    {256, 128, 54, 450},
                             {256, 128, 54, 540},  {256, 128, 64, 1500}, {256, 128, 128, 1500}, {128, 128, 0, 240},
                             {128, 128, 0, 141},   {128, 128, 0, 1000},  {128, 128, 0, 1000},   {256, 128, 1, 500},
                             {256, 128, 0, 250},   {256, 64, 0, 1000},   {128, 96, 0, 2000}};
    const Expected a100[] = {{256, 128, 54, 1188}, {256, 128, 0, 540},  {256, 128, 0, 456},  {256, 128, 0, 540},
                             {256, 128, 0, 636},   {256, 128, 0, 1504}, {128, 128, 0, 3016}, {256, 128, 0, 120},
                             {128, 128, 0, 141},   {256, 128, 0, 500},  {256, 128, 0, 500},  {256, 128, 1, 500},
                             {128, 128, 0, 500},   {256, 64, 0, 1000},  {128, 96, 0, 2000}};
    const Expected of_99_kib[] = {{128, 64, 54, 4752}, {128, 96, 0, 1432},  {128, 128, 0, 912},   {128, 64, 0, 2148},
                                  {128, 64, 0, 2532},  {128, 64, 0, 6016},  {64, 64, 128, 12000}, {128, 96, 0, 320},
                                  {128, 64, 0, 282},   {128, 128, 0, 1000}, {128, 128, 0, 1000},  {128, 128, 1, 1000},
                                  {128, 64, 0, 1000},  {128, 64, 0, 2000},  {128, 96, 0, 2000}};
    const cuda::DeviceLimits& d = cuda::limits(ctx);
    const size_t kib = d.shared_per_block >> 10;
    constexpr int h200_multiprocessors = 132, a100_multiprocessors = 108;  // the tables are for these devices
    const Expected* const expected = kib == 227 && d.multiprocessors == h200_multiprocessors   ? h200
                                     : kib == 163 && d.multiprocessors == a100_multiprocessors ? a100
                                     : kib == 99 && d.multiprocessors <= 128                   ? of_99_kib
                                                                                               : nullptr;
    for (size_t i = 0; i < std::size(found); ++i) {
      INFO("case " << i);
      CHECK(found[i].supported);
      if (expected == nullptr) continue;  // no table for this device
      CHECK(found[i].rows == expected[i].rows);
      CHECK(found[i].columns == expected[i].columns);
      CHECK(found[i].gap == expected[i].gap);
      CHECK(found[i].blocks == expected[i].blocks);
    }
  }
}

TEST_CASE("conv1d has tiles for every layer of the codecs on every device", "[conv1d][a100][rtx3090][rtx4090]") {
  for (const Device device : devices()) {
    if (device.kind != Device::cuda) continue;
    const Context ctx({.device = device});
    for (const int64_t channels : {16, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536})
      for (const int64_t items : {1, 16, 72})
        for (const int bytes : {0, static_cast<int>(8 * channels)}) {  // with Snake's parameters
          INFO(channels << " channels, " << items << " items");
          for (const int64_t dilation : {1, 3, 9}) {
            const Conv1dGeometry g{.dilation = dilation, .left = 3 * dilation, .right = 3 * dilation};
            const Shape x{items, 1024, 1, channels}, weight{channels, 7, 1, channels};
            CHECK(cuda::conv::forward_tiling<float>(ctx, x, weight, g, bytes).supported);
            CHECK(cuda::conv::forward_tiling<bf16>(ctx, x, weight, g, bytes).supported);
          }
          for (const int64_t stride : {2, 4, 5, 8}) {
            const Conv1dGeometry g{.stride = stride, .left = stride / 2, .right = stride - stride / 2};
            const Shape x{items, 1024 * stride, 1, channels}, weight{2 * channels, 2 * stride, 1, channels};
            CHECK(cuda::conv::forward_tiling<float>(ctx, x, weight, g, bytes).supported);
            CHECK(cuda::conv::forward_tiling<bf16>(ctx, x, weight, g, bytes).supported);
          }
        }
  }
}
#endif

TEST_CASE("conv1d is exact on integers where rows of the halo would cost a round of blocks", "[conv1d]") {
  for (const Device device : devices()) {
    if (device.kind != Device::cuda) continue;
    wide<bf16>(device, 129, 260, 3, 128, Precision::fp32, "bf16");   // 132 blocks instead of 133
    wide<float>(device, 336, 100, 3, 128, Precision::tf32, "tf32");  // several items per tile
  }
}

TEST_CASE("conv1d in tf32 rounds inputs once", "[conv1d]") {
  for (const Device device : devices()) {
    if (device.kind != Device::cuda) continue;
    for (const Sample& s : {Sample{"", 2, 100, 64, 32, 7, same(7, 3)}, Sample{"", 2, 64, 16, 64, 8, strided(4)}}) {
      const Shape xs = x_shape(s), ws = weight_shape(s), ys = y_shape(s);
      const reference::Conv1d ref = reference_of(s);
      Case c("conv1d tf32", device, xs, 2, Precision::tf32);
      auto &x = c.random("x", xs, -1, 1), &w = c.random("weight", ws, -1, 1), &dy = c.random("dy", ys, -1, 1);
      auto &y = c.output("y", ys), &dx = c.output("dx", xs), &dw = c.zeros("dweight", ws);
      conv1d_forward(c.ctx, {.x = x, .weight = w, .y = y, .geometry = s.g});
      conv1d_input_gradient(c.ctx, {.dy = dy, .weight = w, .dx = dx, .geometry = s.g});
      conv1d_weight_gradient(c.ctx, {.x = x,
                                     .dy = dy,
                                     .dweight = dw,
                                     .scratch = c.scratch(conv1d_weight_gradient_scratch(c.ctx, xs, ws, ys, s.g)),
                                     .geometry = s.g});
      // Each factor is off by at most 2^-11 of itself, so a product is off by 2^-10 + 2^-22. The float sum adds its own
      // error.
      const auto check = [&](const Buffer<float>& found, const std::vector<double>& exact,
                             const std::vector<double>& magnitudes, int64_t terms) {
        const double relative = 0x1p-10 + 0x1p-22 + 4 * std::sqrt(static_cast<double>(terms)) * ulp;
        c.expect<float>(
            found, [&](int64_t i) { return at(exact, i); }, [&](int64_t i) { return relative * at(magnitudes, i); });
      };
      const auto xa = absolute(doubles(x)), wa = absolute(doubles(w)), dya = absolute(doubles(dy));
      check(y, ref.forward(doubles(x), doubles(w)), ref.forward(xa, wa), s.taps * s.in);
      check(dx, ref.input_gradient(doubles(dy), doubles(w)), ref.input_gradient(dya, wa), s.taps * s.out);
      check(dw, ref.weight_gradient(doubles(x), doubles(dy)), ref.weight_gradient(xa, dya), ys.rows());
    }
  }
}

TEST_CASE("conv1d is accurate on random data", "[conv1d]") {
  for (const Device device : devices()) {
    std::vector<Sample> all = samples();
    if (device.kind == Device::cpu) {
      all.insert(all.end(), fewer_products().begin(), fewer_products().end());
      for (const Reflected& r : reflected_paddings()) all.push_back(r.s);
    }
    for (const Sample& s : all) {
      INFO(s.why);
      const Shape xs = x_shape(s), ws = weight_shape(s), ys = y_shape(s);
      const reference::Conv1d ref = reference_of(s);
      Case c(std::string("conv1d random, ") + s.why, device, xs);
      auto &x = c.random("x", xs, -1, 1), &w = c.random("weight", ws, -1, 1), &dy = c.random("dy", ys, -1, 1);
      auto &bias = c.random("bias", {.channels = s.out}, -1, 1), &residual = c.random("residual", ys, -1, 1);
      auto &y = c.output("y", ys), &dx = c.output("dx", xs);
      auto &dw = c.random("dweight", ws, -1, 1), &db = c.random("dbias", {.channels = s.out}, -1, 1);
      conv1d_forward(c.ctx, {.x = x,
                             .weight = w,
                             .bias = bias,
                             .residual = residual,
                             .y = y,
                             .scratch = c.scratch(conv1d_forward_scratch(c.ctx, xs, ws, s.g)),
                             .geometry = s.g});
      conv1d_input_gradient(c.ctx, {.dy = dy,
                                    .weight = w,
                                    .dx = dx,
                                    .scratch = c.scratch(conv1d_input_gradient_scratch(c.ctx, xs, ws, ys, s.g)),
                                    .geometry = s.g});
      conv1d_weight_gradient(c.ctx, {.x = x,
                                     .dy = dy,
                                     .dweight = dw,
                                     .dbias = db,
                                     .scratch = c.scratch(conv1d_weight_gradient_scratch(c.ctx, xs, ws, ys, s.g)),
                                     .geometry = s.g});

      // A float sum of n terms in any order is off by at most about n / 2 ulp of the sum of magnitudes. The rounding
      // errors of real data are random, so the typical error is sqrt(n) ulp, and 4 sqrt(n) is a safe limit.
      const auto allowed = [](const std::vector<double>& magnitudes, int64_t terms, double extra) {
        return [=](int64_t i) { return 4 * std::sqrt(static_cast<double>(terms)) * ulp * (at(magnitudes, i) + extra); };
      };
      const auto xa = absolute(doubles(x)), wa = absolute(doubles(w)), dya = absolute(doubles(dy));
      const auto y_ref = ref.forward(doubles(x), doubles(w)), dx_ref = ref.input_gradient(doubles(dy), doubles(w)),
                 dw_ref = ref.weight_gradient(doubles(x), doubles(dy));
      const auto y_expected = [&](int64_t i) { return at(y_ref, i) + bias[i % s.out] + residual[i]; };
      const auto y_allowed = allowed(ref.forward(xa, wa), s.taps * s.in / s.g.groups + 2, 2);
      c.expect<float>(y, y_expected, y_allowed);
      const auto dx_allowed = allowed(ref.input_gradient(dya, wa), s.taps * s.out / s.g.groups + 1, 0);
      c.expect<float>(
          dx, [&](int64_t i) { return at(dx_ref, i); }, dx_allowed);
      const auto dw_allowed = allowed(ref.weight_gradient(xa, dya), ys.rows() + 1, 1);
      c.expect<float>(
          dw, [&](int64_t i) { return at(dw_ref, i) + dw[i]; }, dw_allowed);
      std::vector<double> sums(static_cast<size_t>(s.out)), size(sums.size(), 1.0);
      for (int64_t i = 0; i < dy.size(); ++i)
        sums[static_cast<size_t>(i % s.out)] += dy[i], size[static_cast<size_t>(i % s.out)] += std::fabs(dy[i]);
      c.expect<float>(
          db, [&](int64_t i) { return at(sums, i) + db[i]; }, allowed(size, ys.rows(), 0));

      auto planted = doubles(y.read());
      const int64_t where = y.size() / 2;
      planted[static_cast<size_t>(where)] = y_expected(where) + 10 * y_allowed(where);
      CHECK(worst_ratio(planted, y_expected, y_allowed) > 9);
    }
  }
}

TEST_CASE("conv1d's reference gradients are those of its reference forward", "[conv1d]") {
  std::mt19937_64 rng(seed());
  std::uniform_real_distribution<double> draw(-1, 1);
  const auto noise = [&](int64_t n) {
    std::vector<double> v(static_cast<size_t>(n));
    for (double& x : v) x = draw(rng);
    return v;
  };
  for (const Sample& s : samples()) {
    const reference::Conv1d ref = reference_of(s);
    const auto x = noise(s.batch * s.time * s.in), w = noise(weight_shape(s).elements()),
               dy = noise(y_shape(s).elements());
    const auto direction_x = noise(static_cast<int64_t>(x.size())), direction_w = noise(static_cast<int64_t>(w.size()));
    const auto loss = [&](double hx, double hw) {
      auto xs = x, ws = w;
      for (size_t i = 0; i < xs.size(); ++i) xs[i] += hx * direction_x[i];
      for (size_t i = 0; i < ws.size(); ++i) ws[i] += hw * direction_w[i];
      return dot(ref.forward(xs, ws), dy);
    };
    const double h = 1e-3;  // the loss is linear in each parameter, so only rounding remains
    CHECK((loss(h, 0) - loss(-h, 0)) / (2 * h) ==
          Approx(dot(ref.input_gradient(dy, w), direction_x)).epsilon(1e-8).margin(1e-8));
    CHECK((loss(0, h) - loss(0, -h)) / (2 * h) ==
          Approx(dot(ref.weight_gradient(x, dy), direction_w)).epsilon(1e-8).margin(1e-8));
  }
}

TEST_CASE("conv1d takes a scratch larger than asked for, a shape never asked about, and no batch at all", "[conv1d]") {
  for (const Device device : devices()) {
    const Conv1dGeometry g = same(7);
    Case c("conv1d", device, {2, 20, 1, 16});
    auto &x = c.integers("x", {2, 20, 1, 16}, -3, 3), &w = c.integers("weight", {16, 7, 1, 16}, -3, 3);
    auto &y = c.output("y", {2, 20, 1, 16}), &y2 = c.output("y2", {2, 20, 1, 16});
    const View<float> much = c.scratch({.channels = 1 << 20});
    conv1d_forward(c.ctx, {.x = x, .weight = w, .y = y, .scratch = much, .geometry = g});
    conv1d_forward(c.ctx, {.x = x,
                           .weight = w,
                           .y = y2,
                           .scratch = c.scratch(conv1d_forward_scratch(c.ctx, x.shape(), w.shape(), g)),
                           .geometry = g});
    c.expect_equal(y, y2.read());
    conv1d_forward<float>(c.ctx,
                          {.x = {nullptr, {0, 20, 1, 16}}, .weight = w, .y = {nullptr, {0, 20, 1, 16}}, .geometry = g});
    auto& dw = c.integers("dweight", w.shape(), -3, 3);
    conv1d_weight_gradient<float>(
        c.ctx, {.x = {nullptr, {0, 20, 1, 16}}, .dy = {nullptr, {0, 20, 1, 16}}, .dweight = dw, .geometry = g});
    c.expect_equal(dw, dw.before());
    conv1d_weight_gradient<float>(c.ctx, {.x = {nullptr, {0, 20, 1, 16}},
                                          .dy = {nullptr, {0, 20, 1, 16}},
                                          .dweight = dw,
                                          .geometry = g,
                                          .add_dweight = false});
    c.expect_equal(dw, std::vector<float>(static_cast<size_t>(w.size())));
    CHECK(conv1d_forward_scratch(c.ctx, {0, 20, 1, 16}, w.shape(), g).elements() == 0);
  }
}

TEST_CASE("conv1d says what does not fit", "[conv1d]") {
  Context ctx;
  std::vector<float> data(4096);
  const auto view = [&](Shape s) { return View<float>(data.data(), s); };
  const View<float> scratch(data.data(), {.channels = 4096});
  const Shape x{1, 8, 1, 4}, w{4, 3, 1, 4};
  using Catch::Contains;
  CHECK_THROWS_WITH(conv1d_forward<float>(
                        ctx, {.x = view(x), .weight = view({4, 3, 1, 5}), .y = view({1, 6, 1, 4}), .scratch = scratch}),
                    Contains("conv1d_forward: weight is [4, 3, 1, 5], expected [4, 3, 1, 4]"));
  CHECK_THROWS_WITH(conv1d_forward<float>(ctx, {.x = view(x), .weight = view(w), .y = view(x), .scratch = scratch}),
                    Contains("conv1d_forward: y is [1, 8, 1, 4], expected [1, 6, 1, 4]"));
  CHECK_THROWS_WITH(conv1d_forward<float>(ctx, {.x = view(x), .weight = view(w), .y = view({1, 6, 1, 4})}),
                    Contains("conv1d_forward: scratch"));
  CHECK_THROWS_WITH(conv1d_forward<float>(ctx, {.x = view(x),
                                                .weight = view(w),
                                                .bias = view({.channels = 3}),
                                                .y = view({1, 6, 1, 4}),
                                                .scratch = scratch}),
                    Contains("conv1d_forward: bias is [1, 1, 1, 3]"));
  CHECK_THROWS_WITH(conv1d_forward<float>(
                        ctx, {.x = view({1, 2, 1, 4}), .weight = view(w), .y = view({1, 1, 1, 4}), .scratch = scratch}),
                    Contains("x has 2 samples, too few for 3 taps"));
  CHECK_THROWS_WITH(conv1d_forward_scratch(ctx, x, w, {.stride = 0}), Contains("geometry has stride 0"));
  CHECK_THROWS_WITH(conv1d_forward_scratch(ctx, x, w, {.groups = 3}), Contains("a multiple of 3"));
  CHECK_THROWS_WITH(conv1d_forward_scratch(ctx, x, w, {.left = 8, .padding = Padding::reflect}),
                    Contains("reflect padding of 8"));
  CHECK_THROWS_WITH(conv1d_input_gradient_scratch(ctx, x, w, {1, 7, 1, 4}, {}),
                    Contains("conv1d_input_gradient_scratch: dy is [1, 7, 1, 4]"));
  CHECK_THROWS_WITH(conv1d_weight_gradient<float>(
                        ctx, {.x = view(x), .dy = view({1, 5, 1, 4}), .dweight = view(w), .scratch = scratch}),
                    Contains("conv1d_weight_gradient: dy is [1, 5, 1, 4], expected [1, 6, 1, 4]"));
  CHECK_THROWS_AS(conv1d_forward<float>(
                      ctx, {.x = view({1, 8, 2, 4}), .weight = view(w), .y = view({1, 6, 1, 4}), .scratch = scratch}),
                  Error);
}
