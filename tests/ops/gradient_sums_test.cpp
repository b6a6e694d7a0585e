#include "nacre/ops/gradient_sums.h"

#include <cmath>
#include <numeric>

#include "harness.h"
#include "nacre/ops/conv2d.h"
#include "nacre/ops/snake_conv1d.h"
#if defined(NACRE_WITH_CUDA)
#include "runtime/gradient_sums.h"
#include "runtime/runtime.h"
#endif

using namespace nacre;
using namespace nacre::test;

namespace {

/// Whether the device leaves parts of gradients.
bool has_parts(const Case& c) { return c.ctx.device().kind == Device::cuda; }

/// Gradients of one call, started at the same random values with and without `parts`.
struct Gradient {
  Buffer<float>& at_once;
  Buffer<float>& later;
};
Gradient gradient(Case& c, const std::string& name, Shape shape) {
  Buffer<float>& at_once = c.random(name, shape, -1, 1);
  return {at_once, c.values(name + " later", shape, at_once.before())};
}
/// Before the sums are finished nothing is written, unless the device has no parts. Afterwards the bits are equal.
void expect_waits(Case& c, const Gradient& g, bool waits) {
  if (waits)
    c.expect_equal(g.later, g.later.before());
  else
    c.expect_equal(g.later, g.at_once.read());
}
void expect_same(Case& c, const Gradient& g) { c.expect_equal(g.later, g.at_once.read()); }

struct Layer {
  const char* what;
  int64_t batch, time, in, out, taps;
  Conv1dGeometry geometry{};
};
const Layer layers[] = {
    {"several taps", 2, 300, 16, 24, 7, {.dilation = 3, .left = 9, .right = 9}},
    {"one tap", 2, 700, 32, 64, 1, {}},
    {"a stride", 2, 256, 16, 16, 4, {.stride = 2, .left = 1, .right = 1}},
    {"channels that fill no pack", 2, 600, 3, 5, 3, {.left = 1, .right = 1}},
    {"one output", 2, 600, 16, 1, 7, {.left = 3, .right = 3}},
    {"groups", 2, 400, 32, 32, 3, {.groups = 8, .left = 1, .right = 1}},
    {"a single part", 1, 9, 8, 8, 1, {}},
};

}  // namespace

TEST_CASE("gradients of convolutions whose parts wait", "[gradient_sums]") {
  for (const Device device : devices())
    for (const Layer& l : layers) {
      const Shape x{.batch = l.batch, .time = l.time, .channels = l.in},
          weight{.batch = l.out, .time = l.taps, .channels = l.in / l.geometry.groups},
          y{.batch = l.batch, .time = conv1d_length(l.time, l.taps, l.geometry), .channels = l.out};
      Case c(std::string("parts of a weight gradient, ") + l.what, device, x);
      auto &xs = c.random("x", x, -1, 1), &dys = c.random("dy", y, -1, 1);
      const Gradient w = gradient(c, "dweight", weight), b = gradient(c, "dbias", {.channels = l.out}),
                     of_x = gradient(c, "dbias of x", {.channels = l.in});
      const Shape parts = conv1d_weight_gradient_parts(c.ctx, x, weight, y, l.geometry);
      CHECK((parts.elements() > 0) == (has_parts(c) && l.out > 1));
      Conv1dWeightGradient<float> call{
          .x = xs,
          .dy = dys,
          .dweight = w.at_once,
          .dbias = b.at_once,
          .dbias_of_x = of_x.at_once,
          .scratch = c.scratch(conv1d_weight_gradient_scratch(c.ctx, x, weight, y, l.geometry)),
          .geometry = l.geometry};
      conv1d_weight_gradient(c.ctx, call);
      call.dweight = w.later, call.dbias = b.later, call.dbias_of_x = of_x.later;
      call.parts = c.scratch(parts);
      if (call.parts) call.scratch = {};
      conv1d_weight_gradient(c.ctx, call);
      expect_waits(c, b, bool(call.parts));
      finish_gradient_sums(c.ctx);
      expect_same(c, w), expect_same(c, b), expect_same(c, of_x);
      if (!call.parts) continue;
      call.parts.shape.channels -= 1;
      CHECK_THROWS_WITH(conv1d_weight_gradient(c.ctx, call), Catch::Contains("parts is"));
    }
}

