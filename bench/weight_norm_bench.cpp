#include "nacre/ops/weight_norm.h"

#include <memory>

#include "harness.h"

namespace nacre::bench {
namespace {

// All layers of a small model in one call: residual units of four widths.
const Cases cases([](Suite& suite) {
  auto rows = std::make_shared<std::vector<WeightRow>>();
  int64_t elements = 0;
  for (const int64_t channels : {16, 32, 64, 128, 256})
    for (int64_t layer = 0; layer < 3; ++layer)
      for (int64_t o = 0; o < channels; ++o) {
        rows->push_back({elements, 7 * channels, static_cast<int64_t>(rows->size())});
        elements += 7 * channels;
      }
  const Shape flat{.channels = elements}, gains{.channels = static_cast<int64_t>(rows->size())};
  const auto place = [=](Data& data) {
    const View<float> room = data.zeros({.channels = gains.channels * static_cast<int64_t>(sizeof(WeightRow) / 4)});
    const View<WeightRow> v(reinterpret_cast<WeightRow*>(room.data), gains);
    data.ctx.write<WeightRow>(*rows, v);
    return v;
  };
  suite.add({.name = "weight_norm_forward/" + label(flat), .bytes = 8 * elements, .flops = 3 * elements},
            [=](Data& data) -> Run {
              const View<float> v = data.random(flat), g = data.random(gains), w = data.random(flat);
              const View<const WeightRow> r = place(data);
              return [=](Context& ctx) { weight_norm_forward(ctx, {.v = v, .g = g, .rows = r, .w = w}); };
            });
  suite.add({.name = "weight_norm_backward/" + label(flat), .bytes = 16 * elements, .flops = 8 * elements},
            [=](Data& data) -> Run {
              const View<float> v = data.random(flat), g = data.random(gains), dw = data.random(flat, -1e-6, 1e-6);
              const View<float> dv = data.random(flat), dg = data.random(gains);
              const View<const WeightRow> r = place(data);
              return [=](Context& ctx) {
                weight_norm_backward(ctx, {.v = v, .g = g, .rows = r, .dw = dw, .dv = dv, .dg = dg});
              };
            });
});

}  // namespace
}  // namespace nacre::bench
