#include "nacre/ops/leaky_relu.h"

#include "harness.h"

namespace nacre::bench {
namespace {

const Cases cases([](Suite& suite) {
  for (Shape s : {Shape{.batch = 1, .time = 256, .channels = 64},       // in the second-level cache
                  Shape{.batch = 16, .time = 8000, .channels = 64}}) {  // beyond it
    const int64_t n = s.elements();
    suite.add({.name = "leaky_relu_forward/" + label(s), .bytes = 8 * n, .flops = 1 * n}, [=](Data& data) -> Run {
      const View<float> x = data.random(s, -3, 3), y = data.random(s);
      return [=](Context& ctx) { leaky_relu_forward(ctx, {.x = x, .y = y}); };
    });
    suite.add({.name = "leaky_relu_backward/" + label(s), .bytes = 12 * n, .flops = 1 * n}, [=](Data& data) -> Run {
      const View<float> y = data.random(s), dy = data.random(s), dx = data.random(s);
      return [=](Context& ctx) { leaky_relu_backward(ctx, {.y = y, .dy = dy, .dx = dx}); };
    });
  }
});

}  // namespace
}  // namespace nacre::bench
