// Layers in bf16: the same networks with activations and weights of 8 bits, compared with those in float. Normalised
// layers in float, compared with those in double.
#include "nacre/nn/layers.h"

#include <cmath>
#include <map>
#include <optional>

#include "gradient_check.h"
#include "nacre/codec/codec.h"
#include "reference/layers.h"

using namespace nacre;

namespace {

CodecConfig tiny(ActivationKind activation) {
  CodecConfig c;
  c.encoder_dim = 6, c.encoder_rates = {2, 3};
  c.decoder_dim = 24, c.decoder_rates = {3, 2};
  c.latent_dim = 10, c.dilations = {1, 3};
  c.activation = activation;
  c.quantizer = QuantizerKind::ema, c.n_codebooks = 1, c.codebook_size = 4;
  return c;
}

template <class T>
T stored(float x) {
  if constexpr (std::is_same_v<T, float>)
    return to_float(to_bf16(x));  // both start with the same numbers
  else
    return to_bf16(x);
}
float as_float(float x) { return x; }
float as_float(bf16 x) { return to_float(x); }

struct Result {
  std::vector<double> x, y, dy;
  test::Tensors parameters, gradients;
  Shape shape{};  ///< of y
};

using Make = std::function<Net(Parameters&)>;

/// Forward and backward of a network behind a convolution of one tap. The gradients of the convolution show what
/// reaches the input. `change`, if given, sets parameters after their initialisation.
template <class T>
Result run(Device device, const Make& make, Shape input, int64_t inner,
           const std::function<void(Context&, Parameters&)>& change = {}) {
  Context ctx({.device = device, .threads = 2});
  Parameters p;
  const Conv1d first(p, "first", input.channels, inner, 1);
  const auto net = make(p);
  p.allocate(ctx, true, storage_of<T>);
  p.initialise(ctx, 4);
  if (change) change(ctx, p);
  Plan plan(ctx, Purpose::training);
  Output<T> source;
  Input<T> end;
  int last = 0;
  std::vector<T> dy;
  plan.reserve([&](Plan& w) {
    source = w.source<T>(input);
    const Flow y = net(w, first.plan(w, source.flow));
    const Step s = w.step("end");
    last = s.number();
    end = s.reads<T>(y, Until::backward);
    s.forward([](Context&) {});
    s.backward([&dy, end](Context& on) { on.write<T>(dy, end.grad); });
    p.clear_gradients(w);
  });
  std::mt19937_64 rng(test::seed());
  std::uniform_real_distribution<float> draw(-1, 1);
  std::vector<T> x(static_cast<size_t>(input.elements()));
  for (T& v : x) v = stored<T>(draw(rng));
  ctx.write<T>(x, source.value);
  p.refresh(ctx);
  plan.run_until(last, Until::forward);
  std::vector<T> y(static_cast<size_t>(end.value.elements()));
  dy.resize(y.size());
  ctx.read<T>(end.value, y);
  Result r;
  for (const T v : y) r.y.push_back(static_cast<double>(as_float(v)));
  for (const T v : x) r.x.push_back(static_cast<double>(as_float(v)));
  for (T& v : dy) v = stored<T>(draw(rng)), r.dy.push_back(static_cast<double>(as_float(v)));
  plan.run();
  p.finish_gradients(ctx);
  r.parameters = test::values_of(ctx, p), r.gradients = test::gradients_of(ctx, p);
  r.shape = end.value.shape;
  return r;
}

double relative(const std::vector<double>& found, const std::vector<double>& wanted) {
  double error = 0, size = 0;
  for (size_t i = 0; i < wanted.size(); ++i) error += std::pow(found[i] - wanted[i], 2), size += wanted[i] * wanted[i];
  return std::sqrt(error / size);
}

/// Every activation, every gradient of one and every weight is rounded to bf16. `roundings` is the number of
/// consecutive roundings, each at most one bf16_ulp of its value, with random signs. They add like a random walk, and a
/// sum of such terms has the relative error of its terms. The limit is three standard deviations. A uniform error has a
/// standard deviation of a third of an ulp (1/sqrt(3) of its bound, rounded).
void compare(const Make& make, Shape input, int64_t inner, int roundings) {
  const Device device = GENERATE(from_range(test::devices()));
  CAPTURE(str(device));
  const Result exact = run<float>(device, make, input, inner), found = run<bf16>(device, make, input, inner);
  REQUIRE(found.y.size() == exact.y.size());
  const double forward = 3 * test::bf16_ulp / std::sqrt(3.0) * std::sqrt(roundings);
  const double error = relative(found.y, exact.y);
  INFO("output: " << error << " of " << forward);
  CHECK(error <= forward);
  CHECK(error > 0);                                  // it was bf16
  const double backward = forward * std::sqrt(3.0);  // forward, gradients, and weights again
  CHECK(backward < 0.3);                             // a wrong tap or a missing path would show
  for (const auto& [name, g] : exact.gradients) {
    if (name.find(".codebook.") != std::string::npos || g.size() < 4) continue;  // a single sum may cancel
    const double off = relative(found.gradients.at(name), g);
    INFO(name << ": " << off << " of " << backward);
    CHECK(off <= backward);
    std::vector<double> planted = g;
    for (double& v : planted) v *= 1 + 10 * backward;
    CHECK(relative(planted, g) > backward);
  }
}

template <class L, class... A>
Make made(A... arguments) {
  return [=](Parameters& p) {
    const L layer(p, arguments...);
    return Net([layer](Plan& w, Flow x) { return layer.plan(w, x); });
  };
}

}  // namespace

