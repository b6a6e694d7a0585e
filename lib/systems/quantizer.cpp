#include "nacre/systems/quantizer.h"

#include <algorithm>

#include "systems/projections.h"

namespace nacre {
namespace {

std::vector<std::string> stage_names(const std::string& before, int64_t stages, const std::string& after) {
  std::vector<std::string> names;
  for (int64_t i = 0; i < stages; ++i) names.push_back(before + std::to_string(i) + after);
  return names;
}

}  // namespace

Quantizer::Quantizer(Parameters& p, const CodecConfig& c) : config_(c) {
  const int64_t n = c.n_codebooks, k = c.codebook_size, d = c.code_dim(), latent = c.latent();
  const std::string at = "quantizer.quantizers.";
  const Shape books{.batch = n, .time = k, .channels = d};
  if (factorised()) {
    codebooks_ = &p.add_stack(stage_names(at, n, ".codebook.weight"), {k, d}, books, {Init::normal, 1.0});
    in_weight_ = &p.add_weight(stage_names(at, n, ".in_proj"), {d, latent, 1},
                               {.batch = n, .time = d, .channels = latent}, uniform_by_fan_in(latent));
    out_weight_ = &p.add_weight(stage_names(at, n, ".out_proj"), {latent, d, 1},
                                {.batch = n, .time = latent, .channels = d}, uniform_by_fan_in(d));
    in_bias_ = &p.add_stack(stage_names(at, n, ".in_proj.bias"), {d}, {.batch = n, .channels = d}, {Init::zero});
    out_bias_ =
        &p.add_stack(stage_names(at, n, ".out_proj.bias"), {latent}, {.batch = n, .channels = latent}, {Init::zero});
  } else {
    // Initial rows until start() replaces them by data: distinct, of the scale of an untrained encoder's outputs, with
    // a count of one.
    const Init rows{Init::normal, 0.1, true};
    codebooks_ = &p.add_stack(stage_names(at, n, ".codebook.embed"), {k, d}, books, rows, StoredAs::same, false);
    counts_ = &p.add_stack(stage_names(at, n, ".codebook.cluster_size"), {k}, {.batch = n, .channels = k}, {Init::one},
                           StoredAs::same, false);
    sums_ = &p.add_stack(stage_names(at, n, ".codebook.embed_avg"), {k, d}, books, rows, StoredAs::same, false);
  }
}

namespace {

/// Distances to all codes are exact, so they do not use tensor cores.
Costs quantizer_costs(Shape z, Shape books, bool factorised) {
  const auto rows = static_cast<double>(z.rows()), latent = static_cast<double>(z.channels),
             stages = static_cast<double>(books.batch), dim = static_cast<double>(books.channels),
             codes = static_cast<double>(books.time);
  const double projections = factorised ? stages * dim * latent : 0;
  const double values = 4 * rows * latent, kept = 4 * rows * stages * dim, book = 4 * stages * codes * dim;
  return {
      .forward = {.products = 4 * rows * projections,
                  .floats = 2 * rows * stages * codes * dim,
                  .bytes = 2 * values + book + kept + 4 * rows * stages + 8 * projections},
      .input_gradient = {.products = 12 * rows * projections,
                         .floats = 4 * rows * stages * dim,
                         .bytes = 2 * values + 2 * kept + 3 * book + 24 * projections + (factorised ? 2 * values : 0)}};
}

/// Allocates float copies of projections that are stored in bf16. The copies live as long as the plan.
Projections planned(Plan& p, Projections projections) {
  if (projections.need_copies()) {
    projections.in_copy = p.persistent<float>(projections.in_weight->shape);
    projections.out_copy = p.persistent<float>(projections.out_weight->shape);
  }
  return projections;
}

/// Clears a gradient that this step should overwrite, because rvq_backward can only add.
View<float> cleared(Context& c, const WeightGrad& g) {
  if (g.grad && !g.add) c.zero(g.grad);
  return g.grad;
}

/// The first `stages` entries of a stack with one entry per stage. An empty view stays empty.
template <class T>
View<T> first(View<T> stack, int64_t stages) {
  if (stack) stack.shape.batch = stages;
  return stack;
}
RvqProjections first(const RvqProjections& p, int64_t stages) {
  return {.in_weight = first(p.in_weight, stages),
          .in_bias = first(p.in_bias, stages),
          .out_weight = first(p.out_weight, stages),
          .out_bias = first(p.out_bias, stages)};
}

}  // namespace

Quantized Quantizer::plan(Plan& p, Flow z, const QuantizerUse& use) const {
  const Step s = p.step("quantizer");
  Context& context = p.context();
  // Training uses all stages. Quantizer dropout chooses stages per item, by `Quantized::stages`.
  const int64_t stages = p.training() || use.codebooks == 0 ? config_.n_codebooks : use.codebooks;
  const Shape shape = z.shape, books{.batch = stages, .time = config_.codebook_size, .channels = config_.code_dim()};
  const bool latent_codes = !factorised();
  const auto in = s.reads<float>(z, Until::backward);
  const auto out = s.makes<float>(shape);
  s.costs(quantizer_costs(shape, books, factorised()));
  Quantized q{.flow = out.flow,
              .codes = p.persistent<int32_t>({.batch = shape.batch, .time = shape.time, .channels = stages})};
  const Projections projections = planned(p, {in_weight_, out_weight_, in_bias_, out_bias_});
  // Training uses the nearest codes. The codebooks' averages assume them: with a beam, a stage's code is no longer the
  // mean of the stage's inputs, because later stages compensate for it.
  const int64_t beam = p.training() ? 1 : use.beam > 0 ? use.beam : config_.beam;
  const View<float> scratch = s.scratch(rvq_forward_scratch(context, shape, books, factorised(), beam), Until::forward);
  const View<float> quantised =
      s.saved<float>({.batch = stages, .time = shape.batch * shape.time, .channels = config_.code_dim()});
  if (p.training()) {
    q.losses = p.persistent<float>({.channels = 2});
    q.stages = p.persistent<int32_t>({.channels = shape.batch});
    q.frames = p.persistent<int32_t>({.channels = shape.batch});
  }
  s.forward([=, codebooks = codebooks_, metric = config_.metric](Context& c) {
    projections.refresh(c);
    rvq_forward(c, {.z = in.value,
                    .codebooks = first(codebooks->value, stages),
                    .projections = first(projections.views(), stages),
                    .stages = q.stages,
                    .frames = q.frames,
                    .y = out.value,
                    .codes = q.codes,
                    .quantised = quantised,
                    .losses = q.losses,
                    .scratch = scratch,
                    .metric = metric,
                    .beam = beam,
                    .mean = use.mean});
  });
  if (!p.training()) return q;

  const View<float> backward_scratch =
      s.scratch(rvq_backward_scratch(context, shape, books, factorised()), Until::backward);
  const View<float> dcodebooks = s.gradient(*codebooks_);
  const auto weight_grad = [&](const Weight* w) { return w != nullptr ? s.gradient(*w) : WeightGrad{}; };
  const auto bias_grad = [&](const Parameter* b) { return b != nullptr ? s.gradient(*b) : View<float>{}; };
  const WeightGrad din = weight_grad(in_weight_), dout = weight_grad(out_weight_);
  const View<float> din_bias = bias_grad(in_bias_), dout_bias = bias_grad(out_bias_);
  s.backward([=, codebooks = codebooks_](Context& c) {
    rvq_backward(c, {.z = in.value,
                     .codebooks = codebooks->value,
                     .projections = projections.views(),
                     .stages = q.stages,
                     .frames = q.frames,
                     .codes = q.codes,
                     .quantised = quantised,
                     .dy = out.grad,
                     .dz = in.grad,
                     .dcodebooks = dcodebooks,
                     .din_weight = cleared(c, din),
                     .din_bias = din_bias,
                     .dout_weight = cleared(c, dout),
                     .dout_bias = dout_bias,
                     .scratch = backward_scratch,
                     .commitment_weight = use.commitment_weight,
                     .codebook_weight = use.codebook_weight,
                     .orthogonal = use.orthogonal && latent_codes,
                     .mean = use.mean,
                     .add_dz = in.add});
  });
  if (!latent_codes || !use.step) return q;

  const View<float> update_scratch = s.scratch(vq_ema_scratch(context, quantised.shape, books), Until::backward);
  q.update = [=, seed = use.seed, step = use.step, codes = q.codes, frames = q.frames, codebooks = codebooks_,
              counts = counts_, sums = sums_,
              dead_below = static_cast<float>(config_.dead_below_of(shape.rows()))](Context& c, double decay) {
    vq_ema(c, {.x = quantised,
               .codes = codes,
               .frames = frames,
               .batch = codes.shape.batch,
               .codebooks = codebooks->value,
               .counts = counts->value,
               .sums = sums->value,
               .step = step,
               .scratch = update_scratch,
               .decay = static_cast<float>(decay),
               .dead_below = dead_below,
               .seed = seed});
  };
  for (const Parameter* changed : {codebooks_, counts_, sums_}) s.changes(changed->value);
  s.update([update = q.update, decay = config_.ema_decay_of(shape.rows())](Context& c) { update(c, decay); });
  return q;
}

Flow Quantizer::plan_decode(Plan& p, View<const int32_t> codes) const {
  const Step s = p.step("quantizer");
  const Shape y{.batch = codes.shape.batch, .time = codes.shape.time, .channels = config_.latent()};
  const auto out = s.makes<float>(y);
  const Projections projections = planned(p, {in_weight_, out_weight_, in_bias_, out_bias_});
  const View<float> scratch = s.scratch(
      rvq_decode_scratch(p.context(), codes.shape, y, codebooks_->shape, factorised()), Until::forward);
  s.forward([=, codebooks = codebooks_](Context& c) {
    projections.refresh(c);
    rvq_decode(c, {.codes = codes,
                   .codebooks = codebooks->value,
                   .projections = projections.views(),
                   .y = out.value,
                   .scratch = scratch});
  });
  return out.flow;
}

}  // namespace nacre
