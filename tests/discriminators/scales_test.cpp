// Discriminators of the waveform at several scales: MelGAN's layers, the signals that each scale hears, and gradients.
#include "judged.h"
#include "nacre/discriminators/signals.h"
#include "reference/signals.h"

using namespace nacre;
using namespace nacre::test;

namespace {

const DiscriminatorConfig three{.periods = {}, .windows = {}, .scales = {1, 2, 4}, .level = false};

/// The same in double. Slope and rate are those of the library's configuration.
Judge scale_judge(const ScaleDiscriminatorConfig& config) {
  return [=](Tape& t, Node* x) {
    const WeightForm form = config.norm == Norm::weight ? WeightForm::normalised : WeightForm::plain;
    Judgement v;
    for (int64_t i = 0; i < config.halvings; ++i) x = pooled(t, x);
    for (size_t i = 0; i < config.layers.size(); ++i) {
      const auto& [channels, taps, stride, groups] = config.layers[i];
      const Conv1dGeometry g{.stride = stride,
                             .groups = groups,
                             .left = taps / 2,
                             .right = taps / 2,
                             .padding = config.reflect && i == 0 ? Padding::reflect : Padding::zero};
      x = conv1d("critic.convs." + std::to_string(i) + ".0", taps, g, form)(t, x);
      v.features.push_back(x = leaky_relu(static_cast<double>(static_cast<float>(config.slope)))(t, x));
    }
    v.logits = conv1d("critic.conv_post", 3, {.left = 1, .right = 1}, form)(t, x);
    return v;
  };
}

}  // namespace

TEST_CASE("scale discriminators: gradients of both roles") {
  const std::vector<ScaleDiscriminatorConfig::Layer> layers{{4, 7}, {8, 5, 2, 4}, {6, 3, 1, 2}};
  for (const ScaleDiscriminatorConfig& config :
       {ScaleDiscriminatorConfig{.layers = layers, .slope = 0.2, .reflect = true},
        ScaleDiscriminatorConfig{.layers = layers, .slope = 0.3, .norm = Norm::none, .halvings = 1},
        ScaleDiscriminatorConfig{.layers = layers, .slope = 0.2, .reflect = true, .halvings = 2}}) {
    CAPTURE(config.halvings);
    check_judge([&](Parameters& p) { return scale_discriminator(p, "critic", config); }, scale_judge(config),
                {.batch = 2, .time = 43}, 3);
  }
}

TEST_CASE("scale discriminators: names, sizes and shapes of the published three") {
  Parameters parameters;
  const Discriminators judges(parameters, three);
  CHECK(judges.names() == std::vector<std::string>{"scale_1", "scale_2", "scale_4"});
  // Published: 5.64 M each; the sum over the layers is in scale_test.cpp.
  CHECK(parameters.effective_elements() == 3 * 5637953);
  const std::vector<Verdict> verdicts = surveyed(judges, 16386);
  REQUIRE(verdicts.size() == 3);
  int64_t time = 16386;
  for (const Verdict& v : verdicts) {
    REQUIRE(v.features.size() == 6);
    CHECK(v.features[0].shape == Shape{.batch = 2, .time = time, .channels = 16});
    CHECK(v.features[1].shape == Shape{.batch = 2, .time = (time + 3) / 4, .channels = 64});
    CHECK(v.logits.shape == Shape{.batch = 2, .time = (time + 255) / 256});
    time /= 2;
  }
}

TEST_CASE("scale discriminators: the number of a scale is the rate that it hears, in any order") {
  // Which signal a scale gets does not depend on the device, and layers of the published width are slow when emulated.
  Context ctx({.threads = 2});
  Parameters parameters;
  DiscriminatorConfig config = three;
  config.scales = {4, 1};
  const Discriminators judges(parameters, config);
  CHECK(judges.names() == std::vector<std::string>{"scale_4", "scale_1"});
  Parameters of_one;
  const Discriminator lone =
      scale_discriminator(of_one, "discriminators.0", {.slope = config.scale_slope, .reflect = true});
  parameters.allocate(ctx, false), of_one.allocate(ctx, false);
  parameters.initialise(ctx, 3);
  parameters.each_tensor(ctx,
                         [&](const std::string& name, const std::vector<int64_t>& shape, std::span<const float> v) {
                           if (name.starts_with("discriminators.0.")) REQUIRE(of_one.set_tensor(ctx, name, shape, v));
                         });
  of_one.refresh(ctx);
  std::mt19937_64 rng(seed());
  std::uniform_real_distribution<float> draw(-1, 1);
  std::vector<float> audio(2 * 600);
  for (float& x : audio) x = draw(rng);
  Plan plan(ctx, Purpose::inference);
  View<const float> pooled_inside, pooled_before;
  plan.reserve([&](Plan& p) {
    const Output<float> source = p.source<float>({.batch = 2, .time = 600});
    if (source.value) ctx.write<float>(audio, source.value);
    pooled_inside = p.result<float>(judges.plan(p, source.flow)[0].logits);
    const Flow half = pooled(p, "half", source.flow);
    pooled_before = p.result<float>(lone(p, pooled(p, "quarter", half)).logits);
  });
  plan.run();
  REQUIRE(pooled_inside.shape == Shape{.batch = 2, .time = 1});
  std::vector<float> found(2), expected(2);
  ctx.read<float>(pooled_inside, found), ctx.read<float>(pooled_before, expected);
  CHECK(found == expected);
  CHECK(found[0] != found[1]);
}

