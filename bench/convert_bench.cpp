#include "nacre/ops/convert.h"

#include "harness.h"

namespace nacre::bench {
namespace {

const Cases cases([](Suite& suite) {
  for (Shape s : {Shape{.batch = 1, .time = 256, .channels = 64},        // in the second-level cache
                  Shape{.batch = 16, .time = 16000, .channels = 64}}) {  // the widest activation of a 16 kHz codec
    const int64_t n = s.elements();
    suite.add({.name = "convert/to_bf16/" + label(s), .bytes = 6 * n, .flops = n}, [=](Data& data) -> Run {
      const View<float> x = data.random(s);
      const View<bf16> y = data.random<bf16>(s);
      return [=](Context& ctx) { convert<float, bf16>(ctx, {.x = x, .y = y}); };
    });
    suite.add({.name = "convert/to_float/" + label(s), .bytes = 6 * n, .flops = n}, [=](Data& data) -> Run {
      const View<bf16> x = data.random<bf16>(s);
      const View<float> y = data.random(s);
      return [=](Context& ctx) { convert<bf16, float>(ctx, {.x = x, .y = y}); };
    });
  }
});

}  // namespace
}  // namespace nacre::bench
