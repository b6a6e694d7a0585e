#include "nacre/ops/balancer.h"

#include "harness.h"

namespace nacre::bench {
namespace {

void add_balancer(Suite& suite, BalancerNorm norm) {
  const Shape s = suite.cuda() ? Shape{.batch = suite.least(72, 2), .time = suite.least(16896, 300)}
                               : Shape{.batch = suite.least(16, 2), .time = suite.least(16000, 300)};
  constexpr int count = 3;
  suite.add({.name = std::string("balancer/") + (norm == BalancerNorm::item ? "item/" : "") + "3/" + label(s),
             .bytes = (4 * count + 4) * s.elements(),
             .flops = 4 * count * s.elements(),
             .parameters = {{"op", "balancer"},
                            {"direction", "step"},
                            {"type", "fp32"},
                            {"batch", s.batch},
                            {"time", s.time},
                            {"count", int64_t{count}},
                            {"norm", norm == BalancerNorm::item ? "item" : "batch"}}},
            [=](Data& data) -> Run {
              const View<float> a = data.random(s), b = data.random(s), c = data.random(s), gradient = data.random(s);
              const View<float> state = data.zeros({.channels = 2 * count}), shares = data.random({.channels = count});
              const View<float> scratch = data.random(balancer_scratch(data.ctx, s, count, norm));
              return [=](Context& ctx) {
                balancer(ctx, {.gradients = {a, b, c},
                               .weights = {1, 1, 1},
                               .count = count,
                               .state = state,
                               .shares = shares,
                               .gradient = gradient,
                               .scratch = scratch,
                               .norm = norm});
              };
            });
}

const Cases cases([](Suite& suite) {
  for (const BalancerNorm norm : {BalancerNorm::batch, BalancerNorm::item}) add_balancer(suite, norm);
});

}  // namespace
}  // namespace nacre::bench
