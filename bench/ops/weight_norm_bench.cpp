#include "nacre/ops/weight_norm.h"

#include "harness.h"
#include "ops/weight_rows.h"

namespace nacre::bench {
namespace {

// All layers of a model in one call.
const Cases cases([](Suite& suite) {
  for (const WeightRows& w : weight_rows(suite)) {
    const int64_t elements = w.elements();
    const Shape flat{.channels = elements}, gains{.channels = w.gains()};
    const auto info = [&](const char* direction, const std::string& type, int64_t bytes, int64_t flops) {
      return CaseInfo{
          .name = std::string("weight_norm_") + direction + "/" + type + "/" + w.name + "/" + std::to_string(elements),
          .bytes = bytes * elements,
          .flops = flops * elements,
          .parameters = {{"op", "weight_norm"}, {"direction", direction}, {"type", type}, {"layers", w.text()}}};
    };
    const auto forward = [&]<class T>(T) {
      suite.add(info("forward", type_name<T>(), 4 + static_cast<int64_t>(sizeof(T)), 3), [=](Data& data) -> Run {
        const View<float> v = data.random(flat), g = data.random(gains);
        const View<T> out = data.random<T>(flat);
        const View<const WeightRow> r = w.place(data);
        return [=](Context& ctx) { weight_norm_forward<T>(ctx, {.v = v, .g = g, .rows = r, .w = out}); };
      });
    };
    forward(float{});
    if (suite.cuda()) forward(bf16{});
    suite.add(info("backward", "fp32", 16, 8), [=](Data& data) -> Run {
      const View<float> v = data.random(flat), g = data.random(gains), dw = data.random(flat, -1e-6, 1e-6);
      const View<float> dv = data.random(flat), dg = data.random(gains);
      const View<const WeightRow> r = w.place(data);
      return
          [=](Context& ctx) { weight_norm_backward(ctx, {.v = v, .g = g, .rows = r, .dw = dw, .dv = dv, .dg = dg}); };
    });
  }
});

}  // namespace
}  // namespace nacre::bench
