// A generator and its critic in one plan. The critic learns in an inner walk from real audio and from the generator's
// new output. It is then frozen, and judges both again in the walk of the generator. The losses are steps of these
// tests. They compute on the host, so that any device can run them.
#include <algorithm>
#include <cmath>
#include <optional>

#include "gradient_check.h"
#include "nacre/discriminators/discriminator.h"
#include "nacre/training/optimizer.h"
#include "reference/layers.h"
#include "reference/losses.h"

using namespace nacre;
using namespace nacre::test;

namespace {

constexpr Shape latents{.batch = 2, .time = 6, .channels = 3}, audio{.batch = 2, .time = 12};
constexpr Conv1dGeometry down{.stride = 2, .left = 2, .right = 2};
constexpr Conv1dGeometry grouped{.stride = 2, .groups = 2, .left = 2, .right = 2};
constexpr Conv1dGeometry same{.left = 1, .right = 1};

std::vector<float> read(Context& c, View<const float> v) {
  std::vector<float> values(static_cast<size_t>(v.elements()));
  c.read<float>(v, values);
  return values;
}

/// A loss whose gradient with respect to element i of x is slope(x[i], y[i]) / n. y is a constant, or absent.
void mean_loss(Plan& p, const char* name, Flow x, Flow y, const std::function<double(double, double)>& slope) {
  const Step s = p.step(name);
  const auto in = s.reads<float>(x, Until::backward);
  const auto constant = y ? s.reads<float>(y, Until::backward) : Input<float>{};
  s.backward([=](Context& c) {
    const std::vector<float> a = read(c, in.value), b = constant.value ? read(c, constant.value) : a;
    std::vector<float> dx = in.add ? read(c, in.grad) : std::vector<float>(a.size());
    for (size_t i = 0; i < a.size(); ++i)
      dx[i] += static_cast<float>(slope(static_cast<double>(a[i]), static_cast<double>(b[i])) /
                                  static_cast<double>(a.size()));
    c.write<float>(dx, in.grad);
  });
}
void hinge_loss(Plan& p, Flow logits, double sign, double weight) {
  mean_loss(p, "hinge", logits, {}, [=](double x, double) { return 1 + sign * x > 0 ? weight * sign : 0; });
}

struct Critic {
  std::vector<Conv1d> layers;
  Conv1d last;
  explicit Critic(Parameters& p)
      : layers{Conv1d(p, "critic.0", 1, 4, 5, down), Conv1d(p, "critic.1", 4, 4, 5, grouped)},
        last(p, "critic.2", 4, 1, 3, same) {}
  Verdict judge(Plan& p, Flow x) const {
    const Activation leaky(none(), "leaky", 0, ActivationKind::leaky_relu);
    Verdict v;
    for (const Conv1d& layer : layers) v.features.push_back(x = leaky.plan(p, layer.plan(p, x)));
    v.logits = last.plan(p, x);
    return v;
  }
  static Parameters& none() {
    static Parameters p;
    return p;
  }
};

/// Two sets of parameters with one optimizer each.
struct Models {
  Context ctx;
  Parameters of_generator, of_critic;
  ConvTranspose1d up{of_generator, "generator", 3, 1, 4, 2, 1, 0};
  Activation out{of_generator, "tanh", 1, ActivationKind::tanh};
  Critic critic{of_critic};
  std::optional<Optimizer> generator_optimizer, critic_optimizer;
  Values z, real;  // batches

