#include "nacre/ops/snake_conv1d.h"

#include "harness.h"

namespace nacre::bench {
namespace {

struct Layer {
  const char* name;
  int64_t batch, time, in, out, taps;
  Conv1dGeometry g;
};
Conv1dGeometry same(int64_t taps, int64_t dilation = 1) {
  return {.dilation = dilation, .left = (taps - 1) / 2 * dilation, .right = (taps - 1) / 2 * dilation};
}

// Residual units and the last layer of the small model of conv1d's bench; then a codec's full rate.
const Layer layers[] = {
    {"k7_d1", 4, 8000, 16, 16, 7, same(7)},     {"k7_d9", 4, 4000, 32, 32, 7, same(7, 9)},
    {"k1", 4, 4000, 32, 32, 1, same(1)},        {"k7_d3", 4, 1000, 64, 64, 7, same(7, 3)},
    {"k7_d9", 8, 200, 128, 128, 7, same(7, 9)}, {"last_k7", 4, 8000, 16, 1, 7, same(7)},
    {"last_k7", 4, 8000, 96, 1, 7, same(7)},
};
constexpr int64_t snake_flops = 18, slope_flops = 32;  // as snake's bench counts them

const Cases cases([](Suite& suite) {
  for (const Layer& l : layers) {
    const Shape x{.batch = l.batch, .time = l.time, .channels = l.in}, w{l.out, l.taps, 1, l.in};
    const Shape y{.batch = l.batch, .time = conv1d_length(l.time, l.taps, l.g), .channels = l.out};
    const Shape per_channel{.channels = l.in};
    const int64_t flops = 2 * y.elements() * l.taps * l.in, bytes = 4 * (x.elements() + y.elements() + w.elements());
    const int64_t n = x.elements();
    const auto name = [&](const char* op) {
      return std::string(op) + "/" + l.name + "/" + label(x) + "/to:" + std::to_string(l.out);
    };
    const Conv1dGeometry g = l.g;
    suite.add(
        {.name = name("snake_conv1d_forward"), .bytes = bytes, .flops = flops + snake_flops * n},
        [=](Data& data) -> Run {
          const View<float> xs = data.random(x), ws = data.random(w), ys = data.random(y);
          const View<float> alpha = data.random(per_channel, 0.5, 4), bias = data.random({.channels = y.channels});
          const View<float> scratch = data.random(snake_conv1d_forward_scratch(data.ctx, x, w, g));
          return [=](Context& ctx) {
            snake_conv1d_forward<float>(
                ctx, {.x = xs, .alpha = alpha, .weight = ws, .bias = bias, .y = ys, .scratch = scratch, .geometry = g});
          };
        });
    suite.add({.name = name("snake_conv1d_input_gradient"), .bytes = bytes + 4 * n, .flops = flops + slope_flops * n},
              [=](Data& data) -> Run {
                const View<float> xs = data.random(x), ws = data.random(w), ys = data.random(y), dx = data.random(x);
                const View<float> alpha = data.random(per_channel, 0.5, 4), dalpha = data.random(per_channel);
                const View<float> scratch = data.random(snake_conv1d_input_gradient_scratch(data.ctx, x, w, y, g));
                return [=](Context& ctx) {
                  snake_conv1d_input_gradient<float>(ctx, {.x = xs,
                                                           .alpha = alpha,
                                                           .dy = ys,
                                                           .weight = ws,
                                                           .dx = dx,
                                                           .dalpha = dalpha,
                                                           .scratch = scratch,
                                                           .geometry = g});
                };
              });
    suite.add(
        {.name = name("snake_conv1d_weight_gradient"), .bytes = bytes, .flops = flops + snake_flops * n},
        [=](Data& data) -> Run {
          const View<float> xs = data.random(x), ws = data.random(w, -1e-6, 1e-6), ys = data.random(y);
          const View<float> alpha = data.random(per_channel, 0.5, 4), dbias = data.random({.channels = y.channels});
          const View<float> scratch = data.random(snake_conv1d_weight_gradient_scratch(data.ctx, x, w, y, g));
          return [=](Context& ctx) {
            snake_conv1d_weight_gradient<float>(
                ctx,
                {.x = xs, .alpha = alpha, .dy = ys, .dweight = ws, .dbias = dbias, .scratch = scratch, .geometry = g});
          };
        });
  }
});

}  // namespace
}  // namespace nacre::bench
