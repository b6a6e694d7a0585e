// The discriminators of DAC and EnCodec against the published code: logits, activations, losses, gradients, one step of
// DAC's optimizer and three of EnCodec's balancer. tests/golden/make_dac_discriminator.py and
// make_encodec_discriminator.py made the fixtures and describe their tensors.
#include <array>
#include <cmath>
#include <map>

#include "golden_file.h"
#include "harness.h"
#include "nacre/discriminators/signals.h"
#include "nacre/losses/adversarial.h"
#include "nacre/ops/balancer.h"
#include "nacre/training/optimizer.h"

using namespace nacre;
using namespace nacre::test;

namespace {

constexpr int64_t batch = 2;
const DiscriminatorConfig narrow{
    .periods = {2, 3, 5}, .period_channels = {2, 4, 8, 12, 12}, .windows = {256, 128}, .window_channels = 3};
const DiscriminatorConfig narrow_encodec{.periods = {},
                                         .windows = {},
                                         .stft_windows = {256, 128},
                                         .stft_channels = 3,
                                         .level = false,
                                         .loss = AdversarialKind::hinge};
struct Published {
  const char* file;
  const DiscriminatorConfig& config;
};
const Published all_published[] = {{"dac_discriminator.safetensors", narrow},
                                   {"encodec_discriminator.safetensors", narrow_encodec}};

/// |found - expected| / |expected|, both in L2.
double distance(std::span<const float> found, std::span<const float> expected) {
  REQUIRE(found.size() == expected.size());
  double difference = 0, size = 0;
  for (size_t i = 0; i < found.size(); ++i) {
    const auto a = static_cast<double>(found[i]), b = static_cast<double>(expected[i]);
    difference += (a - b) * (a - b), size += b * b;
  }
  return std::sqrt(difference / size);
}
std::array<double, 2> norms(std::span<const float> v) {
  std::array<double, 2> n{};
  for (const float x : v)
    n[0] += std::fabs(static_cast<double>(x)), n[1] += static_cast<double>(x) * static_cast<double>(x);
  return {n[0], std::sqrt(n[1])};
}
std::vector<float> values_of(Context& ctx, View<const float> v) {
  std::vector<float> values(static_cast<size_t>(v.elements()));
  ctx.read<float>(v, values);
  return values;
}

std::vector<float> golden_values(const Safetensors& golden, const std::string& name) {
  return golden_tensor(golden, name).values;
}

/// An activation in PyTorch's layout: [batch, channels, length, period] from [batch * period, length, 1, channels], or
/// [batch, channels, frames, bins] from [batch, frames, bins, channels].
std::vector<float> channels_first(const std::vector<float>& from, Shape s, int64_t items) {
  std::vector<float> to(from.size());
  const int64_t columns = s.width * s.batch / items;  // a period's items, or bins
  for (int64_t b = 0; b < items; ++b)
    for (int64_t t = 0; t < s.time; ++t)
      for (int64_t w = 0; w < columns; ++w)
        for (int64_t c = 0; c < s.channels; ++c) {
          const int64_t row = s.width == 1 ? (b * columns + w) * s.time + t : (b * s.time + t) * columns + w;
          to[static_cast<size_t>(((b * s.channels + c) * s.time + t) * columns + w)] =
              from[static_cast<size_t>(row * s.channels + c)];
        }
  return to;
}

/// Convolutions of periods have no axis for the period here: [out, in, taps, 1] is [out, in, taps].
std::vector<int64_t> without_period(const std::string& name, size_t periods, std::vector<int64_t> shape) {
  const bool of_period = name < "discriminators." + std::to_string(periods);
  if (of_period && shape.size() == 4) shape.pop_back();
  return shape;
}

/// Every value on every device.
template <class T, size_t n>
std::vector<std::pair<Device, T>> with_devices(const T (&values)[n]) {
  std::vector<std::pair<Device, T>> all;
  for (const Device device : devices())
    for (const T& v : values) all.emplace_back(device, v);
  return all;
}

struct Judges {
  Judges(Context& context, const Safetensors& golden, const DiscriminatorConfig& config)
      : ctx(context), networks(parameters, config) {
    parameters.allocate(ctx, true);
    size_t set = 0, all = 0;
    for (const StoredTensor& t : golden.tensors()) {
      if (!t.name.starts_with("weights.")) continue;
      const std::string name = t.name.substr(8);
      REQUIRE(parameters.set_tensor(ctx, name, without_period(name, config.periods.size(), t.shape), to_floats(t)));
      ++set;
    }
    parameters.each_tensor(ctx,
                           [&](const std::string&, const std::vector<int64_t>&, std::span<const float>) { ++all; });
    CHECK(set == all);
    parameters.refresh(ctx);
  }
  Context& ctx;
  Parameters parameters;
  Discriminators networks;
};

}  // namespace