TEST_CASE("gradients of Snake and its convolutions whose parts wait", "[gradient_sums]") {
  for (const Device device : devices())
    for (const Layer& l : layers) {
      if (l.geometry.groups > 1) continue;
      const Shape x{.batch = l.batch, .time = l.time, .channels = l.in},
          weight{.batch = l.out, .time = l.taps, .channels = l.in},
          y{.batch = l.batch, .time = conv1d_length(l.time, l.taps, l.geometry), .channels = l.out};
      Case c(std::string("parts of Snake's gradients, ") + l.what, device, x);
      auto &xs = c.random("x", x, -1, 1), &dys = c.random("dy", y, -1, 1), &ws = c.random("weight", weight, -1, 1),
           &alpha = c.random("alpha", {.channels = l.in}, 0.5, 2), &beta = c.random("beta", {.channels = l.in}, 0.5, 2);
      const Gradient a = gradient(c, "dalpha", {.channels = l.in}), b = gradient(c, "dbeta", {.channels = l.in}),
                     w = gradient(c, "dweight", weight), bias = gradient(c, "dbias", {.channels = l.out}),
                     alone = gradient(c, "dalpha of snake", {.channels = l.in}), dx = gradient(c, "dx", x);
      SnakeConv1dInputGradient<float> input{
          .x = xs,
          .alpha = alpha,
          .beta = beta,
          .dy = dys,
          .weight = ws,
          .dx = dx.at_once,
          .dalpha = a.at_once,
          .dbeta = b.at_once,
          .scratch = c.scratch(snake_conv1d_input_gradient_scratch(c.ctx, x, weight, y, l.geometry)),
          .geometry = l.geometry};
      SnakeConv1dWeightGradient<float> of_weight{
          .x = xs,
          .alpha = alpha,
          .beta = beta,
          .dy = dys,
          .dweight = w.at_once,
          .dbias = bias.at_once,
          .scratch = c.scratch(snake_conv1d_weight_gradient_scratch(c.ctx, x, weight, y, l.geometry)),
          .geometry = l.geometry};
      SnakeBackward<float> snake{.x = xs,
                                 .alpha = alpha,
                                 .dy = xs,
                                 .dalpha = alone.at_once,
                                 .scratch = c.scratch(snake_backward_scratch(c.ctx, x, false))};
      snake_conv1d_input_gradient(c.ctx, input);
      snake_conv1d_weight_gradient(c.ctx, of_weight);
      snake_backward(c.ctx, snake);
      input.dx = dx.later, input.dalpha = a.later, input.dbeta = b.later;
      input.parts = c.scratch(snake_conv1d_input_gradient_parts(c.ctx, x, weight, y, l.geometry));
      of_weight.dweight = w.later, of_weight.dbias = bias.later;
      of_weight.parts = c.scratch(snake_conv1d_weight_gradient_parts(c.ctx, x, weight, y, l.geometry));
      snake.dalpha = alone.later;
      snake.parts = c.scratch(snake_backward_parts(c.ctx, x, false));
      if (snake.parts) snake.scratch = {};
      snake_conv1d_input_gradient(c.ctx, input);
      snake_conv1d_weight_gradient(c.ctx, of_weight);
      snake_backward(c.ctx, snake);
      CHECK(bool(input.parts) == has_parts(c));
      CHECK(bool(snake.parts) == has_parts(c));
      expect_same(c, dx);
      expect_waits(c, a, has_parts(c)), expect_waits(c, b, has_parts(c)), expect_waits(c, alone, has_parts(c));
      finish_gradient_sums(c.ctx);
      expect_same(c, a), expect_same(c, b), expect_same(c, alone), expect_same(c, w), expect_same(c, bias);
    }
}

TEST_CASE("gradients of conv2d whose parts wait", "[gradient_sums]") {
  for (const Device device : devices())
    for (const int64_t channels : {8, 3}) {  // three are padded, and their weight gradient is copied at once
      const Shape x{.batch = 2, .time = 40, .width = 12, .channels = channels},
          weight{.batch = 8, .time = 3, .width = 3, .channels = channels};
      const Conv2dGeometry g{.time = {.left = 1, .right = 1}, .width = {.left = 1, .right = 1}};
      const Shape y = conv2d_output(x, weight, g);
      Case c("parts of conv2d's weight gradient", device, x);
      auto &xs = c.random("x", x, -1, 1), &dys = c.random("dy", y, -1, 1);
      const Gradient w = gradient(c, "dweight", weight), b = gradient(c, "dbias", {.channels = 8});
      Conv2dWeightGradient<float> call{.x = {.part = {xs}},
                                       .dy = dys,
                                       .dweight = w.at_once,
                                       .dbias = b.at_once,
                                       .scratch = c.scratch(conv2d_weight_gradient_scratch(c.ctx, x, 1, weight, g)),
                                       .geometry = g};
      conv2d_weight_gradient(c.ctx, call);
      call.dweight = w.later, call.dbias = b.later;
      call.parts = c.scratch(conv2d_weight_gradient_parts(c.ctx, x, 1, weight, g));
      conv2d_weight_gradient(c.ctx, call);
      finish_gradient_sums(c.ctx);
      expect_same(c, w), expect_same(c, b);
    }
}

