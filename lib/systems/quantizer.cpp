// The quantizer as steps of a plan: registration of a cascade's parameters, training and coding (plan), and decoding
// (plan_decode). The search and its gradients are in ops/rvq.h. Two rates: two_rates.cpp. Start from data:
// codebook_start.cpp.
#include "nacre/systems/quantizer.h"

#include <algorithm>

#include "nacre/ops/two_rates.h"
#include "nn/sum.h"
#include "systems/projections.h"

namespace nacre {
namespace {

// One name per stage: tensors of a stack have names of their own in files.
std::vector<std::string> stage_names(const std::string& before, int64_t stages, const std::string& after) {
  std::vector<std::string> names;
  for (int64_t i = 0; i < stages; ++i) names.push_back(before + std::to_string(i) + after);
  return names;
}

}  // namespace

// Parameters of n stages, as stacks with the stage as first axis, so that one op runs all stages. Factorised codes have
// projections and codebooks that gradients train. Other codebooks are buffers: moving averages of the rows that chose a
// code train them (vq_ema).
Quantizer::Cascade Quantizer::cascade(Parameters& p, const std::string& at, int64_t n) const {
  const int64_t k = config_.codebook_size, d = config_.code_dim(), latent = config_.latent();
  const Shape books{.batch = n, .time = k, .channels = d};
  Cascade c{.stages = n};
  if (factorised()) {
    c.codebooks = &p.add_stack(stage_names(at, n, ".codebook.weight"), {k, d}, books, {Init::normal, 1.0});
    c.in_weight = &p.add_weight(stage_names(at, n, ".in_proj"), {d, latent, 1},
                                {.batch = n, .time = d, .channels = latent}, uniform_by_fan_in(latent));
    c.out_weight = &p.add_weight(stage_names(at, n, ".out_proj"), {latent, d, 1},
                                 {.batch = n, .time = latent, .channels = d}, uniform_by_fan_in(d));
    c.in_bias = &p.add_stack(stage_names(at, n, ".in_proj.bias"), {d}, {.batch = n, .channels = d}, {Init::zero});
    c.out_bias =
        &p.add_stack(stage_names(at, n, ".out_proj.bias"), {latent}, {.batch = n, .channels = latent}, {Init::zero});
    const Projections projections{c.in_weight, c.out_weight, c.in_bias, c.out_bias};
    c.derived = &p.derive(at + "projections", Projections::derived_shape(n, d, latent),
                          [projections](Context& ctx, View<float> to) { projections.refresh(ctx, to); });
  } else {
    // Initial rows until start() replaces them by data: distinct, of the scale of an untrained encoder's outputs, with
    // a count of one.
    const Init rows{Init::normal, 0.1, true};
    c.codebooks = &p.add_stack(stage_names(at, n, ".codebook.embed"), {k, d}, books, rows, StoredAs::same, false);
    c.counts = &p.add_stack(stage_names(at, n, ".codebook.cluster_size"), {k}, {.batch = n, .channels = k}, {Init::one},
                            StoredAs::same, false);
    c.sums = &p.add_stack(stage_names(at, n, ".codebook.embed_avg"), {k, d}, books, rows, StoredAs::same, false);
  }
  return c;
}

Quantizer::Quantizer(Parameters& p, const CodecConfig& c, Storage surveyed) : config_(c), surveyed_(surveyed) {
  const int64_t latent = c.latent(), positions = c.positions_per_frame();
  if (c.two_rates()) {
    reduce_.emplace(p, "quantizer.long.reduce", latent, latent, positions, Conv1dGeometry{.stride = positions});
    long_ = cascade(p, "quantizer.long.quantizers.", c.long_codebooks);
    expand_.emplace(p, "quantizer.long.expand", latent, latent, positions, positions, 0, 0);
  }
  all_ = cascade(p, "quantizer.quantizers.", c.n_codebooks - c.long_codebooks);
  if (c.synthesiser_kernel_size > 0)
    synthesiser_.emplace(p, "quantizer.synthesiser", latent, c.synthesiser_kernel_size, 1, c.activation);
}

namespace {

/// Distances to all codes are exact, so they do not use tensor cores. `update`: the averages of the codebooks follow
/// the codes (vq_ema), which reads and writes codebooks and sums and reads the quantised rows. `orthogonal`: sums over
/// the error z - y come first.
Costs quantizer_costs(Shape z, Shape books, bool factorised, bool update, bool orthogonal) {
  const auto rows = static_cast<double>(z.rows()), latent = static_cast<double>(z.channels),
             stages = static_cast<double>(books.batch), dim = static_cast<double>(books.channels),
             codes = static_cast<double>(books.time);
  const double projections = factorised ? stages * dim * latent : 0;
  const double values = 4 * rows * latent, kept = 4 * rows * stages * dim, book = 4 * stages * codes * dim,
               indices = 4 * rows * stages;
  // Every step prepares the search: it writes the codebooks in another layout, padded to whole groups of codes, and
  // with their norms. The search reads the result.
  constexpr int64_t code_pad = 128;
  const double prepared =
      4 * stages * static_cast<double>((books.time + code_pad - 1) / code_pad * code_pad) * (dim + 1);
  Costs c{.forward = {.products = 4 * rows * projections,
                      .floats = 2 * rows * stages * codes * dim,
                      .bytes = book + 2 * prepared + 2 * values + kept + indices + 8 * projections,
                      .launches = 3}};
  if (factorised) {
    // Projections of all stages at once, the search by their products, and the sum of the codes' projections.
    const double products = 4 * stages * dim * stages * dim;
    c.forward.bytes += 2 * kept + indices + products, c.forward.launches = 5;
    // Zeros for the projections' gradients, the chain over the stages, the sums of these gradients, and those of the
    // codebooks.
    c.input_gradient = {.products = 12 * rows * projections,
                        .floats = 4 * rows * stages * dim,
                        .bytes = 5 * values + 4 * kept + 2 * indices + 3 * book + 32 * projections,
                        .launches = 6};
  } else {
    // dz from dy and the error z - y, which is the sum of the stages' codes.
    c.input_gradient = {.floats = 4 * rows * stages * dim, .bytes = 3 * values + kept, .launches = 1};
    if (orthogonal) c.input_gradient += {.floats = 4 * rows * stages * dim, .bytes = kept + indices, .launches = 1};
  }
  if (update)
    c.input_gradient +=
        {.floats = 2 * rows * stages * dim, .bytes = 3 * book + kept + 4 * rows * dim + 3 * indices, .launches = 2};
  return c;
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
          .out_bias = first(p.out_bias, stages),
          .products = p.products};
}

}  // namespace

