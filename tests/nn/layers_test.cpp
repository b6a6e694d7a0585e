// Layers in bf16: the same networks with activations and weights of 8 bits, compared with those in float.
#include "nacre/nn/layers.h"

#include <cmath>
#include <map>
#include <optional>

#include "harness.h"
#include "nacre/codec/codec.h"

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
  std::vector<double> y, dx;
  std::map<std::string, std::vector<double>> gradients;
};

using Make = std::function<Net(Parameters&)>;

/// Forward and backward of a network behind a convolution of one tap. The gradients of the convolution show what
/// reaches the input.
template <class T>
Result run(Device device, const Make& make, Shape input, int64_t inner) {
  Context ctx({.device = device, .threads = 2});
  Parameters p;
  const Conv1d first(p, "first", input.channels, inner, 1);
  const auto net = make(p);
  p.allocate(ctx, true, storage_of<T>);
  p.initialise(ctx, 4);
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
  for (T& v : dy) v = stored<T>(draw(rng));
  plan.run();
  p.finish_gradients(ctx);
  p.each_tensor(ctx, p.gradients(),
                [&](const std::string& name, const std::vector<int64_t>&, std::span<const float> v) {
                  r.gradients[name].assign(v.begin(), v.end());
                });
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
TEST_CASE("activations have the names of configurations") {
  for (const ActivationKind kind : {ActivationKind::snake, ActivationKind::snake_beta, ActivationKind::elu,
                                    ActivationKind::leaky_relu, ActivationKind::tanh}) {
    CodecConfig c;
    c.activation = kind;
    CHECK_THAT(c.to_json(), Catch::Contains("\"activation\": \"" + str(kind) + "\""));
  }
}