TEST_CASE("published discriminators: logits and activations") {
  for (const auto& [device, published] : with_devices(all_published)) {
    CAPTURE(str(device), published.file);
    const Safetensors golden = golden_file(published.file);
    Context ctx({.device = device, .threads = 2});
    const Judges judges(ctx, golden, published.config);
    for (const char* which : {"real", "fake"}) {
      const std::vector<float> audio = golden_values(golden, which);
      Plan plan(ctx, Purpose::inference);
      std::vector<Verdict> verdicts;
      std::vector<std::vector<View<const float>>> activations;
      View<float> source;
      plan.reserve([&](Plan& p) {
        const Output<float> in = p.source<float>({.batch = batch, .time = static_cast<int64_t>(audio.size()) / batch});
        source = in.value;
        verdicts = judges.networks.plan(p, in.flow);
        activations.clear();
        for (const Verdict& v : verdicts) {
          activations.emplace_back();
          for (const Flow f : v.features) activations.back().push_back(p.result<float>(f));
          activations.back().push_back(p.result<float>(v.logits));
        }
      });
      ctx.write<float>(audio, source);
      plan.run();
      REQUIRE(verdicts.size() == judges.networks.names().size());
      for (size_t d = 0; d < verdicts.size(); ++d) {
        const std::string at = std::to_string(d) + ".";
        const std::vector<float> expected_norms = golden_values(golden, "norms." + at + which);
        REQUIRE(expected_norms.size() == 2 * activations[d].size());
        for (size_t i = 0; i < activations[d].size(); ++i) {
          CAPTURE(which, d, i);
          const View<const float> v = activations[d][i];
          const std::vector<float> found = channels_first(values_of(ctx, v), v.shape, batch);
          const std::array<double, 2> n = norms(found);
          for (size_t k = 0; k < 2; ++k)
            CHECK(std::fabs(n[k] / static_cast<double>(expected_norms[2 * i + k]) - 1) < 1e-5);
          const std::string name = i + 1 == activations[d].size() ? "logits." + at + which
                                                                  : "features." + at + std::to_string(i) + "." + which;
          if (golden.find(name) != nullptr) CHECK(distance(found, golden_values(golden, name)) < 1e-5);
        }
      }
    }
  }
}

