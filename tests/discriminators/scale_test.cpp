// The discriminator of the waveform: shapes, size, and gradients against the reference in double precision.
#include "nacre/discriminators/discriminator.h"

#include <array>

#include "gradient_check.h"
#include "reference/layers.h"
#include "reference/losses.h"

using namespace nacre;
using namespace nacre::test;

namespace {

std::string refusal(const ScaleDiscriminatorConfig& config) {
  Parameters p;
  try {
    scale_discriminator(p, "critic", config);
  } catch (const Error& e) {
    CHECK(e.kind() == ErrorKind::usage);
    return e.what();
  }
  return "";
}

/// A loss whose gradient with respect to every element is `slope`.
void slope_of(Plan& p, Flow x, float slope) {
  const Step s = p.step("slope");
  const auto in = s.reads<float>(x);
  s.backward([=](Context& c) {
    std::vector<float> dx(static_cast<size_t>(in.grad.elements()), 0.0f);
    if (in.add) c.read<float>(View<const float>(in.grad), dx);
    for (float& d : dx) d += slope;
    c.write<float>(dx, in.grad);
  });
}

}  // namespace

TEST_CASE("scale discriminator: the published layers") {
  Parameters parameters;
  const Discriminator judge = scale_discriminator(parameters, "critic");
  // Weights and biases, layer by layer. Published: 5.64 M.
  CHECK(parameters.effective_elements() == (15 + 1) * 16 + (4 * 41 + 1) * 64 + (4 * 41 + 1) * 256 +
                                               (4 * 41 + 1) * 1024 + (4 * 41 + 1) * 1024 + (1024 * 5 + 1) * 1024 +
                                               (1024 * 3 + 1));
  Context ctx({.threads = 1});
  Plan plan(ctx, Purpose::inference);
  Verdict v;
  Flow audio;
  plan.survey([&](Plan& p) { v = judge(p, audio = p.source<float>({.batch = 2, .time = 8192}).flow); });
  CHECK(v.logits.shape == Shape{.batch = 2, .time = 32});
  REQUIRE(v.features.size() == 6);
  const std::array<std::array<int64_t, 2>, 6> expected{
      {{8192, 16}, {2048, 64}, {512, 256}, {128, 1024}, {32, 1024}, {32, 1024}}};
  for (size_t i = 0; i < 6; ++i)
    CHECK(v.features[i].shape == Shape{.batch = 2, .time = expected[i][0], .channels = expected[i][1]});
  // Half of the field on each side: 7 + 20 (1 + 4 + 16 + 64) + 2 * 256 + 256.
  const Span field = plan.reach(v.logits, {0, 0}, audio);
  CHECK(field.first == -(7 + 20 * 85 + 3 * 256));
  CHECK(field.last == 7 + 20 * 85 + 3 * 256);
}

TEST_CASE("scale discriminator: invalid layers are refused") {
  CHECK(refusal({.layers = {{4, 5}, {8, 5, 2, 2}}, .last_taps = 1}) == "");
  CHECK_THAT(refusal({.layers = {{4, 5}, {6, 5, 2, 4}}}),
             Catch::Contains("critic: layer 1 has 4 to 6 channels") && Catch::Contains("4 groups"));
  CHECK_THAT(refusal({.layers = {{4, 4}}}), Catch::Contains("4 taps"));
  CHECK_THAT(refusal({.layers = {{0, 5}}}), Catch::Contains("1 to 0 channels"));
  CHECK_THAT(refusal({.layers = {{4, 5, 0}}}), Catch::Contains("stride 0"));
  CHECK_THAT(refusal({.layers = {{4, 5}}, .last_taps = 2}), Catch::Contains("last_taps is 2"));
}

TEST_CASE("scale discriminator: gradients of logits and features, in two places of one plan") {
  const ScaleDiscriminatorConfig config{.layers = {{4, 5}, {8, 7, 2, 4}, {6, 3, 1, 2}}, .last_taps = 3};
  const Shape shape{.batch = 2, .time = 21};
  for (const Device device : devices()) {
    CAPTURE(str(device));
    Context ctx({.device = device, .threads = 2});
    Parameters parameters;
    const Discriminator judge = scale_discriminator(parameters, "critic", config);
    parameters.allocate(ctx, true);
    std::mt19937_64 rng(seed());
    std::uniform_real_distribution<float> draw(-0.8f, 0.8f);
    std::vector<float> values(static_cast<size_t>(parameters.trained_elements())), real(42), fake(42);
    for (std::vector<float>* v : {&values, &real, &fake})
      for (float& x : *v) x = draw(rng);
    ctx.write<float>(values, parameters.values());
    parameters.refresh(ctx);
    Plan plan(ctx, Purpose::training);
    plan.reserve([&](Plan& p) {
      const auto of = [&](const std::vector<float>& audio) {
        const Output<float> source = p.source<float>(shape);
        if (source.value) ctx.write<float>(audio, source.value);
        return judge(p, source.flow);
      };
      const Verdict a = of(real), b = of(fake);
      slope_of(p, a.logits, 0.5f), slope_of(p, b.logits, -0.25f);
      for (const Flow& f : b.features) slope_of(p, f, 0.125f);
      parameters.clear_gradients(p);
    });
    plan.run_gradients();
    parameters.finish_gradients(ctx);

    const auto wide = [](int64_t taps, int64_t stride, int64_t groups) {
      return Conv1dGeometry{.stride = stride, .groups = groups, .left = (taps - 1) / 2, .right = (taps - 1) / 2};
    };
    const std::vector<test::Layer> layers{conv1d("critic.convs.0.0", 5, wide(5, 1, 1)),
                                          conv1d("critic.convs.1.0", 7, wide(7, 2, 4)),
                                          conv1d("critic.convs.2.0", 3, wide(3, 1, 2))};
    const test::Layer last = conv1d("critic.conv_post", 3, wide(3, 1, 1));
    const auto total = [&](Tape& t) {
      std::vector<std::pair<double, Node*>> terms;
      const auto add = [&](double slope, Node* x) {
        terms.emplace_back(slope * static_cast<double>(x->value.size()), mean(t, x));
      };
      for (const bool is_real : {true, false}) {
        const std::vector<float>& audio = is_real ? real : fake;
        Node* x = t.constant(shape, {audio.begin(), audio.end()});
        for (const test::Layer& layer : layers) {
          x = leaky_relu(static_cast<double>(0.1f))(t, layer(t, x));
          if (!is_real) add(0.125, x);
        }
        add(is_real ? 0.5 : -0.25, last(t, x));
      }
      return sum(t, terms);
    };
    Tape tape;
    tape.parameters = values_of(ctx, parameters);
    const Comparison comparison(tape, total);
    CHECK(comparison.exact.size() == 12);
    CHECK(comparison.blunt() == "");
    comparison.check(gradients_of(ctx, parameters));
    check_differences(tape, total, rng, 40);
  }
}
