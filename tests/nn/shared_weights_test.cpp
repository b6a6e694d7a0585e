// A weight that several layers of one plan use. Its gradient is the sum over all uses.
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

/// The input and the result of one use of the shared layer.
struct Place {
  View<int32_t> stages{}, frames{};  ///< of a quantizer
};
using PlacedNet = std::function<Flow(Plan&, Flow, Place&)>;
using Make = std::function<PlacedNet(Parameters&)>;

/// One layer in two places of a plan, each behind its own convolution. The uses named in `of` have a gradient, their
/// own or zeros. The other use is computed, but no gradient reaches it.
template <class T>
struct Twice {
  struct Use {
    Place place{};
    Output<T> source{};
    std::vector<T> dy{};
  };
  Context ctx;
  Parameters parameters;
  std::vector<Conv1d> before;
  PlacedNet layer;
  std::vector<Use> uses{2};

  Twice(Device device, const Make& make) : ctx({.device = device, .threads = 2}) {
    for (const char* name : {"before.0", "before.1"}) before.emplace_back(parameters, name, 3, inner, 1);
    layer = make(parameters);
    parameters.allocate(ctx, true, storage_of<T>);
    parameters.initialise(ctx, 5);
    parameters.refresh(ctx);
  }

  Values gradients(const std::vector<size_t>& of, size_t from_zeros = 9) {
    Plan plan(ctx, Purpose::training);
    const auto drawn = [](int64_t n, uint64_t which) {
      std::mt19937_64 rng(seed() + which);
      std::uniform_real_distribution<float> draw(-1, 1);
      std::vector<T> v;
      for (int64_t i = 0; i < n; ++i) {
        if constexpr (std::is_same_v<T, float>)
          v.push_back(draw(rng));
        else
          v.push_back(to_bf16(draw(rng)));
      }
      return v;
    };
    plan.reserve([&](Plan& p) {
      int64_t time = 20;
      for (size_t i = 0; i < uses.size(); ++i) {
        Use& u = uses[i];
        u.source = p.source<T>({.batch = 2, .time = time, .channels = 3});
        const Flow y = layer(p, before[i].plan(p, u.source.flow), u.place);
        time += 7;  // the two uses may have different shapes
        if (std::find(of.begin(), of.end(), i) == of.end()) continue;
        const Step s = p.step("end");
        const Input<T> end = s.reads<T>(y);
        const auto n = static_cast<size_t>(y.shape.elements());
        u.dy = i == from_zeros ? std::vector<T>(n) : drawn(static_cast<int64_t>(n), 20 + i);
        s.backward([&u, end](Context& c) { c.write<T>(u.dy, end.grad); });
      }
      parameters.clear_gradients(p);
    });
    for (size_t i = 0; i < uses.size(); ++i) {
      Use& u = uses[i];
      ctx.write<T>(drawn(u.source.value.elements(), i), u.source.value);
      if (u.place.stages) {
        ctx.write<int32_t>(std::vector<int32_t>(2, 2), u.place.stages);
        ctx.write<int32_t>(std::vector<int32_t>(2, 15), u.place.frames);
      }
    }
    plan.run();
    parameters.finish_gradients(ctx);
    Values found;
    parameters.each_tensor(ctx, parameters.gradients(),
                           [&](const std::string& name, const std::vector<int64_t>&, std::span<const float> v) {
                             if (!name.starts_with("before.")) found[name].assign(v.begin(), v.end());
                           });
    return found;
  }
};

/// One use adds zeros to the gradient of the other, as the first or as the second. Nothing is rounded, so nothing may
/// change.
template <class T>
void sums_up(const char* what, const Make& make) {
  for (const Device device : devices()) {
    CAPTURE(what, str(device));
    Twice<T> twice(device, make);
    const Values first = twice.gradients({0}), second = twice.gradients({1});
    const Values of_first = twice.gradients({0, 1}, 1), of_second = twice.gradients({0, 1}, 0);
    REQUIRE(!first.empty());
    for (const auto& [name, alone] : first) {
      INFO(name);
      const auto something = [](const std::vector<float>& v) {
        return std::any_of(v.begin(), v.end(), [](float x) { return x != 0; });
      };
      // The codebooks have no loss of their own.
      if (name.find(".codebook.") == std::string::npos) CHECK((something(alone) && something(second.at(name))));
      CHECK(of_first.at(name) == alone);
      CHECK(of_second.at(name) == second.at(name));
    }
  }
}

template <class L, class... A>
Make made(A... arguments) {
  return [=](Parameters& p) -> PlacedNet {
    return [layer = L(p, arguments...)](Plan& w, Flow x, Place&) { return layer.plan(w, x); };
  };
}

}  // namespace

TEST_CASE("gradients of a weight that a plan uses twice add up", "[layers]") {
  const Conv1dGeometry same3{.left = 1, .right = 1}, same7{.left = 3, .right = 3};
  sums_up<float>("convolution", made<Conv1d>("shared", inner, 6, 3, same3));
  sums_up<float>("transposed", made<ConvTranspose1d>("shared", inner, 6, 4, 2, 1, 0));
  for (const ActivationKind kind : {ActivationKind::snake, ActivationKind::snake_beta, ActivationKind::elu})
    sums_up<float>("activated", made<ActivatedConv1d>("shared.0", "shared.1", inner, 16, 7, kind, same7));
  sums_up<float>("residual unit", made<ResidualUnit>("shared", inner, 7, 3, ActivationKind::snake));
}

TEST_CASE("gradients in bf16 of a weight that a plan uses twice add up", "[layers]") {
  const Conv1dGeometry same3{.left = 1, .right = 1}, same7{.left = 3, .right = 3};
  sums_up<bf16>("convolution", made<Conv1d>("shared", inner, 8, 3, same3));
  sums_up<bf16>("transposed", made<ConvTranspose1d>("shared", inner, 8, 4, 2, 1, 0));
  sums_up<bf16>("activated", made<ActivatedConv1d>("shared.0", "shared.1", inner, 16, 7, ActivationKind::snake, same7));
}

TEST_CASE("gradients of a quantizer that a plan uses twice add up", "[layers]") {
  sums_up<float>("quantizer", [](Parameters& p) -> PlacedNet {
    return [quantizer = Quantizer(p, tiny())](Plan& w, Flow x, Place& place) {
      // Without losses of its own, so that a zero gradient gives zeros.
      const Quantized q = quantizer.plan(w, x, {.commitment_weight = 0, .codebook_weight = 0});
      place = {q.stages, q.frames};
      return q.flow;
    };
  });
}
