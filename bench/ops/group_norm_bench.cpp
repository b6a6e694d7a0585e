#include "nacre/ops/group_norm.h"

#include "harness.h"

namespace nacre::bench {
namespace {

template <class T>
void add_group_norm(Suite& suite, Shape s, NormOver over) {
  const int64_t n = s.elements();
  const Shape per_channel{.channels = s.channels}, statistics = group_norm_statistics(s, 1, over);
  const bool over_item = over == NormOver::item;
  const std::string type = type_name<T>(),
                    shape = std::string("/") + (over_item ? "item" : "position") + "/" + type + "/" + label(s);
  const auto parameters = [&](const char* direction) {
    std::vector<Parameter> p = tensor_parameters("group_norm", direction, type, s);
    p.push_back({"over", over_item ? "item" : "position"});
    return p;
  };
  constexpr int64_t size = sizeof(T);
  suite.add({.name = "group_norm_forward" + shape,
             .bytes = (over_item ? 3 : 2) * size * n,
             .flops = 8 * n,
             .parameters = parameters("forward")},
            [=](Data& data) -> Run {
              const View<T> x = data.random<T>(s), y = data.random<T>(s);
              const View<float> gain = data.random(per_channel, 0.5, 2), bias = data.random(per_channel);
              const View<float> mean = data.random(statistics), inverse = data.random(statistics);
              const View<float> scratch = data.random(group_norm_forward_scratch<T>(data.ctx, s, 1, over));
              return [=](Context& ctx) {
                group_norm_forward<T>(ctx, {.x = x,
                                            .gain = gain,
                                            .bias = bias,
                                            .y = y,
                                            .mean = mean,
                                            .inverse_deviation = inverse,
                                            .scratch = scratch,
                                            .over = over});
              };
            });
  suite.add({.name = "group_norm_backward" + shape,
             .bytes = 5 * size * n,
             .flops = 14 * n,
             .parameters = parameters("backward")},
            [=](Data& data) -> Run {
              const View<T> x = data.random<T>(s), dy = data.random<T>(s), dx = data.random<T>(s);
              const View<float> gain = data.random(per_channel, 0.5, 2), dgain = data.random(per_channel),
                                dbias = data.random(per_channel);
              const View<float> mean = data.random(statistics), inverse = data.random(statistics, 0.5, 2);
              const View<float> scratch = data.random(group_norm_backward_scratch<T>(data.ctx, s, 1, over));
              return [=](Context& ctx) {
                group_norm_backward<T>(ctx, {.x = x,
                                             .gain = gain,
                                             .mean = mean,
                                             .inverse_deviation = inverse,
                                             .dy = dy,
                                             .dx = dx,
                                             .dgain = dgain,
                                             .dbias = dbias,
                                             .scratch = scratch,
                                             .over = over});
              };
            });
}

const Cases cases([](Suite& suite) {
  if (!suite.cuda()) {
    for (const Shape s : suite.shapes({{.time = 2000, .channels = 128},                 // second-level cache
                                       {.batch = 4, .time = 16000, .channels = 64},     // memory
                                       {.batch = 4, .time = 16000, .channels = 7}})) {  // fills no vector
      add_group_norm<float>(suite, s, NormOver::item);
      add_group_norm<float>(suite, s, NormOver::position);
    }
    return;
  }
  // Activations of a model at 48 kHz on crops of one second, and one that allows no 16-byte packs.
  for (const Shape s : suite.shapes({{.batch = 16, .time = 48000, .channels = 32},
                                     {.batch = 16, .time = 6000, .channels = 128},
                                     {.batch = 16, .time = 150, .channels = 512},
                                     {.batch = 16, .time = 6000, .channels = 127}}))
    for (const NormOver over : {NormOver::item, NormOver::position}) {
      add_group_norm<bf16>(suite, s, over);
      add_group_norm<float>(suite, s, over);
    }
});

}  // namespace
}  // namespace nacre::bench