TEST_CASE("a residual unit in bf16") {
  for (const int64_t dilation : {int64_t{1}, int64_t{9}}) {
    CAPTURE(dilation);
    compare(made<ResidualUnit>("unit", 12, 7, dilation, ActivationKind::snake), {.batch = 2, .time = 50, .channels = 3},
            12, 8);
  }
}
TEST_CASE("an encoder and a decoder in bf16") {
  for (const ActivationKind activation : {ActivationKind::snake, ActivationKind::snake_beta, ActivationKind::elu}) {
    CAPTURE(str(activation));
    const CodecConfig c = tiny(activation);
    // Four units of four layers, four strided or outer convolutions with activations, and the weights of each.
    compare([&](Parameters& p) { return encoder_of(p, c); }, {.batch = 2, .time = 96, .channels = 2}, 1, 30);
    compare([&](Parameters& p) { return decoder_of(p, c); }, {.batch = 2, .time = 16, .channels = 5}, c.latent(), 30);
  }
}
namespace {

/// Convolutions of all forms, the second with a residual.
struct Normed {
  Normed(Parameters& p, Norm norm)
      : wide(p, "wide", 6, 8, 3, {.left = 1, .right = 1}, norm),
        unit(p, "unit.act", "unit", 8, 8, 3, ActivationKind::snake, {.left = 2, .right = 0}, norm),
        up(p, "up", 8, 4, 4, 2, 1, 0, norm) {}
  Flow plan(Plan& p, Flow x) const {
    const Flow y = wide.plan(p, x);
    return up.plan(p, unit.plan(p, y, y));
  }
  Conv1d wide;
  ActivatedConv1d unit;
  ConvTranspose1d up;
};
constexpr Shape normed_input{.batch = 3, .time = 11, .channels = 5};

/// Normed behind the first convolution, on the tape. The loss is the product of the output and dy.
test::Model on_tape(const Result& r, Norm norm) {
  using test::WeightForm;
  const WeightForm form = norm == Norm::weight ? WeightForm::normalised : WeightForm::plain;
  const auto normed = [norm](const std::string& name, test::Layer conv) -> test::Layer {
    if (norm == Norm::none || norm == Norm::weight) return conv;
    return test::Chain{} << std::move(conv) << test::group_norm(name + ".norm", 1, norm == Norm::layer);
  };
  const test::Layer first = test::conv1d("first", 1),
                    wide = normed("wide", test::conv1d("wide", 3, {.left = 1, .right = 1}, form)),
                    unit = normed("unit", test::Chain{} << test::snake("unit.act", false)
                                                        << test::conv1d("unit", 3, {.left = 2, .right = 0}, form)),
                    up = normed("up", test::conv_transpose1d("up", 4, {.stride = 2, .left = 1, .right = 1}, 0, form));
  return [=, &r](test::Tape& t) {
    test::Node* y = up(t, test::residual(unit)(t, wide(t, first(t, t.constant(normed_input, r.x)))));
    double loss = 0;
    for (size_t i = 0; i < y->value.size(); ++i) loss += y->value[i] * r.dy[i];
    test::Node* sum = t.make({}, {loss}, {y});
    t.back(sum, [=, &t, &r] { t.pass(y, r.dy, sum->gradient[0]); });
    return sum;
  };
}
const char* named(Norm norm) {
  constexpr const char* names[] = {"none", "weight", "group", "layer"};
  return names[static_cast<size_t>(norm)];
}
/// Gains and biases that are not one and zero.
void spread(Context& ctx, Parameters& p) {
  std::mt19937_64 rng(test::seed());
  std::uniform_real_distribution<float> draw(0.5f, 1.5f);
  for (Parameter& x : p.all()) {
    if (x.shape.rows() > 1) continue;
    std::vector<float> values(static_cast<size_t>(x.shape.elements()));
    for (float& v : values) v = draw(rng);
    ctx.write<float>(values, x.value);
  }
}

}  // namespace

