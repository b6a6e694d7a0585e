#include "nacre/ops/add.h"

#include "harness.h"

namespace nacre::bench {
namespace {

const Cases cases([](Suite& suite) {
  for (Shape s : {Shape{.batch = 1, .time = 256, .channels = 64},        // in the second-level cache
                  Shape{.batch = 16, .time = 16000, .channels = 64}}) {  // the widest activation of a 16 kHz codec
    const int64_t n = s.elements();
    suite.add({.name = "add/" + label(s), .bytes = 12 * n, .flops = n}, [=](Data& data) -> Run {
      const View<float> a = data.random(s), b = data.random(s), y = data.random(s);
      return [=](Context& ctx) { add(ctx, {.a = a, .b = b, .y = y}); };
    });
    suite.add({.name = "accumulate/" + label(s), .bytes = 12 * n, .flops = n}, [=](Data& data) -> Run {
      const View<float> x = data.random(s, -1e-6, 1e-6), y = data.random(s);
      return [=](Context& ctx) { accumulate(ctx, {.x = x, .y = y}); };
    });
  }
});

}  // namespace
}  // namespace nacre::bench