  explicit Models(Device device) : ctx({.device = device, .threads = 2}) {
    std::mt19937_64 rng(seed());
    std::uniform_real_distribution<double> draw(-0.8, 0.8);
    const auto rounded = [&] { return static_cast<double>(static_cast<float>(draw(rng))); };
    for (Parameters* p : {&of_generator, &of_critic}) {
      p->allocate(ctx, true);
      std::vector<float> values(static_cast<size_t>(p->trained_elements()));
      for (float& v : values) v = static_cast<float>(rounded());
      ctx.write<float>(values, p->values());
      p->refresh(ctx);
    }
    for (int64_t i = 0; i < latents.elements(); ++i) z.push_back(rounded());
    for (int64_t i = 0; i < audio.elements(); ++i) real.push_back(rounded());
    generator_optimizer.emplace(ctx, of_generator, OptimizerConfig{.learning_rate = 0.01, .clip = 0}, "generator");
    critic_optimizer.emplace(ctx, of_critic, OptimizerConfig{.learning_rate = 0.02, .clip = 0}, "critic");
  }
  Flow generate(Plan& p) {
    const auto source = p.source<float>(latents);
    if (source.value) ctx.write<float>(std::vector<float>(z.begin(), z.end()), source.value);
    return out.plan(p, up.plan(p, source.flow));
  }
  Flow real_audio(Plan& p) {
    const auto source = p.source<float>(audio);
    if (source.value) ctx.write<float>(std::vector<float>(real.begin(), real.end()), source.value);
    return source.flow;
  }
  void teach_critic(Plan& p, Flow wanted, Flow fake) {
    hinge_loss(p, critic.judge(p, wanted).logits, -1, 1);
    hinge_loss(p, critic.judge(p, p.detach(fake)).logits, 1, 0.7);
    critic_optimizer->plan(p);
  }
  void teach_generator(Plan& p, Flow wanted, Flow fake) {
    const Frozen frozen = p.freeze(of_critic);
    const Verdict generated = critic.judge(p, fake), expected = critic.judge(p, wanted);
    mean_loss(p, "adversarial", generated.logits, {}, [](double, double) { return -1.0; });
    for (size_t i = 0; i < expected.features.size(); ++i)
      mean_loss(p, "features", generated.features[i], expected.features[i],
                [](double a, double b) { return a > b ? 2.0 : -2.0; });
    generator_optimizer->plan(p);
  }
  void whole(Plan& p) {
    const Flow fake = generate(p), wanted = real_audio(p);
    p.inner([&](Plan& d) { teach_critic(d, d.detach(wanted), fake); });
    teach_generator(p, wanted, fake);
  }
  std::vector<float> values() {
    std::vector<float> all = read(ctx, of_generator.values());
    for (const float v : read(ctx, of_critic.values())) all.push_back(v);
    return all;
  }
};

/// The same step in double.
Node* reference_step(Tape& t, const Values& z, const Values& real_values) {
  const std::vector<test::Layer> layers{conv1d("critic.0", 5, down), conv1d("critic.1", 5, grouped)};
  const test::Layer last = conv1d("critic.2", 3, same);
  struct {
    Node* logits;
    std::vector<Node*> features;
  } generated, expected;
  const auto judge = [&](auto& v, Node* x) {
    for (const test::Layer& layer : layers)
      v.features.push_back(x = leaky_relu(static_cast<double>(0.1f))(t, layer(t, x)));
    v.logits = last(t, x);
    return v.logits;
  };
  const auto hinge = [&](Node* x, double sign) {
    return mean(t, pointwise(
                       t, x, [=](double v) { return std::max(0.0, 1 + sign * v); },
                       [=](double v, double) { return 1 + sign * v > 0 ? sign : 0; }));
  };
  Node* real = t.constant(audio, real_values);
  Node* fake = tanh(
      t, conv_transpose1d("generator", 4, {.stride = 2, .left = 1, .right = 1})(t, t.constant(latents, z)));
  decltype(generated) of_real, of_fake;
  std::vector<std::pair<double, Node*>> terms{{1, hinge(judge(of_real, real), -1)},
                                              {0.7, hinge(judge(of_fake, t.detach(fake)), 1)}};
  const Tape::Frozen frozen(t, "critic.");
  judge(generated, fake), judge(expected, real);
  terms.emplace_back(-1, mean(t, generated.logits));
  for (size_t i = 0; i < expected.features.size(); ++i)
    terms.emplace_back(2, mean(t, pointwise(
                                     t, sum(t, {{1, generated.features[i]}, {-1, t.detach(expected.features[i])}}),
                                     [](double v) { return std::fabs(v); },
                                     [](double v, double) { return v > 0 ? 1.0 : -1.0; })));
  return sum(t, terms);
}

}  // namespace

TEST_CASE("adversarial step: gradients of generator and critic", "[training]") {
  for (const Device device : devices()) {
    CAPTURE(str(device));
    Models m(device);
    Plan plan(m.ctx, Purpose::training);
    plan.reserve([&](Plan& p) { m.whole(p); });
    plan.run_gradients();
    Tape tape;
    Tensors found;
    for (Parameters* p : {&m.of_generator, &m.of_critic}) {
      p->finish_gradients(m.ctx);
      tape.parameters.merge(values_of(m.ctx, *p));
      found.merge(gradients_of(m.ctx, *p));
    }
    const Comparison comparison(tape, [&](Tape& t) { return reference_step(t, m.z, m.real); });
    CHECK(comparison.exact.size() == 12);
    CHECK(comparison.blunt() == "");
    comparison.check(found);
  }
}

