#include "nacre/ops/snake.h"

#include "harness.h"

namespace nacre::bench {
namespace {

// Operations per element: 7 for the reduction, 7 for the sine, 7 for the cosine, and the rest.
constexpr int64_t forward_flops = 18, backward_flops = 32;

template <class T>
void add_snake(Suite& suite, Shape s, bool with_beta) {
  const int64_t n = s.elements();
  const Shape per_channel{.channels = s.channels};
  const std::string type = type_name<T>(), shape = (with_beta ? "/beta/" : "/") + type + "/" + label(s);
  const auto parameters = [&](const char* direction) {
    std::vector<Parameter> p = tensor_parameters("snake", direction, type, s);
    p.push_back({"beta", int64_t{with_beta}});
    return p;
  };
  constexpr int64_t size = sizeof(T);
  suite.add({.name = "snake_forward" + shape,
             .bytes = 2 * size * n,
             .flops = forward_flops * n,
             .parameters = parameters("forward")},
            [=](Data& data) -> Run {
              const View<T> x = data.random<T>(s), y = data.random<T>(s);
              const View<float> alpha = data.random(per_channel, 0.5, 4);
              const View<float> beta = with_beta ? data.random(per_channel, 0.5, 4) : View<float>();
              return [=](Context& ctx) { snake_forward<T>(ctx, {.x = x, .alpha = alpha, .beta = beta, .y = y}); };
            });
  suite.add({.name = "snake_backward" + shape,
             .bytes = 3 * size * n,
             .flops = backward_flops * n,
             .parameters = parameters("backward")},
            [=](Data& data) -> Run {
              const View<T> x = data.random<T>(s), dy = data.random<T>(s), dx = data.random<T>(s);
              const View<float> alpha = data.random(per_channel, 0.5, 4), dalpha = data.random(per_channel);
              const View<float> beta = with_beta ? data.random(per_channel, 0.5, 4) : View<float>();
              const View<float> dbeta = with_beta ? data.random(per_channel) : View<float>();
              const View<float> scratch = data.random(snake_backward_scratch(data.ctx, s, with_beta));
              return [=](Context& ctx) {
                snake_backward<T>(ctx, {.x = x,
                                        .alpha = alpha,
                                        .beta = beta,
                                        .dy = dy,
                                        .dx = dx,
                                        .dalpha = dalpha,
                                        .dbeta = dbeta,
                                        .scratch = scratch});
              };
            });
}

const Cases cases([](Suite& suite) {
  if (!suite.cuda()) {
    for (const Shape s : suite.shapes({{.time = 256, .channels = 64},                 // first and second-level cache
                                       {.time = 2000, .channels = 128},               // second-level cache of two cores
                                       {.batch = 16, .time = 16000, .channels = 64},  // the widest activation at 16 kHz
                                       {.batch = 16, .time = 50, .channels = 1024},   // the bottleneck
                                       {.batch = 16, .time = 1000, .channels = 7}}))  // fills no vector
      add_snake<float>(suite, s, false);
    add_snake<float>(suite, suite.fit({.batch = 16, .time = 8000, .channels = 96}), true);
    return;
  }
  for (const Shape s : suite.shapes({{.batch = 72, .time = 16896, .channels = 96},
                                     {.batch = 72, .time = 16896, .channels = 64},
                                     {.batch = 16, .time = 8448, .channels = 192},
                                     {.batch = 16, .time = 264, .channels = 768}})) {
    add_snake<bf16>(suite, s, false);
    add_snake<float>(suite, s, false);
  }
  add_snake<bf16>(suite, suite.fit({.batch = 72, .time = 16896, .channels = 96}), true);
  const Shape odd = suite.fit({.batch = 16, .time = 8448, .channels = 191});  // no 16-byte packs
  add_snake<bf16>(suite, odd, false);
  add_snake<float>(suite, odd, false);
});

}  // namespace
}  // namespace nacre::bench
