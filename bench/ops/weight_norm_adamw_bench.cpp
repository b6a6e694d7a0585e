#include "nacre/ops/weight_norm_adamw.h"

#include "harness.h"
#include "ops/weight_rows.h"

namespace nacre::bench {
namespace {

// The call of a trainer, with gradient clipping and averaged weights (ema), which are on by default. The bytes are
// those of one pass with known row norms: 30 per weight with bf16 weights, 32 with float, 8 more with averages. The op
// reads 8 more to compute the norms itself.
template <class T>
void add_case(Suite& suite, const WeightRows& w, bool with_ema) {
  const int64_t elements = w.elements(), gains = w.gains();
  const Shape flat{.channels = elements + gains}, weights{.channels = elements};
  const std::string type = type_name<T>();
  suite.add({.name = std::string("weight_norm_adamw/") + (with_ema ? "ema/" : "") + type + "/" + w.name + "/" +
                     std::to_string(elements),
             .bytes = (28 + (with_ema ? 8 : 0) + static_cast<int64_t>(sizeof(T))) * elements,
             .flops = (with_ema ? 27 : 24) * elements,
             .parameters = {{"op", "weight_norm_adamw"},
                            {"direction", "step"},
                            {"type", type},
                            {"layers", w.text()},
                            {"ema", int64_t{with_ema}}}},
            [=](Data& data) -> Run {
              const View<AdamWScalars> scalars = data.zeros<AdamWScalars>({});
              const AdamWScalars start{.lr = 3e-4f, .step = 100};
              data.ctx.write<AdamWScalars>(std::span<const AdamWScalars>(&start, 1), scalars);
              const WeightNormAdamW<T> a{
                  .adamw = {.value = data.random(flat),
                            .grad = data.random(flat),
                            .m = data.random(flat),
                            .v = data.random(flat, 0, 1),
                            .ema = with_ema ? data.random(flat) : View<float>(),
                            .scalars = scalars,
                            .scratch = data.random(weight_norm_adamw_scratch(data.ctx, flat, elements, gains, gains)),
                            .max_norm = 1},
                  .directions = elements,
                  .gains = gains,
                  .rows = w.place(data),
                  .dw = data.random(weights),
                  .w = data.random<T>(weights)};
              return [=](Context& ctx) { weight_norm_adamw<T>(ctx, a); };
            });
}

const Cases cases([](Suite& suite) {
  for (const WeightRows& w : weight_rows(suite)) {
    for (const bool with_ema : {false, true}) {
      add_case<float>(suite, w, with_ema);
      if (suite.cuda()) add_case<bf16>(suite, w, with_ema);
    }
  }
});

}  // namespace
}  // namespace nacre::bench
