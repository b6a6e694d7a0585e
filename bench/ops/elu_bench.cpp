#include "nacre/ops/elu.h"

#include "harness.h"

namespace nacre::bench {
namespace {

template <class T>
void add_elu(Suite& suite, Shape s) {
  const int64_t n = s.elements(), size = sizeof(T);
  const std::string type = type_name<T>();
  suite.add({.name = "elu_forward/" + type + "/" + label(s),
             .bytes = 2 * size * n,
             .flops = 20 * n,
             .parameters = tensor_parameters("elu", "forward", type, s)},
            [=](Data& data) -> Run {
              const View<T> x = data.random<T>(s, -3, 3), y = data.random<T>(s);
              return [=](Context& ctx) { elu_forward<T>(ctx, {.x = x, .y = y}); };
            });
  suite.add({.name = "elu_backward/" + type + "/" + label(s),
             .bytes = 3 * size * n,
             .flops = 2 * n,
             .parameters = tensor_parameters("elu", "backward", type, s)},
            [=](Data& data) -> Run {
              const View<T> y = data.random<T>(s), dy = data.random<T>(s), dx = data.random<T>(s);
              return [=](Context& ctx) { elu_backward<T>(ctx, {.y = y, .dy = dy, .dx = dx}); };
            });
}

const Cases cases([](Suite& suite) {
  for (const Shape s : suite.shapes({{.batch = 1, .time = 256, .channels = 64},  // fits the second-level cache
                                     {.batch = 16, .time = 8000, .channels = 64}},
                                    {{.batch = 72, .time = 16896, .channels = 96}})) {
    add_elu<float>(suite, s);
    if (suite.cuda()) add_elu<bf16>(suite, s);
  }
});

}  // namespace
}  // namespace nacre::bench
