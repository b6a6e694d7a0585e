#include "nacre/ops/tanh.h"

#include "harness.h"

namespace nacre::bench {
namespace {

template <class T>
void add_tanh(Suite& suite, Shape s) {
  const int64_t n = s.elements(), size = sizeof(T);
  const std::string type = type_name<T>();
  suite.add({.name = "tanh_forward/" + type + "/" + label(s),
             .bytes = 2 * size * n,
             .flops = 24 * n,
             .parameters = tensor_parameters("tanh", "forward", type, s)},
            [=](Data& data) -> Run {
              const View<T> x = data.random<T>(s, -3, 3), y = data.random<T>(s);
              return [=](Context& ctx) { tanh_forward<T>(ctx, {.x = x, .y = y}); };
            });
  suite.add({.name = "tanh_backward/" + type + "/" + label(s),
             .bytes = 3 * size * n,
             .flops = 4 * n,
             .parameters = tensor_parameters("tanh", "backward", type, s)},
            [=](Data& data) -> Run {
              const View<T> y = data.random<T>(s), dy = data.random<T>(s), dx = data.random<T>(s);
              return [=](Context& ctx) { tanh_backward<T>(ctx, {.y = y, .dy = dy, .dx = dx}); };
            });
}

const Cases cases([](Suite& suite) {
  for (const Shape s :
       suite.shapes({{.batch = 1, .time = 16000, .channels = 1},  // a second of audio; fits the second-level cache
                     {.batch = 64, .time = 160000, .channels = 1}},
                    {{.batch = 72, .time = 16896, .channels = 96}, {.batch = 72, .time = 16896, .channels = 1}})) {
    add_tanh<float>(suite, s);
    if (suite.cuda()) add_tanh<bf16>(suite, s);
  }
});

}  // namespace
}  // namespace nacre::bench
