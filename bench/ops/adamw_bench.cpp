#include "nacre/ops/adamw.h"

#include "harness.h"

namespace nacre::bench {
namespace {

const Cases cases([](Suite& suite) {
  // CPU: one size that fits the second-level cache, and a small codec. CUDA: DAC's generator and its discriminators.
  for (const int64_t whole :
       suite.cuda() ? std::vector<int64_t>{76'700'000, 42'500'000} : std::vector<int64_t>{int64_t{1} << 16, 8'000'000})
    for (bool with_ema : {false, true}) {
      const int64_t n = suite.least(whole, 3001);
      const Shape s{.channels = n};
      suite.add(
          {.name = std::string("adamw/") + (with_ema ? "ema/" : "") + std::to_string(n),
           .bytes = (with_ema ? 36 : 28) * n,
           .flops = (with_ema ? 19 : 16) * n,
           .parameters =
               {{"op", "adamw"}, {"direction", "step"}, {"type", "fp32"}, {"elements", n}, {"ema", int64_t{with_ema}}}},
          [=](Data& data) -> Run {
            const View<float> value = data.random(s), grad = data.random(s), m = data.random(s);
            const View<float> v = data.random(s, 0, 1), ema = with_ema ? data.random(s) : View<float>();
            const View<AdamWScalars> scalars = data.zeros<AdamWScalars>({});
            const AdamWScalars start{.lr = 3e-4f, .step = 100};
            data.ctx.write<AdamWScalars>(std::span<const AdamWScalars>(&start, 1), scalars);
            const View<float> scratch = data.random(adamw_scratch(data.ctx, s));
            return [=](Context& ctx) {
              adamw(ctx, {.value = value,
                          .grad = grad,
                          .m = m,
                          .v = v,
                          .ema = ema,
                          .scalars = scalars,
                          .scratch = scratch,
                          .max_norm = 1});
            };
          });
    }
});

}  // namespace
}  // namespace nacre::bench