TEST_CASE("a gradient of several calls, many waiting sums, and dropped ones", "[gradient_sums]") {
  for (const Device device : devices()) {
    const Shape x{.batch = 1, .time = 64, .channels = 8}, per_channel{.channels = 8};
    Case c("waiting sums", device, x);
    auto &xs = c.random("x", x, -1, 1), &alpha = c.random("alpha", per_channel, 0.5, 2);
    const Shape parts = snake_backward_parts(c.ctx, x, false);
    SnakeBackward<float> call{
        .x = xs, .alpha = alpha, .dy = xs, .scratch = c.scratch(snake_backward_scratch(c.ctx, x, false))};
    const Gradient shared = gradient(c, "shared", per_channel);
    for (int i = 0; i < 3; ++i) {
      call.dalpha = shared.at_once, call.parts = {};
      snake_backward(c.ctx, call);
      call.dalpha = shared.later, call.parts = c.scratch(parts);
      snake_backward(c.ctx, call);
    }
    // A sum that does not wait comes after those of the same gradient that do.
    call.dalpha = shared.at_once, call.parts = {};
    snake_backward(c.ctx, call);
    call.dalpha = shared.later;
    snake_backward(c.ctx, call);
    finish_gradient_sums(c.ctx);
    expect_same(c, shared);

    std::vector<Gradient> many;
    for (int i = 0; i < 130; ++i) many.push_back(gradient(c, "gradient " + std::to_string(i), per_channel));
    const auto all = [&](bool later) {
      for (const Gradient& g : many) {
        call.dalpha = later ? g.later : g.at_once;
        call.parts = later ? c.scratch(parts) : View<float>{};
        snake_backward(c.ctx, call);
      }
    };
    all(false);
#if defined(NACRE_WITH_CUDA)
    const int64_t before = has_parts(c) ? nacre::cuda::runtime(c.ctx).launches("gradient_sums") : 0;
#endif
    all(true);
    finish_gradient_sums(c.ctx);
#if defined(NACRE_WITH_CUDA)
    if (has_parts(c)) CHECK(nacre::cuda::runtime(c.ctx).launches("gradient_sums") == before + 3);
#endif
    for (const Gradient& g : many) expect_same(c, g);

    const Gradient dropped = gradient(c, "dropped", per_channel);
    call.dalpha = dropped.later, call.parts = c.scratch(parts);
    snake_backward(c.ctx, call);
    forget_gradient_sums(c.ctx);
    finish_gradient_sums(c.ctx);
    if (has_parts(c)) c.expect_equal(dropped.later, dropped.later.before());
  }
}

#if defined(NACRE_WITH_CUDA)
TEST_CASE("sums over few, many and very many parts", "[gradient_sums]") {
  for (const Device device : devices()) {
    if (device.kind != Device::cuda) continue;
    for (const int64_t parts : {1, 2, 31, 32, 100, 511, 512, 700})
      for (const int64_t n : {1, 3, 4, 33, 1028})
        for (const bool add : {false, true}) {
          Case c("sum of " + std::to_string(parts) + " parts", device, {.channels = n});
          auto &partial = c.random("partial", {.time = parts, .channels = n}, -1, 1),
               &to = c.random("sum", {.channels = n}, -1, 1);
          nacre::cuda::add_parts(c.ctx, View<const float>(partial).data, parts, n, View<float>(to).data, add);
          const auto expected = [&](int64_t i) {
            double sum = add ? static_cast<double>(to.before()[static_cast<size_t>(i)]) : 0;
            for (int64_t p = 0; p < parts; ++p) sum += partial[p * n + i];
            return sum;
          };
          // Two roundings to float: of the sum over parts, and of the sum with the previous value. Those of the sums in
          // double are below 700 * 700 * 2^-53.
          c.expect(to, expected, [&](int64_t i) {
            const double previous = add ? std::abs(static_cast<double>(to.before()[static_cast<size_t>(i)])) : 0;
            return ulp * (2 * std::abs(expected(i)) + previous) + 0x1p-33;
          });
        }
  }
}
#endif
