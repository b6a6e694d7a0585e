// A loss of one term, and its test.
#include "nacre/losses/loss.h"

#include "adding/steps.h"
#include "gradient_check.h"
#include "nacre/ops/waveform_loss.h"
#include "reference/losses.h"

using namespace nacre;

// [loss]
/// Mean square of the difference of the samples: term "squared".
Loss squared_loss_of(double weight) {
  const auto plan = [](Plan& p, const Signals& signals) {
    const Step s = p.step("loss.squared");
    const Input<float> in = read_branch(s, signals.estimates[0]);
    const Shape shape = signals.estimates[0].shape;
    const View<float> scratch = s.scratch(waveform_loss_scratch(p.context(), shape), Until::backward);
    const auto samples = static_cast<double>(shape.elements());
    s.costs({.forward = {.floats = 3 * samples, .bytes = 12 * samples}});
    s.backward([=, target = signals.target, lengths = signals.lengths, value = signals.values](Context& c) {
      waveform_loss(c, {.estimate = in.value,
                        .target = target,
                        .lengths = lengths,
                        .loss = View<float>(value.data, {}),
                        .gradient = in.grad,
                        .scratch = scratch,
                        .norm = WaveformNorm::l2});
    });
  };
  return {.terms = {{"squared", "squared error", weight}}, .plan = plan};
}
// [/loss]

using namespace nacre::test;

TEST_CASE("loss: beside another, behind the balancer") {
  const Shape shape{.batch = 2, .time = 40};
  const std::vector<int32_t> valid{40, 23};
  for (const Device device : devices()) {
    CAPTURE(str(device));
    Context ctx({.device = device, .threads = 2});
    const std::vector<Loss> losses{waveform_loss_of({}), squared_loss_of(3)};
    Output<float> estimate;
    View<float> values, target;
    View<int32_t> lengths;
    Plan plan(ctx, Purpose::training);
    plan.reserve([&](Plan& p) {
      estimate = p.source<float>(shape, true);
      target = p.persistent<float>(shape);
      lengths = p.persistent<int32_t>({.channels = 2});
      values = p.persistent<float>({.channels = 2});
      const std::vector<double> weights{losses[0].terms[0].weight, losses[1].terms[0].weight};
      const Branches branches = GradientBalancer(0.5, true).plan(p, estimate.flow, weights);
      for (size_t i = 0; i < losses.size(); ++i)
        losses[i].plan(p, {.estimates = std::span(branches.flows).subspan(i, 1),
                           .target = target,
                           .lengths = lengths,
                           .values = View<float>(values ? values.data + i : nullptr, {})});
    });
    std::mt19937_64 rng(seed());
    const std::vector<float> x = drawn(rng, shape.elements()), y = drawn(rng, shape.elements());
    ctx.write<float>(y, estimate.value), ctx.write<float>(x, target), ctx.write<int32_t>(valid, lengths);
    plan.run();

    Tape tape;
    tape.parameters["estimate"] = {y.begin(), y.end()};
    double expected[2]{};
    const auto model = [&](Tape& t) {
      const nacre::reference::Balancer first{.decay = 0.5,
                                             .total_norm = 1,
                                             .eps = 1e-12,
                                             .balanced = true,
                                             .sums = std::vector<double>(2),
                                             .ones = std::vector<double>(2)};
      const std::vector<Node*> branches = balance(t, t.parameter("estimate", shape), first, {1, 3});
      Node* terms[2];
      for (size_t i = 0; i < 2; ++i) {
        terms[i] = test::waveform_loss(t, branches[i], {x.begin(), x.end()}, valid, i == 1);
        expected[i] = terms[i]->value[0];
      }
      return sum(t, {{1, terms[0]}, {1, terms[1]}});
    };
    const Comparison comparison(tape, model);
    std::vector<float> gradient(x.size()), found(2);
    ctx.read<float>(estimate.grad, gradient), ctx.read<float>(View<const float>(values), found);
    comparison.check({{"estimate", {gradient.begin(), gradient.end()}}});
    // 4 ulp by the contract of waveform_loss.
    for (size_t i = 0; i < 2; ++i)
      CHECK(std::fabs(static_cast<double>(found[i]) - expected[i]) <= 4 * ulp * expected[i]);
  }
}
