// A discriminator of two convolutions, and its test: on real and on detached generated audio in an inner walk, and
// frozen in the walk of the generator.
#include "nacre/discriminators/discriminator.h"

#include "adding/steps.h"
#include "gradient_check.h"
#include "reference/layers.h"
#include "reference/losses.h"

using namespace nacre;

// [discriminator]
/// Registers <name>.first and <name>.last.
Discriminator strided_discriminator(Parameters& p, const std::string& name) {
  const Conv1d first(p, name + ".first", 1, 4, 5, {.stride = 2, .left = 2, .right = 2});
  const Activation leaky(p, name + ".leaky", 4, ActivationKind::leaky_relu);
  const Conv1d last(p, name + ".last", 4, 1, 3, {.left = 1, .right = 1});
  return [=](Plan& plan, Flow audio) {
    const Flow feature = leaky.plan(plan, first.plan(plan, audio));
    return Verdict{.logits = last.plan(plan, feature), .features = {feature}};
  };
}
// [/discriminator]

using namespace nacre::test;

TEST_CASE("discriminator: inside of a generator's step") {
  const Shape audio{.batch = 2, .time = 12};
  const Conv1dGeometry same{.left = 1, .right = 1}, down{.stride = 2, .left = 2, .right = 2};
  for (const Device device : devices()) {
    CAPTURE(str(device));
    Context ctx({.device = device, .threads = 2});
    Parameters of_generator, of_critic;
    const Conv1d generator(of_generator, "generator", 1, 1, 3, same);
    const Discriminator judge = strided_discriminator(of_critic, "critic");
    std::mt19937_64 rng(seed());
    draw_parameters(ctx, of_generator, rng), draw_parameters(ctx, of_critic, rng);
    const std::vector<float> noise = drawn(rng, audio.elements()), recorded = drawn(rng, audio.elements());
    Plan plan(ctx, Purpose::training);
    plan.reserve([&](Plan& p) {
      const auto batch = [&](const std::vector<float>& v) {
        const Output<float> source = p.source<float>(audio);
        if (source.value) ctx.write<float>(v, source.value);
        return source.flow;
      };
      const Flow fake = generator.plan(p, batch(noise)), real = batch(recorded);
      // [discriminator walk]
      p.inner([&](Plan& d) {  // the critic's own step: it reads detached activations
        sum_loss(d, judge(d, d.detach(real)).logits, -0.5f);
        sum_loss(d, judge(d, d.detach(fake)).logits, 0.375f);
        of_critic.clear_gradients(d);
      });
      const Frozen frozen = p.freeze(of_critic);  // the generator's step: the critic passes gradients on
      const Verdict v = judge(p, fake);
      sum_loss(p, v.logits, -0.25f), sum_loss(p, v.features[0], 0.125f);
      // [/discriminator walk]
      of_generator.clear_gradients(p);
    });
    plan.run_gradients();
    of_generator.finish_gradients(ctx), of_critic.finish_gradients(ctx);

    const test::Layer first = conv1d("critic.first", 5, down), last = conv1d("critic.last", 3, same);
    const auto model = [&](Tape& t) {
      const auto total = [&](double slope, Node* x) {
        return std::pair{slope * static_cast<double>(x->value.size()), mean(t, x)};
      };
      const auto feature = [&](Node* x) { return leaky_relu(static_cast<double>(0.1f))(t, first(t, x)); };
      Node* fake = conv1d("generator", 3, same)(t, t.constant(audio, {noise.begin(), noise.end()}));
      Node* real = t.constant(audio, {recorded.begin(), recorded.end()});
      std::vector terms{total(-0.5, last(t, feature(real))), total(0.375, last(t, feature(t.detach(fake))))};
      const Tape::Frozen frozen(t, "critic.");
      Node* frozen_feature = feature(fake);
      terms.push_back(total(-0.25, last(t, frozen_feature))), terms.push_back(total(0.125, frozen_feature));
      return sum(t, terms);
    };
    Tape tape;
    tape.parameters = values_of(ctx, of_generator);
    tape.parameters.merge(values_of(ctx, of_critic));
    Tensors found = gradients_of(ctx, of_generator);
    found.merge(gradients_of(ctx, of_critic));
    const Comparison comparison(tape, model);
    CHECK(comparison.exact.size() == 9);
    CHECK(comparison.blunt() == "");
    comparison.check(found);
    check_differences(tape, model, rng, 20);
  }
}