TEST_CASE("published discriminators: the generator's losses and their gradient") {
  struct Row {
    Published published;
    AdversarialKind kind;
    bool relative;
    const char *loss, *feature, *gradient;
  };
  const Row rows[] = {
      {all_published[0], AdversarialKind::least_squares, false, "loss.generator", "loss.feature", "gradient.fake"},
      {all_published[1], AdversarialKind::hinge, true, "loss.hinge", "loss.feature_relative", "gradient.fake.hinge"},
      {all_published[1], AdversarialKind::hinge_linear, false, "loss.hinge_linear", "loss.feature",
       "gradient.fake.hinge_linear"}};
  for (const auto& [device, of] : with_devices(rows)) {
    CAPTURE(str(device), of.gradient);
    const Safetensors golden = golden_file(of.published.file);
    const std::vector<float> real = golden_values(golden, "real"), fake = golden_values(golden, "fake");
    const Shape shape{.batch = batch, .time = static_cast<int64_t>(real.size()) / batch};
    const AdversarialKind kind = of.kind;
    Context ctx({.device = device, .threads = 2});
    Judges judges(ctx, golden, of.published.config);
    LossConfig config;
    config.balanced = false, config.adversarial = 1, config.feature = 2, config.feature_relative = of.relative;
    Plan plan(ctx, Purpose::training);
    View<float> of_real, of_fake, values;
    View<const float> gradient;
    plan.reserve([&](Plan& p) {
      const Output<float> a = p.source<float>(shape), b = p.source<float>(shape, true);
      of_real = a.value, of_fake = b.value, gradient = b.grad;
      const Frozen frozen = p.freeze(judges.parameters);
      const Loss loss = adversarial_loss_of(config, kind, judges.networks, a.flow);
      values = p.persistent<float>({.channels = 2});
      loss.plan(p, {.estimates = std::span(&b.flow, 1), .target = a.value, .lengths = {}, .values = values});
    });
    ctx.write<float>(real, of_real);
    ctx.write<float>(fake, of_fake);
    plan.run_gradients();
    const std::vector<float> losses = values_of(ctx, values);
    CHECK(std::fabs(losses[0] / golden_values(golden, of.loss).at(0) - 1) < 1e-5f);
    CHECK(std::fabs(losses[1] / golden_values(golden, of.feature).at(0) - 1) < 1e-5f);
    CHECK(distance(values_of(ctx, gradient), golden_values(golden, of.gradient)) < 1e-4);
  }
}

TEST_CASE("published discriminators: their loss, its gradients and a step of their optimizer") {
  const Safetensors golden = golden_file("dac_discriminator.safetensors");
  const std::vector<float> real = golden_values(golden, "real"), fake = golden_values(golden, "fake");
  const Shape shape{.batch = batch, .time = static_cast<int64_t>(real.size()) / batch};
  for (const Device device : devices()) {
    CAPTURE(str(device));
    Context ctx({.device = device, .threads = 2});
    Judges judges(ctx, golden, narrow);
    Optimizer optimizer(ctx, judges.parameters,
                        {.learning_rate = narrow.learning_rate,
                         .beta1 = narrow.beta1,
                         .beta2 = narrow.beta2,
                         .weight_decay = narrow.weight_decay,
                         .clip = narrow.clip,
                         .ema_decay = 0},
                        "discriminator");
    Plan plan(ctx, Purpose::training);
    View<float> of_real, of_fake;
    PlannedVerdicts verdicts;
    plan.reserve([&](Plan& p) {
      const Output<float> a = p.source<float>(shape), b = p.source<float>(shape);
      of_real = a.value, of_fake = b.value;
      verdicts = plan_discriminator_losses(p, judges.networks, a.value, b.flow, AdversarialKind::least_squares);
      optimizer.plan(p);
    });
    ctx.write<float>(real, of_real);
    ctx.write<float>(fake, of_fake);
    plan.run_gradients();
    judges.parameters.finish_gradients(ctx);
    double loss = 0;
    for (const float v : values_of(ctx, verdicts.losses)) loss += static_cast<double>(v);
    CHECK(std::fabs(loss / static_cast<double>(golden_values(golden, "loss.discriminator").at(0)) - 1) < 1e-5);
    // Norms of all gradients, in the order of PyTorch's names; each_tensor() also sorts by name.
    const std::vector<float> expected_norms = golden_values(golden, "norms.gradient");
    size_t at = 0;
    double square = 0;
    judges.parameters.each_tensor(
        ctx, judges.parameters.gradients(),
        [&](const std::string& name, const std::vector<int64_t>&, std::span<const float> gradient) {
          CAPTURE(name);
          const double norm = norms(gradient)[1];
          square += norm * norm;
          REQUIRE(at < expected_norms.size());
          CHECK(std::fabs(norm / static_cast<double>(expected_norms[at++]) - 1) < 1e-4);
          if (golden.find("gradient." + name) != nullptr)
            CHECK(distance(gradient, golden_values(golden, "gradient." + name)) < 1e-4);
        });
    CHECK(at == expected_norms.size());
    const auto norm = static_cast<double>(golden_values(golden, "norm.discriminator").at(0));
    CHECK(std::fabs(std::sqrt(square) / norm - 1) < 1e-5);
    CHECK(norm > narrow.clip);

    plan.run();
    CHECK(std::fabs(static_cast<double>(optimizer.scalars().norm) / norm - 1) < 1e-5);
    int followed = 0;
    const auto compare = [&](const char* what, View<const float> block) {
      judges.parameters.each_tensor(
          ctx, block, [&](const std::string& name, const std::vector<int64_t>&, std::span<const float> values) {
            const std::string expected = std::string(what) + "." + name;
            if (golden.find(expected) == nullptr) return;
            CAPTURE(expected);
            CHECK(distance(values, golden_values(golden, expected)) < 1e-4);
            ++followed;
          });
    };
    compare("stepped", judges.parameters.values());
    compare("moment", optimizer.state().at(0).values);
    CHECK(followed == 10);
  }
}

