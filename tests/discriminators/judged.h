#pragma once
// Gradients of a discriminator in its two roles, against the reference in double precision. In an inner walk it is
// trained on real and on detached generated audio; in the walk of the generator it is frozen and passes gradients on.
#include "gradient_check.h"
#include "nacre/discriminators/discriminator.h"
#include "reference/layers.h"

namespace nacre::test {

/// A number for each element, different for its neighbours: what depends on sums alone would pass with equal numbers.
inline double slope_at(size_t i) {
  return 0.5 + 0.25 * static_cast<double>((i * 37 + i / 11) % 13) - (i % 3 == 0 ? 2 : 0);
}

/// A loss whose gradient with respect to element i is factor * slope_at(i).
inline void slopes_of(Plan& p, Flow x, double factor) {
  visit(x.storage, [&]<class T>(Type<T>) {
    const Step s = p.step("slopes");
    const auto in = s.reads<T>(x);
    s.backward([=](Context& c) {
      std::vector<T> dx(static_cast<size_t>(in.grad.elements()), store<T>(0.0f));
      if (in.add) c.read<T>(View<const T>(in.grad), dx);
      for (size_t i = 0; i < dx.size(); ++i)
        dx[i] = store<T>(to_float(dx[i]) + static_cast<float>(factor * slope_at(i)));
      c.write<T>(dx, in.grad);
    });
  });
}
inline Node* slopes_of(Tape& t, Node* x, double factor) {
  double total = 0;
  for (size_t i = 0; i < x->value.size(); ++i) total += factor * slope_at(i) * x->value[i];
  Node* y = t.make({}, {total}, {x});
  t.back(y, [=, &t] {
    Values dx;
    for (size_t i = 0; i < x->value.size(); ++i) dx.push_back(factor * slope_at(i) * y->gradient[0]);
    t.add(x, std::move(dx));
  });
  return y;
}

struct Judgement {
  Node* logits = nullptr;
  std::vector<Node*> features{};
};
using Judge = std::function<Judgement(Tape&, Node* audio)>;

/// `make` registers parameters that begin with "critic.". `features` is their expected number.
inline void check_judge(const std::function<Discriminator(Parameters&)>& make, const Judge& judge, Shape shape,
                        size_t features) {
  for (const Device device : devices()) {
    CAPTURE(str(device));
    Context ctx({.device = device, .threads = 2});
    Parameters of_generator, of_critic;
    const Conv1d generator(of_generator, "generator", 1, 1, 3, {.left = 1, .right = 1});
    const Discriminator critic = make(of_critic);
    std::mt19937_64 rng(seed());
    std::uniform_real_distribution<float> draw(-0.8f, 0.8f);
    const auto drawn = [&](int64_t n) {
      std::vector<float> v(static_cast<size_t>(n));
      for (float& x : v) x = draw(rng);
      return v;
    };
    for (Parameters* p : {&of_generator, &of_critic}) {
      p->allocate(ctx, true);
      ctx.write<float>(drawn(p->trained_elements()), p->values());
      p->refresh(ctx);
    }
    const std::vector<float> noise = drawn(shape.elements()), audio = drawn(shape.elements());
    Plan plan(ctx, Purpose::training);
    plan.reserve([&](Plan& p) {
      const auto source = [&](const std::vector<float>& values) {
        const Output<float> s = p.source<float>(shape);
        if (s.value) ctx.write<float>(values, s.value);
        return s.flow;
      };
      const Flow real = source(audio), fake = generator.plan(p, source(noise));
      p.inner([&](Plan& d) {
        slopes_of(d, critic(d, d.detach(real)).logits, -0.5);
        slopes_of(d, critic(d, d.detach(fake)).logits, 0.375);
        of_critic.clear_gradients(d);
      });
      const Frozen frozen = p.freeze(of_critic);
      const Verdict v = critic(p, fake);
      slopes_of(p, v.logits, -0.25);
      REQUIRE(v.features.size() == features);
      for (size_t i = 0; i < features; ++i) slopes_of(p, v.features[i], i % 2 == 0 ? 0.125 : -0.0625);
      of_generator.clear_gradients(p);
    });
    plan.run_gradients();
    const auto model = [&](Tape& t) {
      Node *real = t.constant(shape, {audio.begin(), audio.end()}),
           *fake = conv1d("generator", 3, {.left = 1, .right = 1})(t, t.constant(shape, {noise.begin(), noise.end()}));
      std::vector<std::pair<double, Node*>> terms{{1, slopes_of(t, judge(t, real).logits, -0.5)},
                                                  {1, slopes_of(t, judge(t, t.detach(fake)).logits, 0.375)}};
      const Tape::Frozen frozen(t, "critic.");
      const Judgement v = judge(t, fake);
      terms.emplace_back(1, slopes_of(t, v.logits, -0.25));
      REQUIRE(v.features.size() == features);
      for (size_t i = 0; i < features; ++i)
        terms.emplace_back(1, slopes_of(t, v.features[i], i % 2 == 0 ? 0.125 : -0.0625));
      return sum(t, terms);
    };
    Tape tape;
    Tensors found;
    for (Parameters* p : {&of_generator, &of_critic}) {
      p->finish_gradients(ctx);
      tape.parameters.merge(values_of(ctx, *p));
      found.merge(gradients_of(ctx, *p));
    }
    const Comparison comparison(tape, model);
    CHECK(comparison.blunt() == "");
    comparison.check(found);
    // The tape against finite differences, which know nothing of detached values and frozen parameters.
    const auto whole = [&](Tape& t) {
      Node* fake = conv1d("generator", 3, {.left = 1, .right = 1})(t, t.constant(shape, {noise.begin(), noise.end()}));
      const Judgement v = judge(t, fake);
      std::vector<std::pair<double, Node*>> terms{{1, slopes_of(t, v.logits, -0.25)}};
      for (Node* feature : v.features) terms.emplace_back(1, slopes_of(t, feature, 0.125));
      return sum(t, terms);
    };
    check_differences(tape, whole, rng, 20);
  }
}

/// The size, logits and features of discriminators for audio of one length, without computing them.
inline std::vector<Verdict> surveyed(const Discriminators& judges, int64_t time) {
  Context ctx({.threads = 1});
  Plan plan(ctx, Purpose::inference);
  std::vector<Verdict> verdicts;
  plan.survey([&](Plan& p) { verdicts = judges.plan(p, p.source<float>({.batch = 2, .time = time}).flow); });
  return verdicts;
}

}  // namespace nacre::test
