#include "nacre/ops/rms_scale.h"

#include "harness.h"

namespace nacre::bench {
namespace {

const Cases cases([](Suite& suite) {
  // EnCodec's segments: a second of stereo.
  const Shape s{suite.least(suite.cuda() ? 64 : 8, 2), suite.least(48000, 300), 1, 2};
  const auto parameters = [&](const char* direction) {
    return std::vector<Parameter>{
        {"op", "rms_scale"}, {"direction", direction}, {"type", "fp32"}, {"batch", s.batch}, {"time", s.time}};
  };
  suite.add({.name = "rms_scale/" + label(s),
             .bytes = 4 * s.elements(),
             .flops = 2 * s.elements(),
             .parameters = parameters("forward")},
            [=](Data& data) -> Run {
              const View<float> x = data.random(s), scale = data.random({.channels = s.batch}),
                                scratch = data.random(rms_scale_scratch(data.ctx, s));
              return [=](Context& ctx) { rms_scale(ctx, {.x = x, .scale = scale, .scratch = scratch}); };
            });
  for (const bool divide : {false, true})
    suite.add({.name = std::string("scale_items/") + (divide ? "divide/" : "multiply/") + label(s),
               .bytes = 8 * s.elements(),
               .flops = s.elements(),
               .parameters = parameters(divide ? "divide" : "multiply")},
              [=](Data& data) -> Run {
                const View<float> x = data.random(s), y = data.random(s), scale = data.random({.channels = s.batch});
                return [=](Context& ctx) { scale_items(ctx, {.x = x, .scale = scale, .y = y, .divide = divide}); };
              });
});

}  // namespace
}  // namespace nacre::bench
