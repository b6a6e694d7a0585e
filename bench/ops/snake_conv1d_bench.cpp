#include "nacre/ops/snake_conv1d.h"

#include "harness.h"
#include "ops/layers.h"

namespace nacre::bench {
namespace {

constexpr int64_t snake_flops = 18, slope_flops = 32;  // as in snake_bench.cpp

/// The same by two ops. The fused op saves writing and reading the result of Snake.
template <class T>
void add_unfused(Suite& suite, const Layer& l, const std::string& arithmetic) {
  const Shape x = l.x(), w = l.weight(), y = l.y(), per_channel{.channels = l.in};
  const Conv1dGeometry g = l.g;
  constexpr int64_t size = sizeof(T);
  suite.add(
      {.name = l.case_name("snake_conv1d_forward", arithmetic) + "/unfused",
       .bytes = l.bytes(size, size),
       .flops = l.flops(),
       .arithmetic = arithmetic,
       .parameters = {{"op", "snake_then_conv1d"}}},
      [=](Data& data) -> Run {
        const View<T> xs = data.random<T>(x), u = data.random<T>(x), ws = data.random<T>(w), ys = data.random<T>(y);
        const View<float> alpha = data.random(per_channel, 0.5, 4), bias = data.random({.channels = y.channels});
        const View<float> scratch = data.random(conv1d_forward_scratch<T>(data.ctx, x, w, g));
        return [=](Context& ctx) {
          snake_forward<T>(ctx, {.x = xs, .alpha = alpha, .y = u});
          conv1d_forward<T>(ctx, {.x = u, .weight = ws, .bias = bias, .y = ys, .scratch = scratch, .geometry = g});
        };
      });
}

template <class T>
void add_layer(Suite& suite, const Layer& l, const std::string& arithmetic) {
  const Shape x = l.x(), w = l.weight(), y = l.y(), per_channel{.channels = l.in};
  const int64_t n = x.elements();
  // Snake cannot run on tensor cores. Its operations count only if the products use no tensor cores, either.
  const bool plain = arithmetic == "fp32";
  const Conv1dGeometry g = l.g;
  constexpr int64_t size = sizeof(T);
  const auto info = [&](const char* direction, int64_t more_bytes, int64_t weight_size, int64_t snake) {
    return CaseInfo{.name = l.case_name(std::string("snake_conv1d_") + direction, arithmetic),
                    .bytes = l.bytes(size, weight_size) + more_bytes,
                    .flops = l.flops() + (plain ? snake * n : 0),
                    .arithmetic = arithmetic,
                    .parameters = l.parameters("snake_conv1d", direction, arithmetic)};
  };
  suite.add(info("forward", 0, size, snake_flops), [=](Data& data) -> Run {
    const View<T> xs = data.random<T>(x), ws = data.random<T>(w), ys = data.random<T>(y);
    const View<float> alpha = data.random(per_channel, 0.5, 4), bias = data.random({.channels = y.channels});
    const View<float> scratch = data.random(snake_conv1d_forward_scratch<T>(data.ctx, x, w, g));
    return [=](Context& ctx) {
      snake_conv1d_forward<T>(
          ctx, {.x = xs, .alpha = alpha, .weight = ws, .bias = bias, .y = ys, .scratch = scratch, .geometry = g});
    };
  });
  suite.add(info("input_gradient", size * n, size, slope_flops), [=](Data& data) -> Run {
    const View<T> xs = data.random<T>(x), ws = data.random<T>(w), ys = data.random<T>(y), dx = data.random<T>(x);
    const View<float> alpha = data.random(per_channel, 0.5, 4), dalpha = data.random(per_channel);
    const View<float> scratch = data.random(snake_conv1d_input_gradient_scratch<T>(data.ctx, x, w, y, g));
    return [=](Context& ctx) {
      snake_conv1d_input_gradient<T>(ctx, {.x = xs,
                                           .alpha = alpha,
                                           .dy = ys,
                                           .weight = ws,
                                           .dx = dx,
                                           .dalpha = dalpha,
                                           .scratch = scratch,
                                           .geometry = g});
    };
  });
  suite.add(info("weight_gradient", 0, 8, snake_flops), [=](Data& data) -> Run {
    const View<T> xs = data.random<T>(x), ys = data.random<T>(y);
    const View<float> ws = data.random(w, -1e-6, 1e-6);
    const View<float> alpha = data.random(per_channel, 0.5, 4), dbias = data.random({.channels = y.channels});
    const View<float> scratch = data.random(snake_conv1d_weight_gradient_scratch<T>(data.ctx, x, w, y, g));
    return [=](Context& ctx) {
      snake_conv1d_weight_gradient<T>(
          ctx, {.x = xs, .alpha = alpha, .dy = ys, .dweight = ws, .dbias = dbias, .scratch = scratch, .geometry = g});
    };
  });
}

const Cases cases([](Suite& suite) {
  if (!suite.cuda()) {
    const Layer layers[] = {unit(4, 8000, 16, 7),
                            unit(4, 4000, 32, 7, 9),
                            unit(4, 4000, 32, 1),
                            unit(4, 1000, 64, 7, 3),
                            unit(8, 200, 128, 7, 9),
                            {"last_k7", 4, 8000, 16, 1, 7, same(7)},
                            {"last_k7", 4, 8000, 96, 1, 7, same(7)}};
    for (const Layer& l : layers) {
      add_layer<float>(suite, fit(suite, l), "fp32");
      add_unfused<float>(suite, fit(suite, l), "fp32");
    }
    return;
  }
  std::vector<Layer> layers = cuda_narrow_layers();
  layers.insert(layers.end(), {unit(72, 2112, 256, 7),
                               unit(72, 2112, 384, 7),
                               unit(72, 16896, 64, 1),
                               unit(72, 16896, 96, 1),
                               unit(72, 8448, 128, 1),
                               unit(72, 2112, 256, 1),
                               {"last_k7", 72, 16896, 96, 1, 7, same(7)},
                               unit(16, 2112, 62, 7)});  // a plain kernel
  for (const Layer& l : layers) {
    add_layer<bf16>(suite, fit(suite, l), "bf16");
    add_unfused<bf16>(suite, fit(suite, l), "bf16");
  }
  for (const Layer& l : {unit(72, 16896, 64, 7), unit(72, 8448, 128, 7)})
    add_layer<float>(suite, fit(suite, l), "tf32");
});

}  // namespace
}  // namespace nacre::bench
