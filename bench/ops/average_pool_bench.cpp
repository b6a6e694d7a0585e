#include "nacre/ops/average_pool.h"

#include "harness.h"

namespace nacre::bench {
namespace {

const Cases cases([](Suite& suite) {
  const Shape s = suite.cuda() ? Shape{.batch = suite.least(72, 2), .time = suite.least(16896, 300)}
                               : Shape{.batch = suite.least(16, 2), .time = suite.least(16000, 300)};
  // Between the scales of MelGAN's discriminators, and with the padding of other published code.
  for (const AveragePoolGeometry g :
       {AveragePoolGeometry{}, AveragePoolGeometry{.padding = 2, .count_padding = true}}) {
    const Shape out = average_pool_output(s, g);
    const auto info = [&](const char* direction) {
      return CaseInfo{
          .name = std::string("average_pool_") + direction + "/padding" + std::to_string(g.padding) + "/" + label(s),
          .bytes = 4 * (s.elements() + out.elements()),
          .flops = 0,
          .parameters = {{"op", "average_pool"},
                         {"direction", direction},
                         {"type", "fp32"},
                         {"batch", s.batch},
                         {"time", s.time},
                         {"padding", g.padding}}};
    };
    suite.add(info("forward"), [=](Data& data) -> Run {
      const View<float> x = data.random(s), y = data.random(out);
      return [=](Context& ctx) { average_pool_forward(ctx, {.x = x, .y = y, .geometry = g}); };
    });
    suite.add(info("backward"), [=](Data& data) -> Run {
      const View<float> dx = data.random(s), dy = data.random(out);
      return [=](Context& ctx) { average_pool_backward(ctx, {.dy = dy, .dx = dx, .geometry = g}); };
    });
  }
});

}  // namespace
}  // namespace nacre::bench
