// Initialises codebooks from data. Each stage runs k-means on the residual that the nearest codes of the earlier stages
// leave.
#include <algorithm>

#include "nacre/ops/conv1d.h"
#include "nacre/ops/vq.h"
#include "nacre/systems/quantizer.h"
#include "systems/projections.h"
#include "systems/two_rates.h"

namespace nacre {
namespace {

constexpr int kmeans_iterations = 10;
constexpr uint64_t seed_step = 0x9E3779B97F4A7C15ull;  // from one stage to the next

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

// progress counts codebooks: it is called with 0 here, and by start_cascade() after every stage.
void Quantizer::start(Context& ctx, View<const float> latents, uint64_t seed, const StartProgress& progress) const {
  if (progress) progress(0, config_.n_codebooks);
  if (config_.two_rates()) return start_two_rates(ctx, latents, seed, progress);
  start_cascade(ctx, all_, latents, seed, 0, progress);
}

void Quantizer::start_two_rates(Context& ctx, View<const float> z, uint64_t seed, const StartProgress& progress) const {
  // All rows as one item. They are whole frames, so the stride of the reduction cuts none.
  const Shape shape{.time = z.shape.rows(), .channels = config_.latent()};
  // Runs part of the quantizer over all rows.
  const auto result_of = [&](const std::function<Flow(Plan&, Flow)>& walk,
                             const std::function<void(View<const float>)>& use) {
    Plan plan(ctx, Purpose::inference);
    View<float> in;
    View<const float> out;
    // A plan for each part: its memory is free again before the next part starts.
    plan.reserve([&](Plan& p) {
      const Output<float> source = p.source<float>(shape);
      in = source.value;
      out = p.result<float>(walk(p, source.flow));
    });
    ctx.copy<float>(View<const float>(z.data, shape), in);
    plan.run();
    use(out);
  };
  // Long cascade: from the latent at one vector per frame.
  result_of([&](Plan& p, Flow x) { return plan_reduced(p, x); },
            [&](View<const float> g) { start_cascade(ctx, long_, g, seed, 0, progress); });
  result_of(
      [&](Plan& p, Flow x) {
        const Quantized long_term =
            plan_cascade(p, "quantizer.long", long_, plan_reduced(p, x), long_.stages, {.beam = 1});
        return plan_rest(p, x, plan_expanded(p, long_term.flow), {});
      },
      [&](View<const float> r) {
        start_cascade(ctx, all_, r, seed + static_cast<uint64_t>(long_.stages) * seed_step, long_.stages, progress);
      });
}

void Quantizer::start_cascade(Context& ctx, const Cascade& own, View<const float> latents, uint64_t seed,
                              int64_t stages_before, const StartProgress& progress) const {
  // own.stages codebooks in turn, from latents [rows, latent]. Each starts by k-means over what the earlier ones left:
  // the residual itself, or its projection to `dim` channels. The residual then loses what the nearest codes give: r -=
  // E[c], or r -= W_out E[c] + b_out. `stages_before`: codebooks of the cascade before this one, for the progress
  // alone.
  const int64_t rows = latents.shape.rows(), latent = config_.latent(), d = config_.code_dim(),
                k = config_.codebook_size;
  const Shape whole{.time = rows, .channels = latent}, low{.time = rows, .channels = d}, book{.time = k, .channels = d};
  const Shape in_shape{.batch = d, .channels = latent}, out_shape{.batch = latent, .channels = d};
  // All ops run in turn, so one block serves all.
  int64_t most = std::max(vq_kmeans_scratch(ctx, low, book).elements(), vq_nearest_scratch(ctx, low, book).elements());
  if (factorised())
    most = std::max({most, conv1d_forward_scratch(ctx, whole, in_shape, {}).elements(),
                     conv1d_forward_scratch(ctx, low, out_shape, {}).elements()});
  const Block<float> residual(ctx, whole), chosen(ctx, whole), projected(ctx, low), rows_chosen(ctx, low),
      scratch(ctx, {.channels = most});
  const Block<int32_t> codes(ctx, {.time = rows});
  // Floats, also of a model in bf16. Only codebooks change here, so the projections stay valid.
  const RvqProjections weights =
      Projections{own.in_weight, own.out_weight, own.in_bias, own.out_bias, own.derived}.views();
  ctx.copy<float>(latents, residual);
  std::vector<float> host_residual(static_cast<size_t>(rows * latent)), host_chosen(host_residual.size());
  for (int64_t stage = 0; stage < own.stages; ++stage) {
    // The stage's rows in the stack of codebooks: k-means writes the parameter in place.
    const View<float> centres(own.codebooks->value.data + stage * k * d, book);
    View<const float> x = residual;
    if (factorised()) {
      conv1d_forward(ctx, {.x = residual,
                           .weight = View<const float>(weights.in_weight.data + stage * d * latent, in_shape),
                           .bias = View<const float>(own.in_bias->value.data + stage * d, {.channels = d}),
                           .y = projected,
                           .scratch = scratch});
      x = projected;
    }
    vq_kmeans(ctx, {.x = x,
                    .codebook = centres,
                    .scratch = scratch,
                    .iterations = kmeans_iterations,
                    .seed = seed + static_cast<uint64_t>(stage) * seed_step});
    vq_nearest(ctx, {.x = x, .codebook = centres, .codes = codes, .scratch = scratch, .metric = config_.metric});
    if (factorised()) {
      vq_gather(ctx, {.codebook = centres, .codes = codes, .y = rows_chosen});
      conv1d_forward(ctx, {.x = rows_chosen,
                           .weight = View<const float>(weights.out_weight.data + stage * d * latent, out_shape),
                           .bias = View<const float>(own.out_bias->value.data + stage * latent, {.channels = latent}),
                           .y = chosen,
                           .scratch = scratch});
    } else {
      vq_gather(ctx, {.codebook = centres, .codes = codes, .y = chosen});
    }
    // The difference is taken on the host: this happens once per codebook before training.
    ctx.read<float>(residual, host_residual);
    ctx.read<float>(chosen, host_chosen);
    for (size_t i = 0; i < host_residual.size(); ++i) host_residual[i] -= host_chosen[i];
    ctx.write<float>(host_residual, residual);
    if (progress) progress(stages_before + stage + 1, config_.n_codebooks);
  }
  if (factorised()) return;
  // Every code starts as if one batch had chosen it once. Codes that no batch chooses decay and are replaced.
  ctx.write<float>(std::vector<float>(static_cast<size_t>(own.counts->value.elements()), 1.0f), own.counts->value);
  ctx.copy<float>(own.codebooks->value, own.sums->value);
}

}  // namespace nacre
