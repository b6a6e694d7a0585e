// How a model begins: drawn parameters, and codebooks that start from data.
#include <algorithm>
#include <cmath>

#include "nacre/codec.h"
#include "nacre/ops/conv1d.h"
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

void Quantizer::start(Context& ctx, View<const float> latents, uint64_t seed) {
  const int64_t rows = latents.shape.rows(), latent = config_.latent(), d = config_.code_dim(),
                k = config_.codebook_size;
  const Shape whole{.time = rows, .channels = latent}, low{.time = rows, .channels = d}, book{.time = k, .channels = d};
  const Shape in_shape{.batch = d, .channels = latent}, out_shape{.batch = latent, .channels = d};
  int64_t most = std::max(vq_kmeans_scratch(ctx, low, book).elements(), vq_nearest_scratch(ctx, low, book).elements());
  if (factorised())
    most = std::max({most, conv1d_forward_scratch(ctx, whole, in_shape, {}).elements(),
                     conv1d_forward_scratch(ctx, low, out_shape, {}).elements()});
  const auto block = [&](int64_t n) { return Memory(ctx, static_cast<size_t>(n) * sizeof(float)); };
  Memory residual_memory = block(rows * latent), chosen_memory = block(rows * latent), low_memory = block(rows * d),
         rows_memory = block(rows * d), codes_memory = block(rows), scratch_memory = block(most);
  const auto floats = [](const Memory& m, Shape s) { return View<float>(reinterpret_cast<float*>(m.data()), s); };
  const View<float> residual = floats(residual_memory, whole), chosen = floats(chosen_memory, whole);
  const View<float> projected = floats(low_memory, low), rows_chosen = floats(rows_memory, low);
  const View<float> scratch = floats(scratch_memory, {.channels = most});
  const View<int32_t> codes(reinterpret_cast<int32_t*>(codes_memory.data()), {.time = rows});
  refresh_projections(ctx);
  const RvqProjections weights = projections();
  ctx.copy<float>(latents, residual);
  std::vector<float> host_residual(static_cast<size_t>(rows * latent)), host_chosen(host_residual.size());
  const std::vector<float> ones(static_cast<size_t>(k), 1.0f);
  for (int64_t stage = 0; stage < config_.n_codebooks; ++stage) {
    const View<float> centres(codebooks_->value.data + stage * k * d, book);
    View<const float> x = residual;
    if (factorised()) {
      conv1d_forward(ctx, {.x = residual,
                           .weight = View<const float>(weights.in_weight.data + stage * d * latent, in_shape),
                           .bias = View<const float>(in_bias_->value.data + stage * d, {.channels = d}),
                           .y = projected,
                           .scratch = scratch});
      x = projected;
    }
    vq_kmeans(ctx, {.x = x,
                    .codebook = centres,
                    .scratch = scratch,
                    .seed = seed + static_cast<uint64_t>(stage) * 0x9E3779B97F4A7C15ull});
    if (!factorised()) {
      // Every code starts as if one batch had chosen it once: those that no batch chooses fade and are replaced.
      ctx.write<float>(ones, View<float>(counts_->value.data + stage * k, {.channels = k}));
      ctx.copy<float>(centres, View<float>(sums_->value.data + stage * k * d, book));
    }
    vq_nearest(ctx, {.x = x, .codebook = centres, .codes = codes, .scratch = scratch, .metric = config_.metric});
    if (factorised()) {
      vq_gather(ctx, {.codebook = centres, .codes = codes, .y = rows_chosen});
      conv1d_forward(ctx, {.x = rows_chosen,
                           .weight = View<const float>(weights.out_weight.data + stage * d * latent, out_shape),
                           .bias = View<const float>(out_bias_->value.data + stage * latent, {.channels = latent}),
                           .y = chosen,
                           .scratch = scratch});
    } else {
      vq_gather(ctx, {.codebook = centres, .codes = codes, .y = chosen});
    }
    ctx.read<float>(residual, host_residual);
    ctx.read<float>(chosen, host_chosen);
    for (size_t i = 0; i < host_residual.size(); ++i) host_residual[i] -= host_chosen[i];
    ctx.write<float>(host_residual, residual);
  }
}

}  // namespace nacre
