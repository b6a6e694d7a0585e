#include "nacre/ops/two_rates.h"

#include "harness.h"

namespace nacre::bench {
namespace {

const Cases cases([](Suite& suite) {
  // The latent of a batch of LDCodec's: 16 items of a second.
  const Shape s{suite.least(16, 2), suite.least(52, 8), 1, 256};
  const auto parameters = [&](const char* direction) { return tensor_parameters("two_rates", direction, "fp32", s); };
  suite.add({.name = "rest/" + label(s),
             .bytes = 12 * s.elements(),
             .flops = s.elements(),
             .parameters = parameters("forward")},
            [=](Data& data) -> Run {
              const View<float> z = data.random(s), p = data.random(s), y = data.random(s);
              return [=](Context& ctx) { rest(ctx, {.z = z, .p = p, .y = y}); };
            });
  suite.add({.name = "rest_backward/" + label(s),
             .bytes = 12 * s.elements(),
             .flops = s.elements(),
             .parameters = parameters("backward")},
            [=](Data& data) -> Run {
              const View<float> dy = data.random(s), dz = data.random(s), dp = data.random(s);
              const View<int32_t> stages = data.indices({.channels = s.batch}, 8);
              return [=](Context& ctx) { rest_backward(ctx, {.dy = dy, .stages = stages, .dz = dz, .dp = dp}); };
            });
  const Shape in{1, s.batch * s.time / 4, 1, 40}, out{1, s.batch * s.time / 4, 1, 48};
  suite.add({.name = "copy_columns/" + label(in),
             .bytes = 8 * in.elements(),
             .flops = 0,
             .parameters = tensor_parameters("two_rates", "codes", "int32", in)},
            [=](Data& data) -> Run {
              const View<int32_t> x = data.indices(in, 1024), y = data.indices(out, 1024);
              return [=](Context& ctx) { copy_columns(ctx, {.x = x, .y = y, .to = 8, .columns = 40}); };
            });
});

}  // namespace
}  // namespace nacre::bench
