// A weight that several layers of one plan use: its gradient is the sum of what the uses make of it.
#include <algorithm>
#include <functional>
#include <map>
#include <string>

#include "harness.h"
#include "nacre/codec/codec.h"

using namespace nacre;
using namespace nacre::test;

namespace {

constexpr int64_t inner = 8;

CodecConfig tiny() {
  CodecConfig c;
  c.encoder_dim = 4, c.encoder_rates = {2}, c.decoder_dim = 8, c.decoder_rates = {2};
  c.latent_dim = inner, c.n_codebooks = 2, c.codebook_size = 4, c.codebook_dim = 8;
  return c;
}

using Values = std::map<std::string, std::vector<float>>;

/// Two layers of the same parameters, each behind a convolution of its own.
template <class T, class Layer>
struct Twice {
  struct Use {
    Conv1d<T> before;
    Layer layer;
    Made<T> source{};
    Read<T> end{};
    std::vector<T> x{}, dy{};
  };
  Context ctx;
  Parameters parameters;
  std::vector<Use> uses;
  Plan plan;

  Twice(Device device, const std::function<Layer(Parameters&)>& make)
      : ctx({.device = device, .threads = 2}), plan(ctx, Purpose::training) {
    for (const char* name : {"before.0", "before.1"})
      uses.push_back({Conv1d<T>(parameters, name, 3, inner, 1), make(parameters)});
    parameters.allocate(ctx, true, std::is_same_v<T, float> ? Storage::float32 : Storage::bfloat16);
    initialise(ctx, parameters, tiny(), 5);
    parameters.refresh(ctx);
    int64_t time = 20;
    plan.reserve([&](Plan& p) {
      time = 20;
      for (Use& u : uses) {
        p.next_step();
        u.source = p.source<T>({.batch = 2, .time = time, .channels = 3});
        const Flow<T> y = u.layer.plan(p, u.before.plan(p, u.source.flow));
        p.next_step();
        u.end = p.reads(y, Phase::backward);
        time += 7;  // the uses need not be alike
      }
    });
    std::mt19937_64 rng(seed());
    const auto fill = [&](std::vector<T>& v, int64_t n) {
      std::uniform_real_distribution<float> draw(-1, 1);
      for (int64_t i = 0; i < n; ++i) {
        if constexpr (std::is_same_v<T, float>)
          v.push_back(draw(rng));
        else
          v.push_back(to_bf16(draw(rng)));
      }
    };
    for (Use& u : uses) fill(u.x, u.source.value.elements()), fill(u.dy, u.end.value.elements());
  }

  /// Gradients of a step in which the uses named in `of` run backward, each from its own gradient or from zeros.
  Values gradients(const std::vector<size_t>& of, size_t from_zeros = 9) {
    for (Use& u : uses) {
      if constexpr (requires { u.layer.stages(); }) {
        const auto n = static_cast<size_t>(u.layer.stages().elements());
        ctx.write<int32_t>(std::vector<int32_t>(n, 2), u.layer.stages());
        ctx.write<int32_t>(std::vector<int32_t>(n, 15), u.layer.frames());
        u.layer.set_weights(0, 0);  // what comes from zeros is then zero
      }
      ctx.write<T>(u.x, u.source.value);
      u.before.forward(ctx), u.layer.forward(ctx);
    }
    parameters.clear_gradients(ctx);
    for (size_t i = uses.size(); i-- > 0;) {
      if (std::find(of.begin(), of.end(), i) == of.end()) continue;
      Use& u = uses[i];
      ctx.write<T>(i == from_zeros ? std::vector<T>(u.dy.size()) : u.dy, u.end.grad);
      u.layer.backward(ctx), u.before.backward(ctx);
    }
    parameters.finish_gradients(ctx);
    Values found;
    parameters.each_tensor(ctx, parameters.gradients(),
                           [&](const std::string& name, const std::vector<int64_t>&, std::span<const float> v) {
                             if (!name.starts_with("before.")) found[name].assign(v.begin(), v.end());
                           });
    return found;
  }
};

/// One use adds zeros to what the other made, before it and behind it: nothing is rounded, nothing may change.
template <class T, class Layer>
void sums_up(const char* what, const std::function<Layer(Parameters&)>& make) {
  for (const Device device : devices()) {
    CAPTURE(what, str(device));
    Twice<T, Layer> twice(device, make);
    const Values first = twice.gradients({0}), second = twice.gradients({1});
    const Values of_first = twice.gradients({0, 1}, 1), of_second = twice.gradients({0, 1}, 0);
    REQUIRE(!first.empty());
    for (const auto& [name, alone] : first) {
      INFO(name);
      const auto something = [](const std::vector<float>& v) {
        return std::any_of(v.begin(), v.end(), [](float x) { return x != 0; });
      };
      // No loss is on the codebooks themselves.
      if (name.find(".codebook.") == std::string::npos) CHECK((something(alone) && something(second.at(name))));
      CHECK(of_first.at(name) == alone);
      CHECK(of_second.at(name) == second.at(name));
    }
  }
}

}  // namespace

TEST_CASE("gradients of a weight that a plan uses twice add up", "[layers]") {
  sums_up<float, Conv1d<float>>(
      "convolution", [](Parameters& p) { return Conv1d<float>(p, "shared", inner, 6, 3, {.left = 1, .right = 1}); });
  sums_up<float, ConvTranspose1d<float>>(
      "transposed", [](Parameters& p) { return ConvTranspose1d<float>(p, "shared", inner, 6, 4, 2, 1, 0); });
  for (const ActivationKind kind : {ActivationKind::snake, ActivationKind::snake_beta, ActivationKind::elu})
    sums_up<float, ActivatedConv1d<float>>("activated", [kind](Parameters& p) {
      return ActivatedConv1d<float>(p, "shared.0", "shared.1", inner, 16, 7, kind, {.left = 3, .right = 3});
    });
  sums_up<float, ResidualUnit<float>>("residual unit", [](Parameters& p) {
    return ResidualUnit<float>(p, "shared", inner, 7, 3, ActivationKind::snake);
  });
}

TEST_CASE("gradients in bf16 of a weight that a plan uses twice add up", "[layers]") {
  sums_up<bf16, Conv1d<bf16>>(
      "convolution", [](Parameters& p) { return Conv1d<bf16>(p, "shared", inner, 8, 3, {.left = 1, .right = 1}); });
  sums_up<bf16, ConvTranspose1d<bf16>>(
      "transposed", [](Parameters& p) { return ConvTranspose1d<bf16>(p, "shared", inner, 8, 4, 2, 1, 0); });
  sums_up<bf16, ActivatedConv1d<bf16>>("activated", [](Parameters& p) {
    return ActivatedConv1d<bf16>(p, "shared.0", "shared.1", inner, 16, 7, ActivationKind::snake,
                                 {.left = 3, .right = 3});
  });
}

TEST_CASE("gradients of a quantizer that a plan uses twice add up", "[layers]") {
  sums_up<float, Quantizer>("quantizer", [](Parameters& p) { return Quantizer(p, tiny()); });
}
