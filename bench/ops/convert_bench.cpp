#include "nacre/ops/convert.h"

#include "harness.h"

namespace nacre::bench {
namespace {

const Cases cases([](Suite& suite) {
  for (const Shape s : suite.shapes({{.batch = 1, .time = 256, .channels = 64},      // fits the second-level cache
                                     {.batch = 16, .time = 16000, .channels = 64}},  // the widest of a 16 kHz codec
                                    {{.batch = 72, .time = 16896, .channels = 96}})) {
    const int64_t n = s.elements();
    suite.add({.name = "convert/to_bf16/" + label(s),
               .bytes = 6 * n,
               .flops = n,
               .parameters = tensor_parameters("convert", "to_bf16", "bf16", s)},
              [=](Data& data) -> Run {
                const View<float> x = data.random(s);
                const View<bf16> y = data.random<bf16>(s);
                return [=](Context& ctx) { convert<float, bf16>(ctx, {.x = x, .y = y}); };
              });
    suite.add({.name = "convert/to_float/" + label(s),
               .bytes = 6 * n,
               .flops = n,
               .parameters = tensor_parameters("convert", "to_float", "bf16", s)},
              [=](Data& data) -> Run {
                const View<bf16> x = data.random<bf16>(s);
                const View<float> y = data.random(s);
                return [=](Context& ctx) { convert<bf16, float>(ctx, {.x = x, .y = y}); };
              });
  }
});

}  // namespace
}  // namespace nacre::bench
