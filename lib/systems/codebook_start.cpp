// Initialises codebooks from data. Each stage runs k-means on the residual that the nearest codes of the earlier stages
// leave.
#include <algorithm>
#include <optional>

#include "nacre/ops/conv1d.h"
#include "nacre/ops/vq.h"
#include "nacre/systems/quantizer.h"
#include "systems/projections.h"

namespace nacre {
namespace {

constexpr int kmeans_iterations = 10;

/// A typed block of memory that is needed during the start only.
template <class T>
class Block {
 public:
  Block(Context& ctx, Shape shape) : memory_(ctx, static_cast<size_t>(shape.elements()) * sizeof(T)), shape_(shape) {}
  operator View<T>() const { return {reinterpret_cast<T*>(memory_.data()), shape_}; }
  operator View<const T>() const { return View<T>(*this); }

 private:
  Memory memory_;
  Shape shape_;
};

}  // namespace

void Quantizer::start(Context& ctx, View<const float> latents, uint64_t seed, const StartProgress& progress) const {
  const int64_t rows = latents.shape.rows(), latent = config_.latent(), d = config_.code_dim(),
                k = config_.codebook_size;
  const Shape whole{.time = rows, .channels = latent}, low{.time = rows, .channels = d}, book{.time = k, .channels = d};
  const Shape in_shape{.batch = d, .channels = latent}, out_shape{.batch = latent, .channels = d};
  int64_t most = std::max(vq_kmeans_scratch(ctx, low, book).elements(), vq_nearest_scratch(ctx, low, book).elements());
  if (factorised())
    most = std::max({most, conv1d_forward_scratch(ctx, whole, in_shape, {}).elements(),
                     conv1d_forward_scratch(ctx, low, out_shape, {}).elements()});
  const Block<float> residual(ctx, whole), chosen(ctx, whole), projected(ctx, low), rows_chosen(ctx, low),
      scratch(ctx, {.channels = most});
  const Block<int32_t> codes(ctx, {.time = rows});
  Projections projections{in_weight_, out_weight_, in_bias_, out_bias_};
  std::optional<Block<float>> in_copy, out_copy;
  if (projections.need_copies()) {
    projections.in_copy = in_copy.emplace(ctx, in_weight_->shape);
    projections.out_copy = out_copy.emplace(ctx, out_weight_->shape);
  }
  projections.refresh(ctx);
  const RvqProjections weights = projections.views();
  ctx.copy<float>(latents, residual);
  std::vector<float> host_residual(static_cast<size_t>(rows * latent)), host_chosen(host_residual.size());
  if (progress) progress(0, config_.n_codebooks);
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
                    .iterations = kmeans_iterations,
                    .seed = seed + static_cast<uint64_t>(stage) * 0x9E3779B97F4A7C15ull});
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
    if (progress) progress(stage + 1, config_.n_codebooks);
  }
  if (factorised()) return;
  // Every code starts as if one batch had chosen it once. Codes that no batch chooses decay and are replaced.
  ctx.write<float>(std::vector<float>(static_cast<size_t>(counts_->value.elements()), 1.0f), counts_->value);
  ctx.copy<float>(codebooks_->value, sums_->value);
}

}  // namespace nacre
