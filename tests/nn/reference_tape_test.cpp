// The references of whole models (reference/tape.h and the files that use it). Their gradients are compared with finite
// differences. The rules by which gradients add up, stop and are frozen are compared with models that compute the same
// in another way.
#include "gradient_check.h"
#include "reference/layers.h"
#include "reference/losses.h"
#include "reference/quantizer.h"

namespace nacre::test {
namespace {

struct Setup {
  Tape tape;
  std::mt19937_64 rng{seed()};

  void random(const std::string& name, int64_t count, double low = -0.8, double high = 0.8) {
    std::uniform_real_distribution<double> draw(low, high);
    Values& v = tape.parameters[name];
    for (int64_t i = 0; i < count; ++i) v.push_back(draw(rng));
  }
  /// Parameters of a convolution. `rows` is the number of outputs, or of inputs for a transposed convolution.
  void conv(const std::string& name, int64_t rows, int64_t inner, int64_t taps, int64_t biases) {
    random(name + ".weight_v", rows * inner * taps);
    random(name + ".weight_g", rows, 0.5, 1.5);
    if (biases > 0) random(name + ".bias", biases);
  }
  Tensors gradients(const Model& model) {
    tape.run(model), tape.backward();
    return tape.gradients;
  }
  void check(const Model& model, int wanted = 60) { check_differences(tape, model, rng, wanted); }
};

Node* mean_square(Tape& t, Node* x) {
  return mean(t, pointwise(
                     t, x, [](double v) { return v * v; }, [](double v, double) { return 2 * v; }));
}
/// The parameter "x" through a layer, so that the gradient of the input is checked like that of a parameter.
Model from_x(Shape shape, const Layer& layer) {
  return [=](Tape& t) { return mean_square(t, layer(t, t.parameter("x", shape))); };
}
constexpr Shape shape{.batch = 2, .time = 12, .channels = 4};

}  // namespace

TEST_CASE("reference gradients: convolutions of every geometry") {
  Setup s;
  s.random("x", shape.elements());
  s.conv("conv", 6, 4, 3, 6);
  s.conv("grouped", 6, 2, 3, 6);
  s.random("plain.weight", 6 * 4 * 3);
  s.check(from_x(shape, conv1d("conv", 3, {.left = 1, .right = 1})));
  s.check(from_x(shape, conv1d("conv", 3, {.stride = 3, .dilation = 2, .left = 4, .right = 1})));
  s.check(from_x(shape, conv1d("conv", 3, {.left = 2, .right = 2, .padding = Padding::reflect})));
  s.check(from_x(shape, conv1d("grouped", 3, {.stride = 2, .groups = 2, .left = 1})));
  s.check(from_x(shape, conv1d("plain", 3, {.left = 2}, WeightForm::plain)));
}
TEST_CASE("reference gradients: transposed convolutions") {
  Setup s;
  s.random("x", shape.elements());
  s.conv("even", 4, 3, 4, 3);
  s.conv("odd", 4, 3, 6, 3);
  s.conv("grouped", 4, 3, 4, 6);
  s.random("plain.weight", 4 * 3 * 4);
  s.check(from_x(shape, conv_transpose1d("even", 4, {.stride = 2, .left = 1, .right = 1})));
  s.check(from_x(shape, conv_transpose1d("odd", 6, {.stride = 3, .left = 2, .right = 2}, 1)));
  s.check(from_x(shape, conv_transpose1d("grouped", 4, {.stride = 2, .groups = 2, .right = 2})));
  s.check(from_x(shape, conv_transpose1d("plain", 4, {.stride = 2, .right = 2}, 0, WeightForm::plain)));
  // Each sample of y comes from the samples of its own frame.
  s.tape.run([&](Tape& t) {
    Node* y = conv_transpose1d("odd", 6, {.stride = 3, .left = 2, .right = 2}, 1)(t, t.parameter("x", shape));
    CHECK(y->shape == Shape{.batch = 2, .time = 36, .channels = 3});
    return mean(t, y);
  });
}
TEST_CASE("reference gradients: activations and a residual unit") {
  Setup s;
  s.random("x", shape.elements(), -2, 2);
  s.random("snake.alpha", 4, 0.5, 2);
  s.random("beta.alpha", 4, -0.5, 0.5), s.random("beta.beta", 4, -0.5, 0.5);
  s.conv("wide", 4, 4, 3, 4);
  s.conv("narrow", 4, 4, 1, 4);
  for (const Layer& layer : {snake("snake", false), snake("beta", true), Layer(elu), Layer(tanh), leaky_relu(0.1)})
    s.check(from_x(shape, layer));
  Chain unit;
  unit << snake("snake", false) << conv1d("wide", 3, {.dilation = 3, .left = 3, .right = 3}) << elu;
  unit << conv1d("narrow", 1);
  s.check(from_x(shape, residual(unit)));
}
TEST_CASE("reference gradients: codes, straight through") {
  for (const bool factorised : {false, true}) {
    CAPTURE(factorised);
    Setup s;
    s.random("x", shape.elements());
    RvqReference q;
    q.stages = 2, q.codes = 5, q.dim = factorised ? 3 : 4, q.factorised = factorised;
    for (int64_t row = 0; row < shape.rows(); ++row) {
      q.valid.push_back(row % 5 != 0), q.used.push_back(row < shape.time ? 2 : 1);
      for (int64_t i = 0; i < q.stages; ++i) q.chosen.push_back(static_cast<int64_t>(s.rng() % 5));
    }
    for (const std::string& stage : {std::string("q.0"), std::string("q.1")}) {
      s.random(stage + (factorised ? ".codebook.weight" : ".codebook.embed"), q.codes * q.dim);
      if (!factorised) continue;
      s.conv(stage + ".in_proj", q.dim, 4, 1, q.dim);
      s.conv(stage + ".out_proj", 4, q.dim, 1, 4);
    }
    s.check([&](Tape& t) {
      const Quantised y = quantise(t, t.parameter("x", shape), "q", q);
      return sum(t, {{1, mean_square(t, y.y)}, {0.3, y.commitment}, {factorised ? 0.7 : 0, y.codebook}});
    });
  }
}
TEST_CASE("reference gradients: losses on audio") {
  Setup s;
  const Shape audio{.batch = 2, .time = 48};
  s.random("x", audio.elements()), s.random("target", audio.elements());
  SpectralConfig spectral;
  spectral.sample_rate = 8000;
  spectral.scales = {
      {.window = 16, .hop = 4, .mels = 3, .magnitude = 1, .log_magnitude = 2, .mel_magnitude = 3, .mel_log = 1}};
  s.check([&](Tape& t) {
    Node* x = t.parameter("x", audio);
    const Values& target = t.parameters.at("target");
    const SpectralNodes spectra = spectral_loss(t, spectral, x, target, {48, 30});
    return sum(t, {{2, waveform_loss(t, x, target, {48, 30})},
                   {3, waveform_loss(t, x, target, {20, 48}, true)},
                   {0.5, spectra.stft},
                   {0.25, spectra.mel}});
  });
}

TEST_CASE("reference gradients: a layer in two places adds up") {
  Setup s;
  s.random("x", shape.elements());
  s.conv("shared", 4, 4, 3, 4);
  for (const char* part : {".weight_v", ".weight_g", ".bias"})
    s.tape.parameters[std::string("first") + part] = s.tape.parameters[std::string("second") + part] =
        s.tape.parameters[std::string("shared") + part];
  const auto twice = [](const std::string& first, const std::string& second) {
    Chain c;
    c << conv1d(first, 3, {.left = 1, .right = 1}) << tanh << conv1d(second, 3, {.left = 1, .right = 1});
    return from_x(shape, c);
  };
  s.check(twice("shared", "shared"));
  const Tensors together = s.gradients(twice("shared", "shared")), apart = s.gradients(twice("first", "second"));
  CHECK(together.size() == 4);
  for (const char* part : {".weight_v", ".weight_g", ".bias"}) {
    const Values &all = together.at(std::string("shared") + part), &a = apart.at(std::string("first") + part),
                 &b = apart.at(std::string("second") + part);
    for (size_t i = 0; i < all.size(); ++i) CHECK(all[i] == a[i] + b[i]);
    CHECK(largest(a) > 0);
    CHECK(largest(b) > 0);
  }
}
TEST_CASE("reference gradients: a value that is read several times") {
  Setup s;
  s.random("x", shape.elements());
  s.conv("conv", 4, 4, 1, 4);
  s.check([](Tape& t) {
    Node* h = conv1d("conv", 1)(t, t.parameter("x", shape));
    Node* both = sum(t, {{2, tanh(t, h)}, {-0.5, h}, {1, h}});
    return sum(t, {{1, mean_square(t, both)}, {0.25, mean(t, h)}});
  });
}
TEST_CASE("reference gradients: nothing flows back through a detached value") {
  Setup s;
  s.random("x", shape.elements());
  s.conv("conv", 4, 4, 1, 4);
  const auto distance = [](const std::function<Node*(Tape&, Node*)>& target) -> Model {
    return [target](Tape& t) {
      Node* h = conv1d("conv", 1)(t, t.parameter("x", shape));
      return mean_square(t, sum(t, {{1, tanh(t, h)}, {-1, target(t, h)}}));
    };
  };
  const Model detached = distance([](Tape& t, Node* h) { return t.detach(h); });
  s.check(detached);
  Values h;
  s.tape.run(distance([&](Tape&, Node* n) { return h = n->value, n; }));
  CHECK(s.gradients(detached) == s.gradients(distance([&](Tape& t, Node*) { return t.constant(shape, h); })));
  CHECK(s.gradients(detached) != s.gradients(distance([](Tape&, Node* n) { return n; })));
  CHECK_THROWS_AS(s.gradients([](Tape& t) { return mean(t, t.detach(t.parameter("x", shape))); }), std::logic_error);
}
TEST_CASE("reference gradients: frozen parameters let gradients pass") {
  Setup s;
  s.random("x", shape.elements());
  s.conv("first", 4, 4, 3, 4), s.conv("second", 4, 4, 3, 4);
  const Layer first = conv1d("first", 3), second = conv1d("second", 3);
  const auto model = [&](const std::string& frozen) -> Model {
    return [=](Tape& t) {
      Node* h = first(t, t.parameter("x", shape));
      const Tape::Frozen f(t, frozen);
      return mean_square(t, second(t, tanh(t, h)));
    };
  };
  s.check(model("second."));
  Tensors free = s.gradients(model("nothing"));
  CHECK(free.size() == 7);
  const Tensors frozen = s.gradients(model("second."));
  for (const char* part : {".weight_v", ".weight_g", ".bias"}) free.erase(std::string("second") + part);
  CHECK(frozen == free);
}

TEST_CASE("reference gradients: a generator and a critic in one step") {
  Setup s;
  const Shape latents{.batch = 2, .time = 6, .channels = 3}, audio{.batch = 2, .time = 12};
  s.random("latents", latents.elements()), s.random("real", audio.elements());
  s.conv("generator", 3, 1, 4, 1);
  s.conv("critic.0", 4, 1, 5, 4), s.conv("critic.1", 4, 2, 5, 4), s.conv("critic.2", 1, 4, 3, 1);
  struct Verdict {
    Node* logits;
    std::vector<Node*> features;
  };
  const std::vector<Layer> layers{conv1d("critic.0", 5, {.stride = 2, .left = 2, .right = 2}),
                                  conv1d("critic.1", 5, {.stride = 2, .groups = 2, .left = 2, .right = 2})};
  const Layer last = conv1d("critic.2", 3, {.left = 1, .right = 1});
  const auto critic = [&](Tape& t, Node* x) {
    Verdict v;
    for (const Layer& layer : layers) v.features.push_back(x = leaky_relu(0.1)(t, layer(t, x)));
    v.logits = last(t, x);
    return v;
  };
  /// Mean of max(0, 1 + sign x).
  const auto hinge = [](Tape& t, Node* x, double sign) {
    return mean(t, pointwise(
                       t, x, [=](double v) { return std::max(0.0, 1 + sign * v); },
                       [=](double v, double) { return 1 + sign * v > 0 ? sign : 0; }));
  };
  const auto distance = [](Tape& t, Node* a, Node* b) {
    return mean(t, pointwise(
                       t, sum(t, {{1, a}, {-1, b}}), [](double v) { return std::fabs(v); },
                       [](double v, double) { return v > 0 ? 1.0 : -1.0; }));
  };
  const auto step = [&](double critic_weight, double generator_weight) -> Model {
    return [=](Tape& t) {
      Node* real = t.constant(audio, t.parameters.at("real"));
      const Layer generator = conv_transpose1d("generator", 4, {.stride = 2, .left = 1, .right = 1});
      Node* fake = tanh(t, generator(t, t.constant(latents, t.parameters.at("latents"))));
      Node* of_critic =
          sum(t, {{1, hinge(t, critic(t, real).logits, -1)}, {0.7, hinge(t, critic(t, t.detach(fake)).logits, 1)}});
      const Tape::Frozen frozen(t, "critic.");
      const Verdict generated = critic(t, fake), wanted = critic(t, real);
      std::vector<std::pair<double, Node*>> of_generator{{-1, mean(t, generated.logits)}};
      for (size_t i = 0; i < wanted.features.size(); ++i)
        of_generator.emplace_back(2, distance(t, generated.features[i], t.detach(wanted.features[i])));
      return sum(t, {{critic_weight, of_critic}, {generator_weight, sum(t, of_generator)}});
    };
  };
  s.check(step(1, 1), 100);
  const Tensors both = s.gradients(step(1, 1)), critics = s.gradients(step(1, 0)), generators = s.gradients(step(0, 1));
  CHECK(both.size() == 12);
  for (const auto& [name, g] : both) {
    CAPTURE(name);
    const bool of_critic = name.find("critic.") == 0;
    CHECK(g == (of_critic ? critics : generators).at(name));
    CHECK(largest(g) > 0);
    CHECK(largest((of_critic ? generators : critics).at(name)) == 0);
  }
}

TEST_CASE("reference gradients: balanced losses come together at the fork") {
  Setup s;
  s.random("x", shape.elements());
  nacre::reference::Balancer balancer{
      .decay = 0.5, .total_norm = 2, .eps = 0, .balanced = true, .sums = {1, 3}, .ones = {1, 1}};
  const auto model = [&](const nacre::reference::Balancer* b) -> Model {
    return [=](Tape& t) {
      Node* x = t.parameter("x", shape);
      const std::vector<Node*> to = b != nullptr ? balance(t, x, *b, {1, 3}) : std::vector<Node*>{x, x};
      return sum(t, {{b != nullptr ? 1 : 0, mean_square(t, to[0])}, {1, mean(t, tanh(t, to[1]))}});
    };
  };
  const Values found = s.gradients(model(&balancer)).at("x"), second = s.gradients(model(nullptr)).at("x");
  const Values& x = s.tape.parameters.at("x");
  Values first;
  for (const double v : x) first.push_back(2 * v / static_cast<double>(x.size()));
  const auto factor = [](const Values& g, double sum,
                         double share) {  // moving averages of norms: (sum / 2 + norm) / 1.5
    return 2 * share / ((sum / 2 + nacre::reference::norm(g)) / 1.5);
  };
  for (size_t i = 0; i < x.size(); ++i) {
    const double a = factor(first, 1, 0.25) * first[i], b = factor(second, 3, 0.75) * second[i];
    CHECK(std::fabs(found[i] - (a + b)) <= 100 * 0x1p-53 * (std::fabs(a) + std::fabs(b)));  // norms have 48 roundings
  }
}

TEST_CASE("reference gradients: finite differences notice an error, and noise goes as it came") {
  Setup s;
  s.random("x", shape.elements());
  s.conv("conv", 4, 4, 3, 4);
  const Model model = from_x(shape, conv1d("conv", 3));
  Tensors g = s.gradients(model);
  CHECK(worst_difference(s.tape, model, g, s.rng, 1).error <= 1);
  for (auto& [name, v] : g) {
    CAPTURE(name);
    Tensors wrong = g;
    for (double& x : wrong.at(name)) x *= 1.01;
    CHECK(worst_difference(s.tape, model, wrong, s.rng, 1).error > 1);
  }
  const Comparison comparison(s.tape, model);
  CHECK(comparison.exact == g);
  CHECK(s.gradients(model) == g);
  for (const auto& [name, allowed] : comparison.allowed) {
    CHECK(allowed > 0);
    CHECK(allowed < 1e-4 * largest(g.at(name)));
  }
  CHECK(comparison.blunt().empty());
}

}  // namespace nacre::test
