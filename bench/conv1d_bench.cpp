#include "nacre/ops/conv1d.h"

#include "harness.h"

namespace nacre::bench {
namespace {

struct Layer {
  const char* name;
  int64_t batch, time, in, out, taps;  // time: of the longer side
  Conv1dGeometry g;
};
Conv1dGeometry same(int64_t taps, int64_t dilation = 1) {
  return {.dilation = dilation, .left = (taps - 1) / 2 * dilation, .right = (taps - 1) / 2 * dilation};
}
Conv1dGeometry strided(int64_t s) { return {.stride = s, .left = (s + 1) / 2, .right = (s + 1) / 2}; }

// A small model at 16 kHz, strides 2 4 5 (its levels: 16, 32, 64, 128, 256 channels). A transposed layer is the strided
// one with the directions exchanged, so each line covers both.
const Layer layers[] = {
    {"first_k7", 4, 8000, 1, 16, 7, same(7)},
    {"last_k7", 4, 8000, 16, 1, 7, same(7)},
    {"last_wide_k7", 4, 2000, 256, 1, 7, same(7)},
    {"k7_d1", 4, 8000, 16, 16, 7, same(7)},
    {"k7_d9", 4, 8000, 16, 16, 7, same(7, 9)},
    {"k1", 4, 8000, 16, 16, 1, same(1)},
    {"down_s2", 4, 8000, 16, 32, 4, strided(2)},
    {"k7_d1", 4, 4000, 32, 32, 7, same(7)},
    {"k7_d9", 4, 4000, 32, 32, 7, same(7, 9)},
    {"k1", 4, 4000, 32, 32, 1, same(1)},
    {"down_s4", 4, 4000, 32, 64, 8, strided(4)},
    {"up_s2", 4, 8000, 32, 64, 4, strided(2)},
    {"k7_d1", 4, 1000, 64, 64, 7, same(7)},
    {"k7_d3", 4, 1000, 64, 64, 7, same(7, 3)},
    {"k7_d9", 4, 1000, 64, 64, 7, same(7, 9)},
    {"k1", 4, 1000, 64, 64, 1, same(1)},
    {"down_s5", 4, 1000, 64, 128, 10, strided(5)},
    {"up_s4", 4, 4000, 64, 128, 8, strided(4)},
    {"k7_d1", 8, 200, 128, 128, 7, same(7)},
    {"k7_d9", 8, 200, 128, 128, 7, same(7, 9)},
    {"k1", 8, 200, 128, 128, 1, same(1)},
    {"down_s8", 8, 200, 128, 256, 16, strided(8)},
    {"up_s5", 4, 1000, 128, 256, 10, strided(5)},
    {"k7_d1", 8, 200, 256, 256, 7, same(7)},
    {"k3", 8, 25, 256, 64, 3, same(3)},
    {"k7_d1", 4, 1000, 128, 128, 7, same(7)},
};

const Cases cases([](Suite& suite) {
  for (const Layer& l : layers) {
    const Shape x{.batch = l.batch, .time = l.time, .channels = l.in}, w{l.out, l.taps, 1, l.in};
    const Shape y{.batch = l.batch, .time = conv1d_length(l.time, l.taps, l.g), .channels = l.out};
    const int64_t flops = 2 * y.elements() * l.taps * l.in, bytes = 4 * (x.elements() + y.elements() + w.elements());
    const auto name = [&](const char* op) {
      return std::string(op) + "/" + l.name + "/" + label(x) + "/to:" + std::to_string(l.out);
    };
    const Conv1dGeometry g = l.g;
    suite.add({.name = name("conv1d_forward"), .bytes = bytes, .flops = flops}, [=](Data& data) -> Run {
      const View<float> xs = data.random(x), ws = data.random(w), ys = data.random(y);
      const View<float> bias = data.random({.channels = y.channels});
      const View<float> scratch = data.random(conv1d_forward_scratch(data.ctx, x, w, g));
      return [=](Context& ctx) {
        conv1d_forward(ctx, {.x = xs, .weight = ws, .bias = bias, .y = ys, .scratch = scratch, .geometry = g});
      };
    });
    suite.add({.name = name("conv1d_input_gradient"), .bytes = bytes, .flops = flops}, [=](Data& data) -> Run {
      const View<float> xs = data.random(x), ws = data.random(w), ys = data.random(y);
      const View<float> scratch = data.random(conv1d_input_gradient_scratch(data.ctx, x, w, y, g));
      return [=](Context& ctx) {
        conv1d_input_gradient(ctx, {.dy = ys, .weight = ws, .dx = xs, .scratch = scratch, .geometry = g});
      };
    });
    suite.add({.name = name("conv1d_weight_gradient"), .bytes = bytes, .flops = flops}, [=](Data& data) -> Run {
      const View<float> xs = data.random(x), ws = data.random(w, -1e-6, 1e-6), ys = data.random(y);
      const View<float> dbias = data.random({.channels = y.channels});
      const View<float> scratch = data.random(conv1d_weight_gradient_scratch(data.ctx, x, w, y, g));
      return [=](Context& ctx) {
        conv1d_weight_gradient(ctx,
                               {.x = xs, .dy = ys, .dweight = ws, .dbias = dbias, .scratch = scratch, .geometry = g});
      };
    });
  }
});

}  // namespace
}  // namespace nacre::bench
