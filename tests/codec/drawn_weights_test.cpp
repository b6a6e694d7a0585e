// How a model begins that starts from random weights: the distribution of every tensor, as codec.h says.
#include <cmath>
#include <map>

#include "harness.h"
#include "nacre/codec/codec.h"

using namespace nacre;

namespace {

struct Tensor {
  std::vector<int64_t> stored;
  std::vector<float> values;
};

bool ends_with(const std::string& s, const std::string& tail) {
  return s.size() >= tail.size() && s.compare(s.size() - tail.size(), tail.size(), tail) == 0;
}

double mean_square(const std::vector<float>& v) {
  double sum = 0;
  for (const float x : v) sum += static_cast<double>(x) * static_cast<double>(x);
  return sum / static_cast<double>(v.size());
}

/// Uniform in +-bound: squares have mean bound^2 / 3 and variance 4 bound^4 / 45; six standard deviations of their mean.
void check_uniform(const std::vector<float>& v, double bound) {
  for (const float x : v) REQUIRE(std::fabs(static_cast<double>(x)) <= bound * (1 + 0x1p-24));
  const double n = static_cast<double>(v.size()), square = bound * bound;
  CHECK(std::fabs(mean_square(v) - square / 3) <= 6 * square * std::sqrt(4.0 / 45 / n));
}
/// Normal: squares have mean s^2 and variance 2 s^4.
void check_normal(const std::vector<float>& v, double deviation) {
  const double n = static_cast<double>(v.size()), square = deviation * deviation;
  CHECK(std::fabs(mean_square(v) - square) <= 6 * square * std::sqrt(2 / n));
}

}  // namespace

TEST_CASE("drawn weights: uniform within one over the root of the fan in, gains the norms, biases zero") {
  for (const QuantizerKind kind : {QuantizerKind::ema, QuantizerKind::factorised}) {
    CodecConfig c;
    c.encoder_dim = 16, c.encoder_rates = {2, 4};
    c.decoder_dim = 64, c.decoder_rates = {4, 2};
    c.quantizer = kind, c.n_codebooks = 2, c.codebook_size = 128, c.codebook_dim = 8;
    c.metric = kind == QuantizerKind::ema ? VqMetric::euclidean : VqMetric::cosine;
    Context ctx({.threads = 1});
    Codec codec(ctx, c);
    initialise(ctx, codec.parameters(), c, 11);
    std::map<std::string, Tensor> all;
    codec.parameters().each_tensor(
        ctx, [&](const std::string& name, const std::vector<int64_t>& stored, std::span<const float> v) {
          all[name] = {stored, {v.begin(), v.end()}};
        });
    int uniform = 0, transposed = 0, zero = 0;
    for (const auto& [name, t] : all) {
      INFO(name);
      if (ends_with(name, ".weight_v")) {
        REQUIRE(t.stored.size() == 3);
        // The fan in of a stored tensor [a, b, taps] is b taps, of transposed convolutions as well, as PyTorch counts it.
        check_uniform(t.values, 1 / std::sqrt(static_cast<double>(t.stored[1] * t.stored[2])));
        const Tensor& gain = all.at(name.substr(0, name.size() - 1) + "g");
        const auto row = static_cast<size_t>(t.stored[1] * t.stored[2]);
        REQUIRE(gain.values.size() * row == t.values.size());
        for (size_t i = 0; i < gain.values.size(); ++i) {
          double square = 0;
          for (size_t k = 0; k < row; ++k) square += std::pow(static_cast<double>(t.values[i * row + k]), 2);
          CHECK(std::fabs(static_cast<double>(gain.values[i]) - std::sqrt(square)) <=
                2 * test::ulp * std::sqrt(square));
        }
        ++uniform;
      } else if (ends_with(name, ".bias")) {
        // Those of transposed convolutions, stored [in, out, taps] with twice as many in as out, are drawn as their weights.
        const auto weight = all.find(name.substr(0, name.size() - 4) + "weight_v");
        REQUIRE(weight != all.end());
        const std::vector<int64_t>& w = weight->second.stored;
        if (name.starts_with("decoder.model.") && ends_with(name, ".block.1.bias") && w[0] == 2 * w[1]) {
          check_uniform(t.values, 1 / std::sqrt(static_cast<double>(w[1] * w[2])));
          CHECK(mean_square(t.values) > 0);
          ++transposed;
        } else {
          CHECK(mean_square(t.values) == 0);
          ++zero;
        }
      } else if (ends_with(name, ".alpha")) {
        for (const float v : t.values) CHECK(v == 1);
      } else if (ends_with(name, ".codebook.weight")) {
        check_normal(t.values, 1);
      } else if (ends_with(name, ".codebook.embed")) {
        check_normal(t.values, 0.1);
        CHECK((all.at(name + "_avg").values == t.values));
      } else if (ends_with(name, ".codebook.cluster_size")) {
        for (const float v : t.values) CHECK(v == 1);
      }
    }
    CHECK(uniform > 20);
    CHECK(transposed == 2);
    CHECK(zero > 15);
    // Tensors are drawn apart: two of one shape differ, and so do stages.
    CHECK((all.at("encoder.block.1.block.0.block.1.weight_v").values !=
           all.at("encoder.block.1.block.1.block.1.weight_v").values));
    const std::string code = kind == QuantizerKind::ema ? ".codebook.embed" : ".codebook.weight";
    CHECK((all.at("quantizer.quantizers.0" + code).values != all.at("quantizer.quantizers.1" + code).values));
  }
}