TEST_CASE("published discriminators: shapes and sizes of the default configuration") {
  const Safetensors golden = golden_file("dac_discriminator.safetensors");
  Parameters parameters;
  const Discriminators networks(parameters, {});
  // Section 4 of the description of DAC: 5 x 8218433 + 3 x 470529.
  CHECK(parameters.effective_elements() == 5 * 8218433 + 3 * 470529);
  Context ctx({.threads = 1});
  Plan plan(ctx, Purpose::inference);
  std::vector<Verdict> verdicts;
  plan.survey([&](Plan& p) { verdicts = networks.plan(p, p.source<float>({.time = 16758}).flow); });
  const std::vector<float> shapes = golden_values(golden, "shapes.default");
  const std::array<int64_t, 5> all_periods{2, 3, 5, 7, 11};
  REQUIRE(verdicts.size() == 8);
  REQUIRE(shapes.size() == 32);
  size_t features = 0;
  for (size_t i = 0; i < 8; ++i) {
    CAPTURE(i);
    const Shape s = verdicts[i].logits.shape;
    const auto expected = [&](size_t k) { return static_cast<int64_t>(shapes[4 * i + k]); };
    CHECK(s.channels == expected(1));
    CHECK(s.time == expected(2));
    CHECK((i < 5 ? s.batch : s.width) == expected(3));
    if (i < 5) CHECK(s.batch == all_periods[i]);
    features += verdicts[i].features.size();
  }
  CHECK(features == 100);
}

TEST_CASE("published discriminators: EnCodec's loss and its gradients") {
  const Safetensors golden = golden_file("encodec_discriminator.safetensors");
  const std::vector<float> real = golden_values(golden, "real"), fake = golden_values(golden, "fake");
  const Shape shape{.batch = batch, .time = static_cast<int64_t>(real.size()) / batch};
  for (const Device device : devices()) {
    CAPTURE(str(device));
    Context ctx({.device = device, .threads = 2});
    Judges judges(ctx, golden, narrow_encodec);
    Plan plan(ctx, Purpose::training);
    View<float> of_real, of_fake;
    PlannedVerdicts verdicts;
    plan.reserve([&](Plan& p) {
      const Output<float> a = p.source<float>(shape), b = p.source<float>(shape);
      of_real = a.value, of_fake = b.value;
      verdicts = plan_discriminator_losses(p, judges.networks, a.value, b.flow, AdversarialKind::hinge_linear);
      judges.parameters.clear_gradients(p);
    });
    ctx.write<float>(real, of_real);
    ctx.write<float>(fake, of_fake);
    plan.run_gradients();
    judges.parameters.finish_gradients(ctx);
    double loss = 0;
    for (const float v : values_of(ctx, verdicts.losses)) loss += static_cast<double>(v);
    CHECK(std::fabs(loss / static_cast<double>(golden_values(golden, "loss.discriminator").at(0)) - 1) < 1e-5);
    const std::vector<float> expected_norms = golden_values(golden, "norms.gradient");
    size_t at = 0, followed = 0;
    judges.parameters.each_tensor(
        ctx, judges.parameters.gradients(),
        [&](const std::string& name, const std::vector<int64_t>&, std::span<const float> gradient) {
          CAPTURE(name);
          REQUIRE(at < expected_norms.size());
          CHECK(std::fabs(norms(gradient)[1] / static_cast<double>(expected_norms[at++]) - 1) < 1e-4);
          if (golden.find("gradient." + name) == nullptr) return;
          CHECK(distance(gradient, golden_values(golden, "gradient." + name)) < 1e-4);
          ++followed;
        });
    CHECK(at == expected_norms.size());
    CHECK(followed == 5);
  }
}

