#include "nacre/ops/adversarial_loss.h"

#include "harness.h"

namespace nacre::bench {
namespace {

template <class T>
void add_adversarial_loss(Suite& suite, Shape s, AdversarialKind kind) {
  const int64_t n = s.elements(), bytes = 2 * static_cast<int64_t>(sizeof(T)) * n;
  const std::string type = type_name<T>(), name = kind == AdversarialKind::hinge ? "hinge" : "least_squares",
                    end = "/" + name + "/" + type + "/" + label(s);
  const auto parameters = [=](const char* direction) {
    std::vector<Parameter> p = tensor_parameters("adversarial_loss", direction, type, s);
    p.push_back({"kind", name});
    return p;
  };
  suite.add(
      {.name = "adversarial_loss/discriminator" + end,
       .bytes = bytes,
       .flops = 4 * n,
       .parameters = parameters("discriminator")},
      [=](Data& data) -> Run {
        const View<T> logits = data.random<T>(s, -2, 2), gradient = data.random<T>(s);
        const View<float> loss = data.random({}), right = data.random({.channels = 2});
        const View<float> scratch = data.random(adversarial_loss_scratch(data.ctx, s));
        return [=](Context& ctx) {
          discriminator_loss<T>(
              ctx,
              {.logits = logits, .loss = loss, .right = right, .gradient = gradient, .scratch = scratch, .kind = kind});
        };
      });
  suite.add({.name = "adversarial_loss/generator" + end,
             .bytes = bytes,
             .flops = 4 * n,
             .parameters = parameters("generator")},
            [=](Data& data) -> Run {
              const View<T> logits = data.random<T>(s, -2, 2), gradient = data.random<T>(s);
              const View<float> loss = data.random({}), scratch = data.random(adversarial_loss_scratch(data.ctx, s));
              return [=](Context& ctx) {
                generator_loss<T>(
                    ctx, {.logits = logits, .loss = loss, .gradient = gradient, .scratch = scratch, .kind = kind});
              };
            });
}

const Cases cases([](Suite& suite) {
  // The logits of the discriminator of DAC with period 2, for 12 items of 6080 samples.
  for (const Shape s : suite.shapes({{.batch = 24, .time = 38, .channels = 1}}))
    for (const AdversarialKind kind : {AdversarialKind::least_squares, AdversarialKind::hinge}) {
      add_adversarial_loss<float>(suite, s, kind);
      if (suite.cuda()) add_adversarial_loss<bf16>(suite, s, kind);
    }
});

}  // namespace
}  // namespace nacre::bench
