// How a model begins: drawn parameters.
#include <algorithm>
#include <cmath>

#include "nacre/codec/codec.h"
#include "nacre/random.h"

namespace nacre {
namespace {

/// FNV-1a: the stream of random numbers of a parameter comes from its name, so adding a layer changes no other.
uint64_t hash(const std::string& s) {
  uint64_t h = 1469598103934665603ull;
  for (const char c : s) h = (h ^ static_cast<unsigned char>(c)) * 1099511628211ull;
  return h;
}

bool ends_with(const std::string& s, const std::string& tail) {
  return s.size() >= tail.size() && s.compare(s.size() - tail.size(), tail.size(), tail) == 0;
}

double normal(const Philox& draw, uint64_t counter) {  // Box and Muller
  const double u = 1.0 - draw.uniform(2 * counter), v = draw.uniform(2 * counter + 1);
  return std::sqrt(-2.0 * std::log(u)) * std::cos(6.283185307179586 * v);
}

}  // namespace

void initialise(Context& ctx, Parameters& parameters, const CodecConfig& config, uint64_t seed) {
  // PyTorch's default for convolutions: uniform within 1/sqrt(fan in), where the fan in of a stored tensor [a, b, taps]
  // is b * taps, for transposed convolutions (stored [in, out, taps]) as well.
  std::vector<std::pair<std::string, std::vector<int64_t>>> tensors;
  parameters.each_tensor(ctx, [&](const std::string& name, const std::vector<int64_t>& stored, std::span<const float>) {
    tensors.emplace_back(name, stored);
  });
  std::map<std::string, std::vector<float>> gains;
  for (const auto& [name, stored] : tensors) {
    int64_t n = 1;
    for (const int64_t s : stored) n *= s;
    std::vector<float> values(static_cast<size_t>(n), 0.0f);
    const Philox draw{seed, hash(name)};
    if (ends_with(name, ".weight_v")) {
      const double bound = 1.0 / std::sqrt(static_cast<double>(n) / static_cast<double>(stored[0]));
      for (int64_t i = 0; i < n; ++i)
        values[static_cast<size_t>(i)] = static_cast<float>((2 * draw.uniform(static_cast<uint64_t>(i)) - 1) * bound);
      std::vector<float> gain(static_cast<size_t>(stored[0]));
      const int64_t row = n / stored[0];
      for (int64_t r = 0; r < stored[0]; ++r) {
        double sum = 0;
        for (int64_t i = 0; i < row; ++i) {
          const double v = values[static_cast<size_t>(r * row + i)];
          sum += v * v;
        }
        gain[static_cast<size_t>(r)] = static_cast<float>(std::sqrt(sum));
      }
      gains[name.substr(0, name.size() - 2) + "_g"] = std::move(gain);
    } else if (ends_with(name, ".alpha") || ends_with(name, ".beta")) {
      const bool log_scale = config.activation == ActivationKind::snake_beta;
      values.assign(values.size(), log_scale ? 0.0f : 1.0f);
    } else if (ends_with(name, ".codebook.weight")) {
      for (int64_t i = 0; i < n; ++i)
        values[static_cast<size_t>(i)] = static_cast<float>(normal(draw, static_cast<uint64_t>(i)));
    } else if (ends_with(name, ".codebook.embed") || ends_with(name, ".codebook.embed_avg")) {
      // Until start() fills them from data: distinct rows of the size a fresh encoder's outputs have.
      const Philox shared{seed, hash(name.substr(0, name.rfind('.')))};
      for (int64_t i = 0; i < n; ++i)
        values[static_cast<size_t>(i)] = static_cast<float>(0.1 * normal(shared, static_cast<uint64_t>(i)));
    } else if (ends_with(name, ".codebook.cluster_size")) {
      values.assign(values.size(), 1.0f);
    }
    if (!ends_with(name, ".weight_g")) parameters.set_tensor(ctx, name, stored, values);
  }
  for (const auto& [name, stored] : tensors)
    if (const auto g = gains.find(name); g != gains.end()) parameters.set_tensor(ctx, name, stored, g->second);
  // Biases of transposed convolutions keep PyTorch's draw; those of convolutions are zero (DAC, section 2.6 of its
  // description).
  for (const auto& [name, stored] : tensors) {
    if (!ends_with(name, ".block.1.bias") || name.rfind("decoder.model.", 0) != 0) continue;
    const std::string weight = name.substr(0, name.size() - 4) + "weight_v";
    for (const auto& [other, shape] : tensors) {
      if (other != weight || shape[0] == stored[0]) continue;  // residual units' convolutions have as many in as out
      const double bound = 1.0 / std::sqrt(static_cast<double>(shape[1] * shape[2]));
      std::vector<float> values(static_cast<size_t>(stored[0]));
      const Philox draw{seed, hash(name)};
      for (size_t i = 0; i < values.size(); ++i) values[i] = static_cast<float>((2 * draw.uniform(i) - 1) * bound);
      parameters.set_tensor(ctx, name, stored, values);
    }
  }
  parameters.refresh(ctx);
}

}  // namespace nacre
