// Initial random weights of a model: the distribution of every tensor, and its bits.
#include <cmath>
#include <map>

#include "harness.h"
#include "nacre/codec/codec.h"
#include "nacre/random.h"

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

/// Uniform in +-bound: squares have mean bound^2 / 3 and variance 4 bound^4 / 45. Their mean may be off by six standard
/// deviations.
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

/// The initial values of a codec by the names and shapes in its file. This is a second implementation of the rules that
/// turn a seed into weights.
struct ByName {
  uint64_t seed;
  bool log_scale;
  const std::map<std::string, Tensor>& all;

  Philox stream(const std::string& name) const {
    uint64_t h = 0x14650fb0739d0383;
    for (const char c : name) h ^= static_cast<unsigned char>(c), h *= 0x100000001b3;
    return {seed, h};
  }
  std::vector<float> uniform(const std::string& name, double fan_in) const {
    std::vector<float> v(all.at(name).values.size());
    for (size_t i = 0; i < v.size(); ++i)
      v[i] = static_cast<float>((2 * stream(name).uniform(i) - 1) * (1 / std::sqrt(fan_in)));
    return v;
  }
  std::vector<float> normal(const std::string& name, const std::string& from, double deviation) const {
    std::vector<float> v(all.at(name).values.size());
    for (size_t i = 0; i < v.size(); ++i) {
      const double radius = std::sqrt(-2 * std::log(1 - stream(from).uniform(2 * i)));
      v[i] = static_cast<float>(deviation * (radius * std::cos(6.283185307179586 * stream(from).uniform(2 * i + 1))));
    }
    return v;
  }
  std::vector<float> operator()(const std::string& name) const {
    const Tensor& t = all.at(name);
    const std::string layer = name.substr(0, name.rfind('.'));
    const auto fan_in = [&] {
      const std::vector<int64_t>& weight = all.at(layer + ".weight_v").stored;
      return static_cast<double>(weight[1] * weight[2]);
    };
    if (ends_with(name, ".weight_v")) return uniform(name, fan_in());
    if (ends_with(name, ".weight_g")) {
      const std::vector<float> v = (*this)(layer + ".weight_v");
      std::vector<float> norms;
      for (size_t row = 0; row < t.values.size(); ++row) {
        double square = 0;
        for (size_t i = 0; i < v.size() / t.values.size(); ++i)
          square += std::pow(static_cast<double>(v[row * (v.size() / t.values.size()) + i]), 2);
        norms.push_back(static_cast<float>(std::sqrt(square)));
      }
      return norms;
    }
    if (ends_with(name, ".codebook.weight")) return normal(name, name, 1);
    if (ends_with(name, ".embed") || ends_with(name, ".embed_avg")) return normal(name, layer, 0.1);
    // Transposed convolutions are second in the blocks of the decoder. Residual units have their own ".block.".
    if (name.starts_with("decoder.model.") && ends_with(name, ".block.1.bias") &&
        name.find(".block.") == name.rfind(".block."))
      return uniform(name, fan_in());
    const bool one = ends_with(name, ".cluster_size") || (!ends_with(name, ".bias") && !log_scale);
    return std::vector<float>(t.values.size(), one ? 1.0f : 0.0f);
  }
};

}  // namespace

TEST_CASE("drawn weights: a seed gives the same bits as ever") {
  struct {
    QuantizerKind quantizer;
    ActivationKind activation;
    uint64_t seed;
  } const models[] = {{QuantizerKind::ema, ActivationKind::snake, 0},
                      {QuantizerKind::factorised, ActivationKind::snake_beta, 1},
                      {QuantizerKind::factorised, ActivationKind::elu, 0xfedcba9876543210},
                      {QuantizerKind::ema, ActivationKind::snake_beta, 42}};
  for (const auto& m : models) {
    CAPTURE(str(m.activation), m.seed);
    CodecConfig c;
    c.encoder_dim = 4, c.encoder_rates = {2, 3};
    c.decoder_dim = 24, c.decoder_rates = {3, 2};
    c.activation = m.activation;
    c.quantizer = m.quantizer, c.n_codebooks = 3, c.codebook_size = 16, c.codebook_dim = 8;
    c.metric = m.quantizer == QuantizerKind::ema ? VqMetric::euclidean : VqMetric::cosine;
    Context ctx({.threads = 1});
    Codec codec(ctx, c);
    codec.parameters().initialise(ctx, m.seed);
    std::map<std::string, Tensor> all;
    codec.parameters().each_tensor(
        ctx, [&](const std::string& name, const std::vector<int64_t>& stored, std::span<const float> v) {
          all[name] = {stored, {v.begin(), v.end()}};
        });
    CHECK(all.size() > 100);
    const ByName expected{m.seed, m.activation == ActivationKind::snake_beta, all};
    for (const auto& [name, t] : all) {
      INFO(name);
      CHECK((t.values == expected(name)));
    }
  }
}

TEST_CASE("drawn weights: uniform within one over the root of the fan in, gains the norms, biases zero") {
  for (const QuantizerKind kind : {QuantizerKind::ema, QuantizerKind::factorised}) {
    CodecConfig c;
    c.encoder_dim = 16, c.encoder_rates = {2, 4};
    c.decoder_dim = 64, c.decoder_rates = {4, 2};
    c.quantizer = kind, c.n_codebooks = 2, c.codebook_size = 128, c.codebook_dim = 8;
    c.metric = kind == QuantizerKind::ema ? VqMetric::euclidean : VqMetric::cosine;
    Context ctx({.threads = 1});
    Codec codec(ctx, c);
    codec.parameters().initialise(ctx, 11);
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
        // The fan-in of a stored tensor [a, b, taps] is b taps. PyTorch uses this for transposed convolutions as well.
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
        // Biases of transposed convolutions have the bounds of their weights. The weights are stored [in, out, taps]
        // with in = 2 out.
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
    // Every tensor has its own random numbers: two of one shape differ, and so do stages.
    CHECK((all.at("encoder.block.1.block.0.block.1.weight_v").values !=
           all.at("encoder.block.1.block.1.block.1.weight_v").values));
    const std::string code = kind == QuantizerKind::ema ? ".codebook.embed" : ".codebook.weight";
    CHECK((all.at("quantizer.quantizers.0" + code).values != all.at("quantizer.quantizers.1" + code).values));
  }
}
