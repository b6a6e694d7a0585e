// Audio over its scale, and times its scale: values, gradients, and what they depend on.
#include "nn/segment_scale.h"

#include "harness.h"
#include "reference/rms_scale.h"

using namespace nacre;
using namespace nacre::test;

TEST_CASE("segment scale: values, and gradients that do not pass through the scale") {
  const Shape shape{.batch = 3, .time = 50, .channels = 2};
  for (const Device device : devices()) {
    CAPTURE(str(device));
    Context ctx({.device = device, .threads = 2});
    std::mt19937_64 rng(seed());
    std::uniform_real_distribution<float> draw(-1, 1);
    std::vector<float> audio(static_cast<size_t>(shape.elements())), slopes(audio.size());
    for (std::vector<float>* v : {&audio, &slopes})
      for (float& x : *v) x = draw(rng);
    const std::vector<int32_t> lengths{50, 1, 30};
    Plan plan(ctx, Purpose::training);
    Output<float> source;
    Normalised whole, valid;
    View<const float> out, back;
    plan.reserve([&](Plan& p) {
      source = p.source<float>(shape, true);
      const View<int32_t> of = p.persistent<int32_t>({.channels = 3});
      if (of) ctx.write<int32_t>(lengths, of), ctx.write<float>(audio, source.value);
      whole = normalised(p, source.flow);
      valid = normalised(p, source.flow, of);
      out = p.result<float>(valid.flow);
      const Flow again = scaled(p, valid.flow, whole.scales);
      back = p.result<float>(again);
      for (const Flow x : {again, whole.flow}) {
        const Step s = p.step("slopes");
        const auto in = s.reads<float>(x);
        s.backward([=](Context& c) { c.write<float>(slopes, in.grad); });
      }
    });
    plan.run_gradients();
    std::vector<float> scales[2]{std::vector<float>(3), std::vector<float>(3)}, y(audio.size()), z(audio.size()),
        dx(audio.size());
    ctx.read<float>(whole.scales, scales[0]);
    ctx.read<float>(valid.scales, scales[1]);
    ctx.read<float>(out, y), ctx.read<float>(back, z), ctx.read<float>(source.grad, dx);
    for (size_t b = 0; b < 3; ++b) {
      const std::vector<double> item(audio.begin() + static_cast<int64_t>(100 * b),
                                     audio.begin() + static_cast<int64_t>(100 * b + 100));
      const double all = reference::rms_scale(item, 2, 50, 1e-8),
                   own = reference::rms_scale(item, 2, static_cast<size_t>(lengths[b]), 1e-8);
      CHECK(std::fabs(static_cast<double>(scales[0][b]) - all) <= 2 * ulp * all);
      CHECK(std::fabs(static_cast<double>(scales[1][b]) - own) <= 2 * ulp * own);
      double worst = 0;
      for (size_t i = 100 * b; i < 100 * b + 100; ++i) {
        const double x = static_cast<double>(audio[i]), d = static_cast<double>(slopes[i]);
        // One rounding per operation, and two of each scale: y 3, z 6, the gradient 6 of one part and 3 of the other,
        // and their sum.
        const double first = d * all / own, second = d / all;
        for (const auto& [found, exact, allowed] :
             {std::tuple{y[i], x / own, 3 * std::fabs(x / own)},
              std::tuple{z[i], x / own * all, 6 * std::fabs(x / own * all)},
              std::tuple{dx[i], first + second, 7 * std::fabs(first) + 4 * std::fabs(second)}})
          worst = std::max(worst, std::fabs(static_cast<double>(found) - exact) / (ulp * allowed + 1e-30));
      }
      CHECK(worst <= 1.001);  // second-order terms
    }
  }
}

TEST_CASE("segment scale: a sample depends on its whole item through the scale") {
  Context ctx({.threads = 1});
  const Shape shape{.batch = 2, .time = 20, .channels = 2};
  Plan plan(ctx, Purpose::inference);
  Flow audio, divided, multiplied;
  plan.survey([&](Plan& p) {
    audio = p.source<float>(shape).flow;
    const Normalised n = normalised(p, audio);
    divided = n.flow, multiplied = scaled(p, audio, p.persistent<float>({.channels = 2}));
  });
  CHECK(divided.shape == shape);
  CHECK(multiplied.shape == shape);
  CHECK(plan.reach(divided, {0, 0}, audio).last == 19);
  CHECK(plan.reach(divided, {19, 19}, audio).first == 0);
  CHECK(plan.reach(multiplied, {3, 4}, audio).first == 3);
  CHECK(plan.costs().size() == 2);
}