TEST_CASE("published discriminators: EnCodec's balancer") {
  const Safetensors golden = golden_file("encodec_discriminator.safetensors");
  const Shape s{.batch = 4, .time = 50};
  for (const Device device : devices()) {
    Case c("published balancer", device, s);
    auto &state = c.zeros("state", {.channels = 6}), &shares = c.output("shares", {.channels = 3});
    auto& joint = c.output("joint", s);
    for (int step = 0; step < 3; ++step) {
      CAPTURE(str(device), step);
      const std::string at = "balancer." + std::to_string(step) + ".";
      auto& gradients = c.values("gradients", {.batch = 12, .time = 50}, golden_values(golden, at + "gradients"));
      Balancer a{.weights = {4, 4, 1},
                 .count = 3,
                 .state = state,
                 .shares = shares,
                 .gradient = joint,
                 .scratch = c.scratch(balancer_scratch(c.ctx, s, 3, BalancerNorm::item)),
                 .norm = BalancerNorm::item};
      for (size_t i = 0; i < 3; ++i)
        a.gradients[i] = View<const float>(gradients.data() + static_cast<int64_t>(i) * s.elements(), s);
      balancer(c.ctx, a);
      CHECK(distance(joint.read(), golden_values(golden, at + "joint")) < 1e-5);
    }
  }
}

TEST_CASE("published discriminators: EnCodec's defaults, and audio that is too short") {
  const Safetensors golden = golden_file("encodec_discriminator.safetensors");
  Parameters parameters;
  const DiscriminatorConfig config{.periods = {}, .windows = {}, .stft_windows = {1024, 2048, 512}, .level = false};
  const Discriminators networks(parameters, config);
  CHECK(parameters.effective_elements() == 3 * 94337);
  CHECK(networks.names() == std::vector<std::string>{"stft_1024", "stft_2048", "stft_512"});
  Context ctx({.threads = 1});
  std::vector<Verdict> verdicts;
  const auto survey = [&](int64_t time) {
    Plan plan(ctx, Purpose::inference);
    plan.survey([&](Plan& p) { verdicts = networks.plan(p, p.source<float>({.time = time}).flow); });
  };
  survey(24000);
  const std::vector<float> shapes = golden_values(golden, "shapes.default");
  REQUIRE(verdicts.size() == 3);
  for (size_t i = 0; i < 3; ++i) {
    const Shape s = verdicts[i].logits.shape;
    CHECK(s ==
          Shape{.time = static_cast<int64_t>(shapes[4 * i + 2]), .width = static_cast<int64_t>(shapes[4 * i + 3])});
    CHECK(verdicts[i].features.size() == 5);
  }
  survey(2048);
  CHECK_THROWS_WITH(survey(2047), Catch::Contains("discriminators.1: audio of 2047 samples") &&
                                      Catch::Contains("window of 2048") && Catch::Contains("longer segments"));
  const auto refused = [](const StftDiscriminatorConfig& wrong) {
    Parameters p;
    CHECK_THROWS_WITH(stft_discriminator(p, "critic", wrong), Catch::Contains("discriminator critic"));
  };
  refused({.window = 100});
  refused({.window = 0});
  refused({.channels = 0});
  refused({.slope = 0});
  refused({.slope = 1});
}
