#include "nacre/ops/tanh.h"

#include "harness.h"

namespace nacre::bench {
namespace {

const Cases cases([](Suite& suite) {
  for (Shape s : {Shape{.batch = 1, .time = 16000, .channels = 1},       // a second of audio, in the second-level cache
                  Shape{.batch = 64, .time = 160000, .channels = 1}}) {  // beyond it
    const int64_t n = s.elements();
    suite.add({.name = "tanh_forward/" + label(s), .bytes = 8 * n, .flops = 24 * n}, [=](Data& data) -> Run {
      const View<float> x = data.random(s, -3, 3), y = data.random(s);
      return [=](Context& ctx) { tanh_forward(ctx, {.x = x, .y = y}); };
    });
    suite.add({.name = "tanh_backward/" + label(s), .bytes = 12 * n, .flops = 4 * n}, [=](Data& data) -> Run {
      const View<float> y = data.random(s), dy = data.random(s), dx = data.random(s);
      return [=](Context& ctx) { tanh_backward(ctx, {.y = y, .dy = dy, .dx = dx}); };
    });
  }
});

}  // namespace
}  // namespace nacre::bench
