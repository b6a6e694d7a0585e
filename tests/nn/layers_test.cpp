// Layers in bf16: the same networks with activations and weights of 8 bits, compared with those in float. Normalised
// layers and convolutions of two dimensions in float, compared with those in double.
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

template <class L>
Net of(L layer) {
  return [layer = std::move(layer)](Plan& w, Flow x) { return layer.plan(w, x); };
}

/// Forward and backward of a network behind a convolution of one tap. The gradients of the convolution show what
/// reaches the input. `change`, if given, sets parameters after their initialisation.
template <class T>
Result run(Device device, const Make& make, Shape input, int64_t inner,
           const std::function<void(Context&, Parameters&)>& change = {}) {
  Context ctx({.device = device, .threads = 2});
  Parameters p;
  const Net first = input.width == 1 ? of(Conv1d(p, "first", input.channels, inner, 1))
                                     : of(Conv2d(p, "first", input.channels, inner, 1, 1));
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
    const Flow y = net(w, first(w, source.flow));
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
  return [=](Parameters& p) { return of(L(p, arguments...)); };
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

/// The loss of run(): the product of the output and dy.
test::Node* product(test::Tape& t, test::Node* y, const std::vector<double>& dy) {
  double loss = 0;
  for (size_t i = 0; i < y->value.size(); ++i) loss += y->value[i] * dy.at(i);
  test::Node* sum = t.make({}, {loss}, {y});
  t.back(sum, [=, &t, &dy] { t.pass(y, dy, sum->gradient[0]); });
  return sum;
}
/// Normed behind the first convolution, on the tape.
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
    return product(t, up(t, test::residual(unit)(t, wide(t, first(t, t.constant(normed_input, r.x))))), r.dy);
  };
}
/// Checks the loss and all gradients of r against those of the model.
void check_against(const Result& r, const test::Model& model, bool differences) {
  test::Tape tape;
  tape.parameters = r.parameters;
  const test::Comparison comparison(tape, model);
  CHECK(comparison.blunt().empty());
  double loss = 0;
  for (size_t i = 0; i < r.y.size(); ++i) loss += r.y[i] * r.dy[i];
  // The loss is a sum of a few hundred terms below 10, each off by less than 100 ulp.
  CHECK(std::fabs(loss - comparison.loss) <= 100 * test::ulp * 10 * static_cast<double>(r.y.size()));
  comparison.check(r.gradients);
  if (!differences) return;
  std::mt19937_64 rng(test::seed());
  test::check_differences(tape, model, rng, 40);
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
  check_against(r, on_tape(r, norm), device.kind == Device::cpu);
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
TEST_CASE("a stack of LSTM layers against one in double") {
  const Device device = GENERATE(from_range(test::devices()));
  const int64_t layers = GENERATE(int64_t{1}, int64_t{2}, int64_t{3});
  CAPTURE(str(device), layers);
  const Result r = run<float>(device, made<Lstm>("stack.lstm", 6, layers), normed_input, 6);
  CHECK(r.parameters.size() == 3 + 4 * static_cast<size_t>(layers));
  CHECK(r.parameters.at("stack.lstm.weight_hh_l0").size() == 24 * 6);
  check_against(
      r,
      [&](test::Tape& t) {
        return product(
            t, test::lstm("stack.lstm", layers)(t, test::conv1d("first", 1)(t, t.constant(normed_input, r.x))), r.dy);
      },
      device.kind == Device::cpu);
}
TEST_CASE("a stack of LSTM layers in bf16") {
  // The convolution and its weights; per layer two weights, y, and h of the rows before; the sum.
  compare(made<Lstm>("lstm", 6, 2), {.batch = 3, .time = 20, .channels = 5}, 6, 11);
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

namespace {

Conv1dGeometry one(int64_t left, int64_t right) { return {.left = left, .right = right}; }
Conv2dAxis centred(int64_t taps, int64_t stride = 1, int64_t dilation = 1) {
  return {.stride = stride, .dilation = dilation, .left = taps / 2 * dilation, .right = taps / 2 * dilation};
}
constexpr Shape planar_input{.batch = 2, .time = 5, .width = 11, .channels = 3};
constexpr int64_t planar_inner = 4;

/// Two bands of a spectrum, each with two layers, and one over both side by side: the form of DAC's discriminator.
struct Bands {
  explicit Bands(Parameters& p, Norm norm = Norm::weight, bool leaky = true, float slope = 0.1f) : is_leaky(leaky) {
    Conv2dGeometry low{centred(3), centred(3)}, high = low;
    low.columns = 5, high.first_column = 5;
    const Conv2dGeometry strided{centred(3, 1, 2), centred(5, 2)};
    convs = {Conv2d(p, "low.0", planar_inner, 6, 3, 3, low), Conv2d(p, "low.1", 6, 4, 3, 5, strided, norm),
             Conv2d(p, "high.0", planar_inner, 6, 3, 3, high), Conv2d(p, "high.1", 6, 4, 3, 5, strided, norm)};
    for (Conv2d& c : convs)
      if (leaky && (&c == &convs[0] || &c == &convs[2] || norm == Norm::none || norm == Norm::weight))
        c = c.leaky(slope);
    if (!leaky)
      for (const Conv2d& c : convs) activations.emplace_back(p, c.name() + ".act", 1, ActivationKind::leaky_relu);
    last.emplace(p, "last", 4, 6, 3, 3, Conv2dGeometry{centred(3, 2), centred(3)}, norm);
  }
  Flow plan(Plan& p, Flow x) const {
    const auto layer = [&](size_t i, Flow in) {
      const Flow y = convs[i].plan(p, in);
      return is_leaky ? y : activations[i].plan(p, y);
    };
    const std::vector<Flow> parts{layer(1, layer(0, x)), layer(3, layer(2, x))};
    return last->plan(p, parts);
  }
  bool is_leaky;
  std::vector<Conv2d> convs;
  std::vector<Activation> activations;
  std::optional<Conv2d> last;
};
test::Model bands_on_tape(const Result& r, Norm norm) {
  using test::WeightForm;
  const bool in_weight = norm == Norm::none || norm == Norm::weight;
  const auto conv = [&](const std::string& name, int64_t time, int64_t width, const Conv2dGeometry& g) -> test::Layer {
    const WeightForm form = norm == Norm::weight ? WeightForm::normalised : WeightForm::plain;
    test::Layer c = test::conv2d(name, time, width, g, form);
    if (in_weight) return c;
    return test::Chain{} << std::move(c) << test::group_norm(name + ".norm", 1, norm == Norm::layer);
  };
  const auto band = [&](const std::string& name, int64_t begin, int64_t count) {
    Conv2dGeometry g{centred(3), centred(3)};
    g.first_column = begin, g.columns = count;
    test::Chain c;
    c << test::conv2d(name + ".0", 3, 3, g) << test::leaky_relu(static_cast<double>(0.2f))
      << conv(name + ".1", 3, 5, {centred(3, 1, 2), centred(5, 2)});
    if (in_weight) c << test::leaky_relu(static_cast<double>(0.2f));
    return c;
  };
  const test::Chain low = band("low", 0, 5), high = band("high", 5, 6);
  const test::Layer first = test::conv2d("first", 1, 1), last = conv("last", 3, 3, {centred(3, 2), centred(3)});
  return [=, &r](test::Tape& t) {
    test::Node* x = first(t, t.constant(planar_input, r.x));
    test::Node* joined = test::beside(t, {low(t, x), high(t, x)});
    return product(t, last(t, joined), r.dy);
  };
}

}  // namespace

TEST_CASE("convolutions of two dimensions against those in double") {
  const Device device = GENERATE(from_range(test::devices()));
  const Norm norm = GENERATE(Norm::none, Norm::weight, Norm::group, Norm::layer);
  CAPTURE(str(device), named(norm));
  const Make make = [=](Parameters& p) { return of(Bands(p, norm, true, 0.2f)); };
  const Result r = run<float>(device, make, planar_input, planar_inner, spread);
  CHECK(r.shape == Shape{2, 3, 6, 6});
  check_against(r, bands_on_tape(r, norm), device.kind == Device::cpu);
}
TEST_CASE("convolutions of two dimensions in bf16") {
  // Four convolutions with their weights, two activations, and the input gradient's taps of time. The slope is 1,
  // because at a kink a rounding error becomes a whole gradient.
  compare([](Parameters& p) { return of(Bands(p, Norm::weight, true, 1.0f)); },
          {.batch = 2, .time = 16, .width = 11, .channels = 3}, planar_inner, 12);
}
TEST_CASE("a convolution with its leaky ReLU has the bits of the two layers in sequence") {
  const Device device = GENERATE(from_range(test::devices()));
  CAPTURE(str(device));
  const Make fused = [](Parameters& p) {
    return of(Chain{} << Conv1d(p, "wide", 6, 8, 3, one(1, 1)).leaky(0.1f)
                      << Conv1d(p, "next", 8, 16, 4, {.stride = 2, .groups = 4, .left = 1, .right = 1}).leaky(0.1f)
                      << Conv1d(p, "last", 16, 5, 3, one(2, 0)));
  };
  const Make separate = [](Parameters& p) {
    return of(Chain{} << Conv1d(p, "wide", 6, 8, 3, one(1, 1)) << Activation(p, "a", 8, ActivationKind::leaky_relu)
                      << Conv1d(p, "next", 8, 16, 4, {.stride = 2, .groups = 4, .left = 1, .right = 1})
                      << Activation(p, "b", 16, ActivationKind::leaky_relu) << Conv1d(p, "last", 16, 5, 3, one(2, 0)));
  };
  const auto same = [&]<class T>(Type<T>, const Make& a, const Make& b, Shape input, int64_t inner) {
    const Result found = run<T>(device, a, input, inner, spread), wanted = run<T>(device, b, input, inner, spread);
    CHECK(found.y == wanted.y);
    CHECK(found.gradients == wanted.gradients);
    for (const auto& [name, g] : wanted.gradients) {
      CAPTURE(name);
      CHECK(test::largest(g) > 0);
    }
  };
  const Shape line{.batch = 3, .time = 21, .channels = 5};
  same(Type<float>{}, fused, separate, line, 6);
  same(Type<bf16>{}, fused, separate, line, 6);
  const Make planar = [](Parameters&p) { return of(Bands(p)); },
             planar_separate = [](Parameters&p) { return of(Bands(p, Norm::weight, false)); };
  same(Type<float>{}, planar, planar_separate, planar_input, planar_inner);
  same(Type<bf16>{}, planar, planar_separate, planar_input, planar_inner);
}
TEST_CASE("a convolution with its leaky ReLU stores one activation, in one step") {
  Context ctx({.threads = 1});
  Parameters p;
  const Conv1d conv(p, "conv", 4, 8, 3, one(1, 1));
  const Conv2d planar(p, "planar", 4, 8, 3, 3, {centred(3), centred(3)});
  const auto survey = [&](Shape input, const Net& net) {
    Plan plan(ctx, Purpose::training);
    plan.survey([&](Plan& w) {
      const Flow y = net(w, w.source<float>(input, true).flow);
      const Step s = w.step("end");
      s.reads<float>(y);
      s.backward([](Context&) {});
    });
    return std::pair(plan.steps(), plan.costs().at(0));
  };
  const auto [steps, costs] = survey({.batch = 2, .time = 10, .channels = 4}, of(conv.leaky(0.2f)));
  CHECK(steps == std::vector<std::string>{"conv", "end"});
  CHECK(costs.forward.products == 2.0 * (2 * 10) * (8 * 4 * 3));
  CHECK(costs.forward.floats == 2.0 * (2 * 10 * 8));
  const auto [planar_steps, planar_costs] =
      survey({.batch = 2, .time = 10, .width = 6, .channels = 4}, of(planar.leaky(0.2f)));
  CHECK(planar_steps == std::vector<std::string>{"planar", "end"});
  CHECK(planar_costs.forward.products == 2.0 * (2 * 10 * 6) * (8 * 4 * 9));
  CHECK(planar_costs.backward.products == 2 * planar_costs.forward.products);
  CHECK(planar_costs.forward.floats == 2.0 * (2 * 10 * 6 * 8));
  // x, its stacked frames written and read, y, the weight, the bias; and y once more, read and written by the
  // activation.
  CHECK(planar_costs.forward.bytes == 4.0 * (480 * (1 + 2 * 3) + 960 + 8 * 4 * 9 + 8 + 2 * 960));
}
TEST_CASE("a convolution of two dimensions depends on the frames of each of its parts") {
  Context ctx({.threads = 1});
  Parameters p;
  const Conv2d conv(p, "conv", 2, 4, 3, 5, {{.stride = 2, .dilation = 3, .left = 4}, centred(5)}, Norm::none);
  Plan plan(ctx, Purpose::inference);
  std::vector<Flow> from;
  Flow to;
  plan.survey([&](Plan& w) {
    from.clear();
    for (const int64_t width : {4, 7})
      from.push_back(w.source<float>({.time = 20, .width = width, .channels = 2}).flow);
    to = conv.plan(w, from);
  });
  CHECK(to.shape == Shape{1, 9, 11, 4});
  for (const Flow& x : from) {
    const Span span = plan.reach(to, {7, 8}, x);
    CHECK(span.first == 10);
    CHECK(span.last == 18);
  }
}
TEST_CASE("the bias of a convolution starts at zero or as its weight") {
  Context ctx;
  Parameters p;
  const Conv1d zero(p, "zero", 6, 40, 3),
      groups(p, "groups", 6, 40, 3, {.groups = 2}, Norm::weight, BiasStart::uniform);
  const Conv2d planar_zero(p, "planar zero", 4, 40, 3, 5),
      planar(p, "planar", 4, 40, 3, 5, {}, Norm::none, BiasStart::uniform);
  p.allocate(ctx, false);
  p.initialise(ctx, 4);
  const test::Tensors values = test::values_of(ctx, p);
  CHECK(test::largest(values.at("zero.bias")) == 0);
  CHECK(test::largest(values.at("planar zero.bias")) == 0);
  // The largest of 40 uniform numbers is below three quarters of the bound with probability 1e-5.
  const auto check = [&](const std::string& name, double bound) {
    CAPTURE(name);
    CHECK(test::largest(values.at(name)) <= bound * (1 + test::ulp));
    CHECK(test::largest(values.at(name)) > 0.75 * bound);
  };
  check("groups.bias", 1 / std::sqrt(3 * 3.0));
  check("planar.bias", 1 / std::sqrt(4 * 3 * 5.0));
  check("planar.weight", 1 / std::sqrt(4 * 3 * 5.0));
}
TEST_CASE("convolutions refuse what they cannot do") {
  Context ctx;
  Parameters p;
  using Catch::Contains;
  for (const Norm norm : {Norm::group, Norm::layer}) {
    CHECK_THROWS_WITH(Conv1d(p, named(norm), 2, 2, 1, {}, norm).leaky(0.1f), Contains("whose output is normalised"));
    CHECK_THROWS_WITH(Conv2d(p, std::string("2 ") + named(norm), 2, 2, 1, 1, {}, norm).leaky(0.1f),
                      Contains("whose output is normalised"));
  }
  const Conv1d conv(p, "conv", 2, 2, 1);
  const Conv2d planar(p, "planar", 2, 2, 1, 1);
  CHECK_THROWS_WITH(conv.leaky(0.0f), Contains("conv: leaky() with slope 0.0"));
  CHECK_THROWS_WITH(planar.leaky(-1.0f), Contains("planar: leaky() with slope -1.0"));
  Plan plan(ctx, Purpose::inference);
  CHECK_THROWS_WITH(plan.survey([&](Plan& w) {
    const Flow x = w.source<float>({.time = 4, .channels = 2}).flow;
    conv.leaky(0.1f).plan(w, x, x);
  }),
                    Contains("conv: a residual with leaky()"));
  for (const size_t parts : {size_t{0}, size_t{9}}) {
    Plan other(ctx, Purpose::inference);
    CHECK_THROWS_WITH(other.survey([&](Plan& w) {
      planar.plan(w, std::vector<Flow>(parts, w.source<float>({.time = 4, .width = 3, .channels = 2}).flow));
    }),
                      Contains("planar: " + std::to_string(parts) + " parts, expected 1 to 8"));
  }
}
