#include "nacre/ops/add.h"

#include "harness.h"

namespace nacre::bench {
namespace {

template <class T>
void add_cases(Suite& suite, Shape s) {
  const int64_t n = s.elements(), size = sizeof(T);
  const std::string type = type_name<T>();
  suite.add({.name = "add/" + type + "/" + label(s),
             .bytes = 3 * size * n,
             .flops = n,
             .parameters = tensor_parameters("add", "forward", type, s)},
            [=](Data& data) -> Run {
              const View<T> a = data.random<T>(s), b = data.random<T>(s), y = data.random<T>(s);
              return [=](Context& ctx) { add<T>(ctx, {.a = a, .b = b, .y = y}); };
            });
  suite.add({.name = "accumulate/" + type + "/" + label(s),
             .bytes = 3 * size * n,
             .flops = n,
             .parameters = tensor_parameters("add", "accumulate", type, s)},
            [=](Data& data) -> Run {
              const View<T> x = data.random<T>(s, -1e-6, 1e-6), y = data.random<T>(s);
              return [=](Context& ctx) { accumulate<T>(ctx, {.x = x, .y = y}); };
            });
}

const Cases cases([](Suite& suite) {
  for (const Shape s : suite.shapes({{.batch = 1, .time = 256, .channels = 64},      // fits the second-level cache
                                     {.batch = 16, .time = 16000, .channels = 64}},  // the widest of a 16 kHz codec
                                    {{.batch = 72, .time = 16896, .channels = 96}})) {
    add_cases<float>(suite, s);
    if (suite.cuda()) add_cases<bf16>(suite, s);
  }
});

}  // namespace
}  // namespace nacre::bench
