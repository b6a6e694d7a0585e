#include "nacre/ops/leaky_relu.h"

#include "harness.h"

namespace nacre::bench {
namespace {

template <class T>
void add_leaky_relu(Suite& suite, Shape s) {
  const int64_t n = s.elements(), size = sizeof(T);
  const std::string type = type_name<T>();
  suite.add({.name = "leaky_relu_forward/" + type + "/" + label(s),
             .bytes = 2 * size * n,
             .flops = 1 * n,
             .parameters = tensor_parameters("leaky_relu", "forward", type, s)},
            [=](Data& data) -> Run {
              const View<T> x = data.random<T>(s, -3, 3), y = data.random<T>(s);
              return [=](Context& ctx) { leaky_relu_forward<T>(ctx, {.x = x, .y = y}); };
            });
  suite.add({.name = "leaky_relu_backward/" + type + "/" + label(s),
             .bytes = 3 * size * n,
             .flops = 1 * n,
             .parameters = tensor_parameters("leaky_relu", "backward", type, s)},
            [=](Data& data) -> Run {
              const View<T> y = data.random<T>(s), dy = data.random<T>(s), dx = data.random<T>(s);
              return [=](Context& ctx) { leaky_relu_backward<T>(ctx, {.y = y, .dy = dy, .dx = dx}); };
            });
}

const Cases cases([](Suite& suite) {
  for (const Shape s : suite.shapes({{.batch = 1, .time = 256, .channels = 64},  // fits the second-level cache
                                     {.batch = 16, .time = 8000, .channels = 64}},
                                    {{.batch = 72, .time = 16896, .channels = 96}})) {
    add_leaky_relu<float>(suite, s);
    if (suite.cuda()) add_leaky_relu<bf16>(suite, s);
  }
});

}  // namespace
}  // namespace nacre::bench
