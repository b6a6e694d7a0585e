#include "nacre/ops/film.h"

#include "harness.h"

namespace nacre::bench {
namespace {

template <class T>
void add_film(Suite& suite, Shape s) {
  const int64_t n = s.elements();
  const Shape table{.batch = 2, .channels = s.channels}, items{.channels = s.batch};
  const std::string type = type_name<T>(), shape = "/" + type + "/" + label(s);
  constexpr int64_t size = sizeof(T);
  suite.add({.name = "film_forward" + shape,
             .bytes = 2 * size * n,
             .flops = 2 * n,
             .parameters = tensor_parameters("film", "forward", type, s)},
            [=](Data& data) -> Run {
              const View<T> x = data.random<T>(s), y = data.random<T>(s);
              const View<float> gamma = data.random(table, 0.5, 2), beta = data.random(table);
              const View<int32_t> labels = data.indices(items, 2);
              return [=](Context& ctx) {
                film_forward<T>(ctx, {.x = x, .labels = labels, .gamma = gamma, .beta = beta, .y = y});
              };
            });
  suite.add({.name = "film_backward" + shape,
             .bytes = 3 * size * n,
             .flops = 4 * n,
             .parameters = tensor_parameters("film", "backward", type, s)},
            [=](Data& data) -> Run {
              const View<T> x = data.random<T>(s), dy = data.random<T>(s), dx = data.random<T>(s);
              const View<float> gamma = data.random(table, 0.5, 2), dgamma = data.random(table),
                                dbeta = data.random(table);
              const View<int32_t> labels = data.indices(items, 2);
              const View<float> scratch = data.random(film_backward_scratch(data.ctx, s));
              return [=](Context& ctx) {
                film_backward<T>(ctx, {.x = x,
                                       .labels = labels,
                                       .gamma = gamma,
                                       .dy = dy,
                                       .dx = dx,
                                       .dgamma = dgamma,
                                       .dbeta = dbeta,
                                       .scratch = scratch});
              };
            });
}

const Cases cases([](Suite& suite) {
  // SoundStream's bottleneck: a second at 24 kHz has 75 frames of 512 channels, in a batch of 64.
  for (const Shape s : suite.shapes({{.batch = 64, .time = 75, .channels = 512}, {.time = 1, .channels = 512}})) {
    add_film<float>(suite, s);
    if (suite.cuda()) add_film<bf16>(suite, s);
  }
});

}  // namespace
}  // namespace nacre::bench