TEST_CASE("scale discriminators: what cannot be is refused") {
  using Catch::Contains;
  const auto refused = [](const ScaleDiscriminatorConfig& wrong, const char* what) {
    Parameters p;
    CHECK_THROWS_WITH(scale_discriminator(p, "critic", wrong), Contains("discriminator critic: ") && Contains(what));
  };
  refused({.slope = 0}, "slope is 0");
  refused({.slope = 1}, "slope is 1");
  refused({.norm = Norm::group}, "the outputs are normalised");
  refused({.norm = Norm::layer}, "the outputs are normalised");
  refused({.halvings = -1}, "halvings are -1");
  refused({.halvings = 31}, "halvings are 31");
  // A quarter of the audio must have one sample more than the 7 that are reflected.
  Parameters parameters;
  const Discriminators judges(parameters, three);
  CHECK(surveyed(judges, 32)[2].features[0].shape.time == 8);
  CHECK_THROWS_WITH(surveyed(judges, 31), Contains("discriminators.2: audio of 31 samples, expected at least 32"));
}

TEST_CASE("signals: pooled audio has the gradient and the receptive field of its windows") {
  const Shape shape{.batch = 2, .time = 37};
  for (const AveragePoolGeometry g :
       {AveragePoolGeometry{}, AveragePoolGeometry{.taps = 5, .stride = 3, .padding = 2, .count_padding = true}})
    for (const Device device : devices()) {
      CAPTURE(str(device), g.taps);
      Context ctx({.device = device, .threads = 2});
      Parameters parameters;
      const Conv1d generator(parameters, "generator", 1, 1, 3, {.left = 1, .right = 1});
      parameters.allocate(ctx, true);
      std::mt19937_64 rng(seed());
      std::uniform_real_distribution<float> draw(-1, 1);
      std::vector<float> values(static_cast<size_t>(parameters.trained_elements())),
          heard(static_cast<size_t>(shape.elements()));
      for (std::vector<float>* v : {&values, &heard})
        for (float& x : *v) x = draw(rng);
      ctx.write<float>(values, parameters.values());
      parameters.refresh(ctx);
      Plan plan(ctx, Purpose::training);
      Flow x, y;
      plan.reserve([&](Plan& p) {
        const Output<float> source = p.source<float>(shape);
        if (source.value) ctx.write<float>(heard, source.value);
        x = generator.plan(p, source.flow), y = pooled(p, "pooled", x, g);
        slopes_of(p, y, 0.5);
        slopes_of(p, pooled(p, "twice", y), -1);  // a second reader, and a pooled signal pooled again
        parameters.clear_gradients(p);
      });
      const Span span = plan.reach(y, {2, 3}, x);
      CHECK(span.first == 2 * g.stride - g.padding);
      CHECK(span.last == 3 * g.stride - g.padding + g.taps - 1);
      plan.run_gradients();
      parameters.finish_gradients(ctx);
      const auto model = [&](Tape& t) {
        Node* fake =
            conv1d("generator", 3, {.left = 1, .right = 1})(t, t.constant(shape, {heard.begin(), heard.end()}));
        Node* once = pooled(t, fake, g);
        return sum(t, {{1, slopes_of(t, once, 0.5)}, {1, slopes_of(t, pooled(t, once), -1)}});
      };
      Tape tape;
      tape.parameters = values_of(ctx, parameters);
      const Comparison comparison(tape, model);
      CHECK(comparison.blunt() == "");
      comparison.check(gradients_of(ctx, parameters));
      check_differences(tape, model, rng, 20);
    }
}