TEST_CASE("adversarial step: the critic has learnt before it judges for the generator", "[training]") {
  for (const Device device : devices()) {
    CAPTURE(str(device));
    Models together(device), apart(device);
    const std::vector<float> before = together.values();
    Plan step(together.ctx, Purpose::training), first(apart.ctx, Purpose::training),
        second(apart.ctx, Purpose::training);
    step.reserve([&](Plan& p) { together.whole(p); });
    first.reserve([&](Plan& p) {
      const Flow fake = apart.generate(p);
      apart.teach_critic(p, apart.real_audio(p), fake);
    });
    second.reserve([&](Plan& p) {
      const Flow fake = apart.generate(p);
      apart.teach_generator(p, apart.real_audio(p), fake);
    });
    for (int i = 0; i < 3; ++i) {
      step.run();
      first.run(), second.run();
      CHECK(together.values() == apart.values());
    }
    const std::vector<float> after = together.values();
    CHECK(after != before);
    CHECK(together.generator_optimizer->scalars().step == 3);
    CHECK(together.critic_optimizer->scalars().step == 3);
  }
}

TEST_CASE("optimizers: state by name, one set of parameters each", "[training]") {
  Models m(Device{});
  std::vector<std::string> names;
  for (const Optimizer* o : {&*m.generator_optimizer, &*m.critic_optimizer})
    for (const StateTensor& s : o->state()) names.push_back(s.name);
  CHECK(names == std::vector<std::string>{"generator.m", "generator.v", "generator.ema", "critic.m", "critic.v",
                                          "critic.ema"});
  Parameters untrained;
  untrained.add("p", {4}, {.channels = 4}, {Init::one});
  untrained.allocate(m.ctx, false);
  CHECK_THROWS_WITH(Optimizer(m.ctx, untrained, {}), Catch::Contains("have no gradients"));
  Plan plan(m.ctx, Purpose::training);
  plan.reserve([&](Plan& p) { m.teach_critic(p, m.real_audio(p), m.generate(p)); });
  const std::vector<float> generator = read(m.ctx, m.of_generator.values()), critic = read(m.ctx, m.of_critic.values());
  plan.run();
  CHECK(read(m.ctx, m.of_generator.values()) == generator);
  CHECK(read(m.ctx, m.of_critic.values()) != critic);
  CHECK(read(m.ctx, m.critic_optimizer->averaged()) != critic);
  m.critic_optimizer->reset_average();
  CHECK(read(m.ctx, m.critic_optimizer->averaged()) == read(m.ctx, m.of_critic.values()));
}

TEST_CASE("optimizers: gradients are averaged over processes before the update", "[training]") {
  /// A second process, whose gradients are zero.
  struct Idle final : Communicator {
    int64_t averaged = 0;
    int processes = 2;
    void average(Context& c, View<float> v) override {
      std::vector<float> values = read(c, v);
      for (float& x : values) x /= 2;
      c.write<float>(values, v);
      averaged += v.elements();
    }
    int rank() const override { return 0; }
    int size() const override { return processes; }
  };
  for (const Device device : devices()) {
    CAPTURE(str(device));
    Idle idle, alone;
    alone.processes = 1;
    float norm[3]{};
    for (Communicator* c : {static_cast<Communicator*>(nullptr), static_cast<Communicator*>(&alone),
                            static_cast<Communicator*>(&idle)}) {
      Models m(device);
      m.critic_optimizer.emplace(m.ctx, m.of_critic, OptimizerConfig{}, "critic", c);
      Plan plan(m.ctx, Purpose::training);
      plan.reserve([&](Plan& p) { m.teach_critic(p, m.real_audio(p), m.generate(p)); });
      plan.run();
      norm[c == nullptr ? 0 : c == &alone ? 1 : 2] = m.critic_optimizer->scalars().norm;
      // Every gradient is averaged once: effective weights and biases.
      if (c == &idle) CHECK(idle.averaged >= 1 * 4 * 5 + 2 * 4 * 5 + 4 * 3 + 9);
    }
    CHECK(norm[0] > 0);
    CHECK(norm[1] == norm[0]);
    CHECK(norm[2] == norm[0] / 2);
    CHECK(alone.averaged == 0);
  }
}
