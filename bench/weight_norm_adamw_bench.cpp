#include "nacre/ops/weight_norm_adamw.h"

#include <memory>

#include "harness.h"

namespace nacre::bench {
namespace {

// A small codec's rows, and DAC's 76.7 million weights as rows of 7 x 1024, 7 x 512, ... The bytes are those of one
// pass that is given the rows' norms (30 with bf16 weights, 32 with float); the op reads 8 more to make them itself.
template <class T>
void add_case(Suite& suite, const char* type, std::vector<std::pair<int64_t, int64_t>> layers) {
  auto rows = std::make_shared<std::vector<WeightRow>>();
  int64_t elements = 0;
  for (const auto& [count, length] : layers)
    for (int64_t i = 0; i < count; ++i) {
      rows->push_back({elements, length, static_cast<int64_t>(rows->size())});
      elements += length;
    }
  const int64_t gains = static_cast<int64_t>(rows->size());
  const Shape flat{.channels = elements + gains}, weights{.channels = elements};
  suite.add({.name = std::string("weight_norm_adamw/") + type + "/" + std::to_string(elements),
             .bytes = (28 + static_cast<int64_t>(sizeof(T))) * elements,
             .flops = 24 * elements},
            [=](Data& data) -> Run {
              const View<float> room = data.zeros({.channels = gains * static_cast<int64_t>(sizeof(WeightRow) / 4)});
              const View<WeightRow> place(reinterpret_cast<WeightRow*>(room.data), {.channels = gains});
              data.ctx.write<WeightRow>(*rows, place);
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
                  .rows = place,
                  .dw = data.random(weights),
                  .w = data.random<T>(weights)};
              return [=](Context& ctx) { weight_norm_adamw<T>(ctx, a); };
            });
}

const Cases cases([](Suite& suite) {
  const std::vector<std::pair<int64_t, int64_t>> small{{96, 448}, {192, 896}, {384, 1792}};
  const std::vector<std::pair<int64_t, int64_t>> dac{
      {3072, 7168}, {7168, 5376}, {3072, 3584}, {1536, 1792}, {1536, 768}};
  add_case<float>(suite, "fp32", small);
  add_case<float>(suite, "fp32", dac);
  add_case<bf16>(suite, "bf16", dac);
});

}  // namespace
}  // namespace nacre::bench
