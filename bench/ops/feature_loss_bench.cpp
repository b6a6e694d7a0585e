#include "nacre/ops/feature_loss.h"

#include "harness.h"

namespace nacre::bench {
namespace {

/// The activations of the discriminator of DAC with period 2, for 12 items of 6080 samples.
template <class T>
void add_feature_loss(Suite& suite, bool relative = false) {
  const std::vector<Shape> shapes = suite.shapes({{.batch = 24, .time = 1014, .channels = 32},
                                                  {.batch = 24, .time = 338, .channels = 128},
                                                  {.batch = 24, .time = 113, .channels = 512},
                                                  {.batch = 24, .time = 38, .channels = 1024},
                                                  {.batch = 24, .time = 38, .channels = 1024}});
  const int count = static_cast<int>(shapes.size());
  int64_t n = 0;
  for (const Shape s : shapes) n += s.elements();
  const std::string type = type_name<T>();
  suite.add({.name = std::string("feature_loss/") + (relative ? "relative/" : "") + std::to_string(count) + "/" + type +
                     "/" + label(shapes.front()),
             .bytes = (relative ? 4 : 3) * static_cast<int64_t>(sizeof(T)) * n,
             .flops = (relative ? 4 : 3) * n,
             .parameters = {{"op", "feature_loss"},
                            {"direction", "step"},
                            {"type", type},
                            {"batch", shapes.front().batch},
                            {"time", shapes.front().time},
                            {"channels", shapes.front().channels},
                            {"count", int64_t{count}},
                            {"relative", relative ? 1 : 0}}},
            [=](Data& data) -> Run {
              FeatureLoss<T> a{.count = count,
                               .loss = data.random({}),
                               .scratch = data.random(feature_loss_scratch(data.ctx, n, count, relative)),
                               .relative = relative};
              for (size_t i = 0; i < shapes.size(); ++i)
                a.pairs[i] = {.real = data.random<T>(shapes[i]),
                              .fake = data.random<T>(shapes[i]),
                              .gradient = data.random<T>(shapes[i])};
              return [=](Context& ctx) { feature_loss<T>(ctx, a); };
            });
}

const Cases cases([](Suite& suite) {
  add_feature_loss<float>(suite);
  if (suite.cuda()) add_feature_loss<bf16>(suite);
  add_feature_loss<float>(suite, true);
});

}  // namespace
}  // namespace nacre::bench
