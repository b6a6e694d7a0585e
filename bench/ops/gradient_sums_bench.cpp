#include "nacre/ops/gradient_sums.h"

#include <vector>

#include "harness.h"
#include "nacre/ops/snake.h"

namespace nacre::bench {
namespace {

// The sums of the Snakes of a step: one launch each, and all of them later. The difference is what waiting saves.
const Cases cases([](Suite& suite) {
  const Shape x = suite.cuda() ? Shape{.batch = suite.least(16, 2), .time = suite.least(2048, 64), .channels = 96}
                               : Shape{.batch = suite.least(2, 1), .time = suite.least(512, 64), .channels = 96};
  constexpr int layers = 30;
  for (const bool later : {false, true})
    suite.add({.name = std::string("gradient_sums_") + (later ? "later" : "at_once") + "/" + label(x),
               .bytes = layers * 8 * x.elements(),
               .flops = 0,
               .parameters = {{"op", "gradient_sums"},
                              {"direction", later ? "later" : "at_once"},
                              {"type", "fp32"},
                              {"batch", x.batch},
                              {"time", x.time},
                              {"channels", x.channels}}},
              [=](Data& data) -> Run {
                const View<float> xs = data.random(x), dy = data.random(x), alpha = data.random({.channels = 96});
                std::vector<SnakeBackward<float>> calls;
                for (int i = 0; i < layers; ++i) {
                  SnakeBackward<float> call{.x = xs, .alpha = alpha, .dy = dy, .dalpha = data.random({.channels = 96})};
                  const Shape parts = snake_backward_parts(data.ctx, x, false);
                  if (later && parts.elements() > 0)
                    call.parts = data.zeros(parts);
                  else
                    call.scratch = data.zeros(snake_backward_scratch(data.ctx, x, false));
                  calls.push_back(call);
                }
                return [=](Context& ctx) {
                  for (const SnakeBackward<float>& call : calls) snake_backward(ctx, call);
                  finish_gradient_sums(ctx);
                };
              });
});

}  // namespace
}  // namespace nacre::bench