TEST_CASE("normalised layers against those in double") {
  const Device device = GENERATE(from_range(test::devices()));
  const Norm norm = GENERATE(Norm::none, Norm::weight, Norm::group, Norm::layer);
  CAPTURE(str(device), named(norm));
  const Result r = run<float>(device, made<Normed>(norm), normed_input, 6, spread);
  CHECK(r.parameters.count("wide.weight") == (norm == Norm::weight ? 0 : 1));
  CHECK(r.parameters.count("up.norm.bias") == (norm == Norm::group || norm == Norm::layer ? 1 : 0));
  test::Tape tape;
  tape.parameters = r.parameters;
  const test::Model model = on_tape(r, norm);
  const test::Comparison comparison(tape, model);
  CHECK(comparison.blunt().empty());
  double loss = 0;
  for (size_t i = 0; i < r.y.size(); ++i) loss += r.y[i] * r.dy[i];
  // The loss is a sum of a few hundred terms below 10, each off by less than 100 ulp.
  CHECK(std::fabs(loss - comparison.loss) <= 100 * test::ulp * 10 * static_cast<double>(r.y.size()));
  comparison.check(r.gradients);
  if (device.kind == Device::cpu) {
    std::mt19937_64 rng(test::seed());
    test::check_differences(tape, model, rng, 40);
  }
}
TEST_CASE("normalised layers in bf16") {
  for (const Norm norm : {Norm::none, Norm::group, Norm::layer}) {
    CAPTURE(named(norm));
    // Four convolutions with their weights, Snake, the residual and three normalisations.
    compare(made<Normed>(norm), {.batch = 3, .time = 40, .channels = 5}, 6, 13);
  }
}
TEST_CASE("a plain weight computes what a normalised one of the same effective weights does, bit for bit") {
  const Device device = GENERATE(from_range(test::devices()));
  CAPTURE(str(device));
  const auto layers = [](Norm norm) {
    return [=](Parameters& p) -> std::function<Flow(Plan&, Flow)> {
      return [conv = Conv1d(p, "conv", 6, 8, 3, {.left = 1, .right = 1}, norm),
              up = ConvTranspose1d(p, "up", 8, 4, 4, 2, 1, 0, norm)](Plan& w, Flow x) {
        return up.plan(w, conv.plan(w, x));
      };
    };
  };
  // Rows of one element 2 and gain 2, or 0.5 and 0.5, are their own effective weights without any rounding. Here every
  // row is a power of two in one place and zero elsewhere.
  const auto set = [](const char* suffix) {
    return [=](Context& ctx, Parameters& p) {
      for (const char* name : {"conv", "up"}) {
        const std::vector<int64_t> stored =
            name[0] == 'c' ? std::vector<int64_t>{8, 6, 3} : std::vector<int64_t>{8, 4, 4};
        const size_t length = static_cast<size_t>(stored[1] * stored[2]);
        std::vector<float> values(8 * length), gains;
        for (size_t row = 0; row < 8; ++row)
          gains.push_back(std::ldexp(1.0f, static_cast<int>(row % 3) - 1)),
              values[row * length + 5 * row % length] = gains.back();
        const std::string at(name);
        REQUIRE(p.set_tensor(ctx, at + suffix, stored, values));
        p.set_tensor(ctx, at + ".weight_g", {8, 1, 1}, gains);
      }
    };
  };
  const Result plain = run<float>(device, layers(Norm::none), normed_input, 6, set(".weight")),
               normalised = run<float>(device, layers(Norm::weight), normed_input, 6, set(".weight_v"));
  CHECK(plain.y == normalised.y);
  for (const char* name : {"first.weight_v", "first.bias", "conv.bias", "up.bias"})
    CHECK(plain.gradients.at(name) == normalised.gradients.at(name));
  CHECK(test::largest(plain.gradients.at("conv.weight")) > 0);
}
TEST_CASE("a normalisation over an item looks at all of its positions") {
  Context ctx({.threads = 1});
  for (const Norm norm : {Norm::none, Norm::group, Norm::layer}) {
    CAPTURE(named(norm));
    Parameters p;
    const Conv1d conv(p, "conv", 2, 4, 3, {.left = 1, .right = 1}, norm);
    Plan plan(ctx, Purpose::inference);
    Flow from, to;
    plan.survey([&](Plan& w) {
      from = w.source<float>({.time = 20, .channels = 2}).flow;
      to = conv.plan(w, from);
    });
    const Span span = plan.reach(to, {7, 7}, from);
    CHECK((norm == Norm::group ? span.first <= 0 && span.last >= 19 : span.first == 6 && span.last == 8));
  }
}
TEST_CASE("a group norm needs groups of equal size") {
  Parameters p;
  CHECK_THROWS_AS(GroupNorm(p, "norm", 6, 4, NormOver::item), Error);
  CHECK_THROWS_AS(GroupNorm(p, "none", 6, 0, NormOver::position), Error);
}
TEST_CASE("activations have the names of configurations") {
  for (const ActivationKind kind : {ActivationKind::snake, ActivationKind::snake_beta, ActivationKind::elu,
                                    ActivationKind::leaky_relu, ActivationKind::tanh}) {
    CodecConfig c;
    c.activation = kind;
    CHECK_THAT(c.to_json(), Catch::Contains("\"activation\": \"" + str(kind) + "\""));
  }
}
