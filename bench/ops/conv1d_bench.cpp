#include "nacre/ops/conv1d.h"

#include "harness.h"
#include "ops/layers.h"

namespace nacre::bench {
namespace {

template <class T>
void add_layer(Suite& suite, const Layer& l, const std::string& arithmetic) {
  const Shape x = l.x(), w = l.weight(), y = l.y();
  const Conv1dGeometry g = l.g;
  constexpr int64_t size = sizeof(T);
  const auto info = [&](const char* direction, int64_t weight_size) {
    return CaseInfo{.name = l.case_name(std::string("conv1d_") + direction, arithmetic),
                    .bytes = l.bytes(size, weight_size),
                    .flops = l.flops(),
                    .arithmetic = arithmetic,
                    .parameters = l.parameters("conv1d", direction, arithmetic)};
  };
  suite.add(info("forward", size), [=](Data& data) -> Run {
    const View<T> xs = data.random<T>(x), ws = data.random<T>(w), ys = data.random<T>(y);
    const View<float> bias = data.random({.channels = y.channels});
    const View<float> scratch = data.random(conv1d_forward_scratch<T>(data.ctx, x, w, g));
    return [=](Context& ctx) {
      conv1d_forward<T>(ctx, {.x = xs, .weight = ws, .bias = bias, .y = ys, .scratch = scratch, .geometry = g});
    };
  });
  suite.add(info("input_gradient", size), [=](Data& data) -> Run {
    const View<T> xs = data.random<T>(x), ws = data.random<T>(w), ys = data.random<T>(y);
    const View<float> scratch = data.random(conv1d_input_gradient_scratch<T>(data.ctx, x, w, y, g));
    return [=](Context& ctx) {
      conv1d_input_gradient<T>(ctx, {.dy = ys, .weight = ws, .dx = xs, .scratch = scratch, .geometry = g});
    };
  });
  suite.add(info("weight_gradient", 8), [=](Data& data) -> Run {
    const View<T> xs = data.random<T>(x), ys = data.random<T>(y);
    const View<float> ws = data.random(w, -1e-6, 1e-6), dbias = data.random({.channels = y.channels});
    const View<float> scratch = data.random(conv1d_weight_gradient_scratch<T>(data.ctx, x, w, y, g));
    return [=](Context& ctx) {
      conv1d_weight_gradient<T>(ctx,
                                {.x = xs, .dy = ys, .dweight = ws, .dbias = dbias, .scratch = scratch, .geometry = g});
    };
  });
}

const Cases cases([](Suite& suite) {
  if (!suite.cuda()) {
    for (const auto& layers : {cpu_layers(), cpu_causal_layers()})
      for (const Layer& l : layers) add_layer<float>(suite, fit(suite, l), "fp32");
    return;
  }
  for (const auto& layers : {cuda_wide_layers(), cuda_narrow_layers(), cuda_strided_layers(), cuda_end_layers()})
    for (const Layer& l : layers) {
      add_layer<bf16>(suite, fit(suite, l), "bf16");
      if (l.g.dilation == 1 && l.batch == 72) add_layer<float>(suite, fit(suite, l), "tf32");
    }
  for (const Layer& l : {unit(72, 2112, 256, 7), unit(72, 16896, 64, 7), down(72, 8448, 128, 256, 4)})
    add_layer<float>(suite, fit(suite, l), "fp32");
  for (const char* arithmetic : {"tf32", "fp32"})
    add_layer<float>(suite, fit(suite, unit(16, 2112, 62, 7)), arithmetic);
  add_layer<bf16>(suite, fit(suite, unit(16, 2112, 62, 7)), "bf16");  // a plain kernel, as the two before
});

}  // namespace
}  // namespace nacre::bench
