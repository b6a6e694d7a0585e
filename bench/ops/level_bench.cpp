#include "nacre/ops/level.h"

#include "harness.h"

namespace nacre::bench {
namespace {

const Cases cases([](Suite& suite) {
  const Shape s = suite.cuda() ? Shape{.batch = suite.least(72, 2), .time = suite.least(16896, 300)}
                               : Shape{.batch = suite.least(16, 2), .time = suite.least(16000, 300)};
  const int64_t n = s.elements();
  const auto parameters = [&](const char* direction) {
    return std::vector<Parameter>{
        {"op", "level"}, {"direction", direction}, {"type", "fp32"}, {"batch", s.batch}, {"time", s.time}};
  };
  suite.add({.name = "level_forward/" + label(s), .bytes = 8 * n, .flops = 6 * n, .parameters = parameters("forward")},
            [=](Data& data) -> Run {
              const View<float> x = data.random(s), y = data.random(s), statistics = data.random(level_statistics(s)),
                                scratch = data.random(level_scratch(data.ctx, s));
              return [=](Context& ctx) {
                level_forward(ctx, {.x = x, .y = y, .statistics = statistics, .scratch = scratch});
              };
            });
  suite.add(
      {.name = "level_backward/" + label(s), .bytes = 12 * n, .flops = 6 * n, .parameters = parameters("backward")},
      [=](Data& data) -> Run {
        const View<float> x = data.random(s), dy = data.random(s), dx = data.random(s);
        const View<float> statistics = data.zeros(level_statistics(s)),  // a position of the peak within the items
            scratch = data.random(level_scratch(data.ctx, s));
        return [=](Context& ctx) {
          level_backward(ctx, {.x = x, .statistics = statistics, .dy = dy, .dx = dx, .scratch = scratch, .eps = 1});
        };
      });
});

}  // namespace
}  // namespace nacre::bench
