#include "nacre/ops/weight_norm_adamw.h"

#include "harness.h"
#include "weight_rows.h"

namespace nacre::bench {
namespace {

// The bytes are those of one pass that is given the rows' norms (30 with bf16 weights, 32 with float); the op reads 8
// more to make them itself.
template <class T>
void add_case(Suite& suite, const WeightRows& w) {
  const int64_t elements = w.elements(), gains = w.gains();
  const Shape flat{.channels = elements + gains}, weights{.channels = elements};
  const std::string type = type_name<T>();
  suite.add({.name = "weight_norm_adamw/" + type + "/" + w.name + "/" + std::to_string(elements),
             .bytes = (28 + static_cast<int64_t>(sizeof(T))) * elements,
             .flops = 24 * elements,
             .parameters = {{"op", "weight_norm_adamw"}, {"direction", "step"}, {"type", type}, {"layers", w.text()}}},
            [=](Data& data) -> Run {
              const View<AdamWScalars> scalars = data.zeros<AdamWScalars>({});
              const AdamWScalars start{.lr = 3e-4f, .step = 100};
              data.ctx.write<AdamWScalars>(std::span<const AdamWScalars>(&start, 1), scalars);
              const WeightNormAdamW<T> a{
                  .adamw = {.value = data.random(flat),
                            .grad = data.random(flat),
                            .m = data.random(flat),
                            .v = data.random(flat, 0, 1),
                            .scalars = scalars,
                            .scratch = data.random(weight_norm_adamw_scratch(data.ctx, flat, elements, gains, gains))},
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
    add_case<float>(suite, w);
    if (suite.cuda()) add_case<bf16>(suite, w);
  }
});

}  // namespace
}  // namespace nacre::bench
