#include "nacre/ops/snake.h"

#include "harness.h"

namespace nacre::bench {
namespace {

// Operations of one element: reduction 7, sine 7, cosine 7, and the rest.
constexpr int64_t forward_flops = 18, backward_flops = 32;

void add_snake(Suite& suite, Shape s, bool with_beta) {
  const int64_t n = s.elements();
  const Shape per_channel{.channels = s.channels};
  const std::string variant = with_beta ? "/beta/" : "/";
  suite.add({.name = "snake_forward" + variant + label(s), .bytes = 8 * n, .flops = forward_flops * n},
            [=](Data& data) -> Run {
              const View<float> x = data.random(s), y = data.random(s), alpha = data.random(per_channel, 0.5, 4);
              const View<float> beta = with_beta ? data.random(per_channel, 0.5, 4) : View<float>();
              return [=](Context& ctx) { snake_forward(ctx, {.x = x, .alpha = alpha, .beta = beta, .y = y}); };
            });
  suite.add({.name = "snake_backward" + variant + label(s), .bytes = 12 * n, .flops = backward_flops * n},
            [=](Data& data) -> Run {
              const View<float> x = data.random(s), dy = data.random(s), dx = data.random(s);
              const View<float> alpha = data.random(per_channel, 0.5, 4), dalpha = data.random(per_channel);
              const View<float> beta = with_beta ? data.random(per_channel, 0.5, 4) : View<float>();
              const View<float> dbeta = with_beta ? data.random(per_channel) : View<float>();
              const View<float> scratch = data.random(snake_backward_scratch(data.ctx, s, with_beta));
              return [=](Context& ctx) {
                snake_backward(ctx, {.x = x,
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
  add_snake(suite, {.time = 256, .channels = 64}, false);                 // first-level and second-level cache
  add_snake(suite, {.time = 2000, .channels = 128}, false);               // second-level cache of two cores
  add_snake(suite, {.batch = 16, .time = 16000, .channels = 64}, false);  // the widest activation at 16 kHz
  add_snake(suite, {.batch = 16, .time = 8000, .channels = 96}, true);
  add_snake(suite, {.batch = 16, .time = 50, .channels = 1024}, false);  // the bottleneck
  add_snake(suite, {.batch = 16, .time = 1000, .channels = 7}, false);   // fills no vector
});

}  // namespace
}  // namespace nacre::bench
