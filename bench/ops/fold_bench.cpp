#include "nacre/ops/fold.h"

#include "harness.h"

namespace nacre::bench {
namespace {

const Cases cases([](Suite& suite) {
  const Shape s = suite.cuda() ? Shape{.batch = suite.least(72, 2), .time = suite.least(16896, 300)}
                               : Shape{.batch = suite.least(16, 2), .time = suite.least(16000, 300)};
  for (const int64_t period : {2, 3, 5, 7, 11}) {  // of multi-period discriminators
    const Shape out = fold_output(s, period);
    const auto info = [&](const char* direction) {
      return CaseInfo{.name = std::string("fold_") + direction + "/" + std::to_string(period) + "/" + label(s),
                      .bytes = 4 * (s.elements() + out.elements()),
                      .flops = 0,
                      .parameters = {{"op", "fold"},
                                     {"direction", direction},
                                     {"type", "fp32"},
                                     {"batch", s.batch},
                                     {"time", s.time},
                                     {"period", period}}};
    };
    suite.add(info("forward"), [=](Data& data) -> Run {
      const View<float> x = data.random(s), y = data.random(out);
      return [=](Context& ctx) { fold_forward(ctx, {.x = x, .y = y, .period = period}); };
    });
    suite.add(info("backward"), [=](Data& data) -> Run {
      const View<float> dx = data.random(s), dy = data.random(out);
      return [=](Context& ctx) { fold_backward(ctx, {.dy = dy, .dx = dx, .period = period}); };
    });
  }
});

}  // namespace
}  // namespace nacre::bench
