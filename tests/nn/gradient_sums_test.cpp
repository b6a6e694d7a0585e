// Parts of gradients in a plan: they are added whichever way a run ends.
#include <algorithm>

#include "harness.h"
#include "nacre/nn/layers.h"

using namespace nacre;
using namespace nacre::test;

namespace {

/// Two Snakes and convolutions. Weights, biases and alphas have parts on CUDA.
struct TwoLayers {
  Context ctx;
  Parameters parameters;
  Activation snake, last_snake;
  Conv1d conv, last_conv;
  Plan plan;
  Output<float> x{};
  std::vector<float> dy{};

  explicit TwoLayers(Device device)
      : ctx({.device = device, .threads = 2}),
        snake(parameters, "snake", 8, ActivationKind::snake),
        last_snake(parameters, "last_snake", 16, ActivationKind::snake),
        conv(parameters, "conv", 8, 16, 3, {.left = 1, .right = 1}),
        last_conv(parameters, "last_conv", 16, 8, 1),
        plan(ctx, Purpose::training) {
    parameters.allocate(ctx, true, Storage::float32);
    parameters.initialise(ctx, 5);
    parameters.refresh(ctx);
    plan.reserve([&](Plan& p) {
      x = p.source<float>({.batch = 2, .time = 1500, .channels = 8}, true);
      const Flow y = last_conv.plan(p, last_snake.plan(p, conv.plan(p, snake.plan(p, x.flow))));
      const Step s = p.step("end");
      const Input<float> end = s.reads<float>(y);
      s.backward([this, end](Context& c) { c.write<float>(dy, end.grad); });
      parameters.clear_gradients(p);
    });
    std::mt19937_64 rng(seed());
    std::uniform_real_distribution<float> draw(-1, 1);
    std::vector<float> values(static_cast<size_t>(x.value.elements()));
    for (float& v : values) v = draw(rng), dy.push_back(draw(rng));
    ctx.write<float>(values, x.value);
  }
  using Gradients = std::vector<std::vector<float>>;
  Gradients of(const Activation& a, const Conv1d& c) {
    Gradients all;
    for (const View<float>& v : {a.alpha()->grad, c.weight().grad, c.bias().grad}) {
      all.emplace_back(static_cast<size_t>(v.elements()));
      ctx.read<float>(v, all.back());
    }
    return all;
  }
  Gradients first() { return of(snake, conv); }
  Gradients last() { return of(last_snake, last_conv); }
};

}  // namespace

TEST_CASE("parts of gradients are added whichever way a run ends", "[gradient_sums]") {
  for (const Device device : devices()) {
    INFO(str(device));
    TwoLayers whole(device), gradients(device), until(device), abandoned(device);
    whole.plan.run();
    const TwoLayers::Gradients first = whole.first(), last = whole.last();
    for (const TwoLayers::Gradients& all : {first, last})
      for (const std::vector<float>& g : all) CHECK(std::count(g.begin(), g.end(), 0.0f) == 0);

    gradients.plan.run_gradients();
    CHECK(gradients.first() == first);
    CHECK(gradients.last() == last);

    // The parts of the last Snake and convolution would otherwise wait for those of the first.
    const auto& names = until.plan.steps();
    const auto step = std::find(names.begin(), names.end(), "last_snake") - names.begin();
    REQUIRE(step < static_cast<int64_t>(names.size()));
    until.plan.run_until(static_cast<int>(step), Until::backward);
    CHECK(until.last() == last);
    CHECK(until.first() != first);

    // A run that is given up leaves no sum behind for the next one.
    int left = 8;  // the last convolution and Snake have noted their sums
    CHECK(!abandoned.plan.run([&] { return left-- == 0; }));
    abandoned.plan.run();
    CHECK(abandoned.first() == first);
    CHECK(abandoned.last() == last);
  }
}
