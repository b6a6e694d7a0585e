// Random initial values of a larger scale.
#include "nacre/codec/scaled_start.h"

#include <cmath>
#include <map>

#include "codec/whole.h"
#include "harness.h"
#include "nacre/codec/codec.h"
#include "nacre/systems/system.h"

using namespace nacre;
using namespace nacre::test;

namespace {

using Tensors = std::map<std::string, std::vector<float>>;

Tensors tensors_of(Context& ctx, const Parameters& p) {
  Tensors all;
  p.each_tensor(ctx, [&](const std::string& name, const std::vector<int64_t>&, std::span<const float> values) {
    all[name].assign(values.begin(), values.end());
  });
  return all;
}

CodecConfig small_encodec() {
  CodecConfig c = CodecConfig::named("speech-8k");
  c.encoder_dim = 4, c.decoder_dim = 64, c.latent_dim = 16;
  c.n_codebooks = 2, c.codebook_size = 16, c.codebooks_drawn = {};
  return c;
}

/// Variance over positions and channels around the mean of each channel, and the mean square of these means.
struct Spread {
  double variance = 0, mean_square = 0;
};
Spread spread_of(const std::vector<float>& x, size_t channels) {
  const size_t rows = x.size() / channels;
  Spread s;
  for (size_t c = 0; c < channels; ++c) {
    double sum = 0, squares = 0;
    for (size_t r = 0; r < rows; ++r) sum += x[r * channels + c], squares += std::pow(x[r * channels + c], 2);
    const double mean = sum / static_cast<double>(rows);
    s.variance += squares / static_cast<double>(rows) - mean * mean;
    s.mean_square += mean * mean;
  }
  s.variance /= static_cast<double>(channels), s.mean_square /= static_cast<double>(channels);
  return s;
}

/// The latents of one second of noise, without the first frames, whose inputs include padding.
Spread latents(Context& ctx, const CodecConfig& c, bool scaled) {
  Parameters parameters;
  const Net encoder = encoder_of(parameters, c);
  parameters.allocate(ctx, false);
  parameters.initialise(ctx, 5);
  if (scaled) scaled_start(ctx, parameters);
  Plan plan(ctx, Purpose::inference);
  View<float> in;
  View<const float> out;
  plan.reserve([&](Plan& p) {
    const Output<float> source = p.source<float>({.time = 50 * c.hop()});
    in = source.value;
    out = p.result<float>(encoder(p, source.flow));
  });
  ctx.write<float>(noise(in.elements(), 7), in);
  plan.run();
  std::vector<float> z(static_cast<size_t>(out.elements()));
  ctx.read<float>(out, z);
  z.erase(z.begin(), z.begin() + 10 * c.latent());
  return spread_of(z, static_cast<size_t>(c.latent()));
}

}  // namespace

TEST_CASE("scaled start: convolutions of both halves change, nothing else", "[start]") {
  for (const Device device : devices()) {
    Context ctx({.device = device, .threads = 1});
    for (const Norm norm : {Norm::weight, Norm::none, Norm::group}) {
      CodecConfig c = small_encodec();
      c.norm = norm;
      Codec codec(ctx, c);
      codec.parameters().initialise(ctx, 3);
      const Tensors before = tensors_of(ctx, codec.parameters());
      scaled_start(ctx, codec.parameters());
      const Tensors after = tensors_of(ctx, codec.parameters());
      REQUIRE(after.size() == before.size());
      int64_t zeros = 0, larger = 0;
      for (const auto& [name, was] : before) {
        INFO(name);
        const std::vector<float>& is = after.at(name);
        const bool half = name.starts_with("encoder.") || name.starts_with("decoder.");
        if (half && name.find(".conv.") != std::string::npos && !name.ends_with(".weight_v")) {
          const bool bias = name.ends_with(".bias");
          ++(bias ? zeros : larger);
          std::vector<float> expected;
          for (const float v : was)
            expected.push_back(bias ? 0.0f : static_cast<float>(std::sqrt(3.0) * static_cast<double>(v)));
          CHECK(is == expected);
        } else {
          CHECK(is == was);
        }
      }
      CHECK(zeros > 0);
      // The gain of each layer, or its plain weight.
      CHECK(larger == zeros);
    }
  }
}

TEST_CASE("scaled start: the latent follows the signal, not the biases", "[start]") {
  for (const Device device : devices()) {
    Context ctx({.device = device, .threads = 1});
    const CodecConfig c = small_encodec();
    const Spread random = latents(ctx, c, false), scaled = latents(ctx, c, true);
    INFO("random " << random.variance << " " << random.mean_square << ", scaled " << scaled.variance << " "
                   << scaled.mean_square);
    CHECK(random.variance < 0.1 * random.mean_square);
    CHECK(scaled.variance > scaled.mean_square);
    CHECK(scaled.variance > 100 * random.variance);
  }
}