Quantized Quantizer::plan(Plan& p, Flow z, const QuantizerUse& use) const {
  if (config_.two_rates()) return plan_two_rates(p, z, use);
  // Training uses all stages. Quantizer dropout chooses stages per item, by `Quantized::stages`.
  const int64_t stages = p.training() || use.codebooks == 0 ? config_.n_codebooks : use.codebooks;
  return plan_cascade(p, "quantizer", all_, z, stages, use);
}

Quantized Quantizer::plan_cascade(Plan& p, const std::string& name, const Cascade& own, Flow z, int64_t stages,
                                  const QuantizerUse& use, const Numbers* given) const {
  const Step s = p.step(name);
  Context& context = p.context();
  // `books`: the codebooks in use, [stages, codes, 1, dim].
  const Shape shape = z.shape, books{.batch = stages, .time = config_.codebook_size, .channels = config_.code_dim()};
  const bool latent_codes = !factorised();
  const auto in = s.reads<float>(z, Until::backward);
  const auto out = s.makes<float>(shape);
  s.costs(quantizer_costs(shape, books, factorised(), latent_codes && p.training(), use.orthogonal && latent_codes));
  Quantized q{.flow = out.flow,
              .late = out.flow,
              .codes = p.persistent<int32_t>({.batch = shape.batch, .time = shape.time, .channels = stages})};
  const Projections projections{own.in_weight, own.out_weight, own.in_bias, own.out_bias, own.derived};
  // Training uses the nearest codes. The codebooks' averages assume them: with a beam, a stage's code is no longer the
  // mean of the stage's inputs, because later stages compensate for it.
  const int64_t beam = p.training() ? 1 : use.beam > 0 ? use.beam : config_.beam;
  const View<float> scratch =
      s.scratch(rvq_forward_scratch(context, shape, books, factorised(), beam, factorised()), Until::forward);
  // What each stage searched for (r_i or e_i), for the backward pass and the averages.
  const View<float> quantised =
      s.saved<float>({.batch = stages, .time = shape.batch * shape.time, .channels = config_.code_dim()});
  if (p.training()) {
    q.losses = p.persistent<float>({.channels = 2});
    q.stages = given != nullptr ? given->stages : p.persistent<int32_t>({.channels = shape.batch});
    q.frames = given != nullptr ? given->frames : p.persistent<int32_t>({.channels = shape.batch});
  }
  // Only with products of the projections can the search do without y.
  const bool codes_only = use.codes_only && factorised() && !p.training();
  s.forward([=, codebooks = own.codebooks, metric = config_.metric](Context& c) {
    rvq_forward(c, {.z = in.value,
                    .codebooks = first(codebooks->value, stages),
                    .projections = first(projections.views(), stages),
                    .stages = q.stages,
                    .frames = q.frames,
                    .y = codes_only ? View<float>{} : out.value,
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
  const View<float> dcodebooks = s.gradient(*own.codebooks);
  const auto weight_grad = [&](const Weight* w) { return w != nullptr ? s.gradient(*w) : WeightGrad{}; };
  const auto bias_grad = [&](const Parameter* b) { return b != nullptr ? s.gradient(*b) : View<float>{}; };
  const WeightGrad din = weight_grad(own.in_weight), dout = weight_grad(own.out_weight);
  const View<float> din_bias = bias_grad(own.in_bias), dout_bias = bias_grad(own.out_bias);
  s.backward([=, codebooks = own.codebooks](Context& c) {
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

  // The update runs right after the backward pass (Step::update), so its scratch is alive then.
  const View<float> update_scratch = s.scratch(vq_ema_scratch(context, quantised.shape, books), Until::backward);
  q.update = [=, seed = use.seed, step = use.step, codes = q.codes, frames = q.frames, codebooks = own.codebooks,
              counts = own.counts, sums = own.sums,
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
  // A run that is given up before the weights move must not leave half of a step in the codebooks either.
  for (const Parameter* changed : {own.codebooks, own.counts, own.sums}) s.changes(changed->value);
  s.update([update = q.update, decay = config_.ema_decay_of(shape.rows())](Context& c) { update(c, decay); });
  return q;
}

Flow Quantizer::plan_decode_cascade(Plan& p, const std::string& name, const Cascade& own, View<const int32_t> codes,
                                    int64_t first, int64_t columns, int64_t positions) const {
  const Step s = p.step(name);
  // Part of a frame's columns is copied, and then seen as the codes of positions.
  // [batch, frames, 1, columns] read as [batch, frames positions, 1, columns / positions]: a frame's codes lie position
  // by position.
  const bool whole = columns == codes.shape.channels;
  View<int32_t> own_columns{};
  Shape frames = codes.shape, rows = codes.shape;
  frames.channels = columns;
  rows.time *= positions, rows.channels = columns / positions;
  if (!whole) own_columns = s.scratch<int32_t>(frames, Until::forward);
  const View<const int32_t> used(whole ? codes.data : own_columns.data, rows);
  const Shape y{.batch = rows.batch, .time = rows.time, .channels = config_.latent()};
  const auto out = s.makes<float>(y);
  const Projections projections{own.in_weight, own.out_weight, own.in_bias, own.out_bias, own.derived};
  const View<float> scratch =
      s.scratch(rvq_decode_scratch(p.context(), rows, y, own.codebooks->shape, factorised()), Until::forward);
  s.forward([=, codebooks = own.codebooks](Context& c) {
    if (!whole) copy_columns(c, {.x = codes, .y = own_columns, .from = first, .columns = columns});
    rvq_decode(c, {.codes = used,
                   .codebooks = codebooks->value,
                   .projections = projections.views(),
                   .y = out.value,
                   .scratch = scratch});
  });
  return out.flow;
}

Flow Quantizer::plan_decode(Plan& p, View<const int32_t> codes) const {
  const int64_t columns = codes.shape.channels;
  if (!config_.two_rates()) return plan_decode_cascade(p, "quantizer", all_, codes, 0, columns, 1);
  if (config_.codebooks_of(columns) == 0)
    throw Error(ErrorKind::usage, "quantizer: " + std::to_string(columns) + " codes per frame, expected " +
                                      std::to_string(config_.codes_per_frame()) + " or those of fewer codebooks");
  const int64_t of_long = std::min(columns, long_.stages);
  Flow sum = plan_expanded(p, plan_decode_cascade(p, "quantizer.long", long_, codes, 0, of_long, 1));
  if (columns > of_long)
    sum = sum_of(
        p, "quantizer.sum", sum,
        plan_decode_cascade(p, "quantizer", all_, codes, of_long, columns - of_long, config_.positions_per_frame()));
  return plan_synthesis(p, sum);
}

}  // namespace nacre
