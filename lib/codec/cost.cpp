// Cost of a training step. The steps of the network and the losses declare their own costs (Step::costs), so most rows
// come from a survey of the same walk as TrainingStep's (training_step.cpp), which must change with it. What runs
// outside of steps is counted here: the copy of the batch, the products of projections, and the optimizer.
#include "nacre/codec/cost.h"

#include <algorithm>

#include "nacre/codec/codec.h"
#include "nacre/discriminators/signals.h"
#include "nn/segment_scale.h"

namespace nacre {
namespace {

/// name, source, bytes/s of a copy, operations/s in fp32, tf32 and bf16.
const std::vector<DeviceCeilings>& known_devices() {
  static const std::vector<DeviceCeilings> all{
      {"h200", "copy and bf16 measured, the rest nominal", 4.3e12, 60e12, 400e12, 790e12},
      {"h100", "nominal, SXM", 3.35e12, 67e12, 495e12, 989e12},
      {"a100", "nominal, 80 GB SXM", 2.04e12, 19.5e12, 156e12, 312e12},
      {"rtx4090", "nominal", 1.01e12, 82.6e12, 82.6e12, 165e12}};
  return all;
}

/// The end of a step: zeroing of the gradients that ops add to (all but those of weights), norms of rows for the clip,
/// then AdamW with averages and the next effective weights.
void add_optimizer(std::vector<CostRow>& rows, const std::string& name, const Parameters& parameters, Storage storage,
                   bool averaged) {
  double weights = 0, gains = 0, rows_of_weights = 0, trained = 0;
  for (const Weight& w : parameters.weights()) {
    weights += static_cast<double>(w.shape.elements());
    rows_of_weights += static_cast<double>(w.v->stored[0]) * static_cast<double>(w.v->names.size());
    if (w.g != nullptr) gains += static_cast<double>(w.g->shape.elements());
  }
  for (const Parameter& p : parameters.all())
    if (p.trained) trained += static_cast<double>(p.shape.elements());
  const double rest = trained - weights - gains;
  const auto element = static_cast<double>(bytes_per_element(storage));
  // In floats: a value, its two moments and its average are read and written, and the gradient is read.
  const double updated = 4 * (averaged ? 9 : 7);
  rows.push_back({.name = name + ".zeros", .backward = {.bytes = 4 * rest}});
  // Of each row a description is read in every pass, and sums are written and read.
  const double described = sizeof(WeightRow) * rows_of_weights, sums = 24 * rows_of_weights;
  rows.push_back(
      {.name = name + ".norms",
       .backward = {
           .floats = 6 * weights, .bytes = 8 * weights + 4 * gains + 4 * rest + described + 2 * sums, .launches = 3}});
  rows.push_back({.name = name + ".update",
                  .backward = {.floats = 24 * weights,
                               .bytes = updated * trained + element * weights + 2 * described + sums,
                               .launches = 3}});
}

/// What every update derives from the projections of a factorised quantizer (systems/projections.h): their products,
/// [stages dim, latent] by [latent, stages dim], from float copies of the projections if they are stored in bf16. 6
/// bytes per element of a copy: 2 read, 4 written.
void add_projections(std::vector<CostRow>& rows, const CodecConfig& c, Storage storage) {
  const auto width = static_cast<double>(c.n_codebooks * c.codebook_dim),
             weights = 2 * width * static_cast<double>(c.latent());
  if (storage == Storage::bfloat16)
    rows.push_back({.name = "quantizer.copies", .backward = {.bytes = 6 * weights, .launches = 2}});
  rows.push_back({.name = "quantizer.projections",
                  .backward = {.floats = width * weights, .bytes = 4 * weights + 4 * width * width, .launches = 1}});
}

/// The copy of a batch behind its arrival: samples are written to the device, read there and written again.
/// 4 bytes for each of these per float.
CostRow batch_row(double samples) { return {.name = "batch", .forward = {.bytes = 12 * samples}}; }

}  // namespace

const DeviceCeilings& device_ceilings(const std::string& name) {
  std::string names;
  for (const DeviceCeilings& d : known_devices()) {
    if (d.name == name) return d;
    names += (names.empty() ? "" : ", ") + d.name;
  }
  throw Error(ErrorKind::usage, "device \"" + name + "\" is unknown; expected one of " + names);
}
std::vector<std::string> device_names() {
  std::vector<std::string> names;
  for (const DeviceCeilings& d : known_devices()) names.push_back(d.name);
  return names;
}

Arithmetic arithmetic(const std::string& name) {
  if (name == "fp32") return Arithmetic::fp32;
  if (name == "tf32") return Arithmetic::tf32;
  if (name == "bf16") return Arithmetic::bf16;
  throw Error(ErrorKind::usage, "precision \"" + name + "\" is unknown; expected fp32, tf32 or bf16");
}

/// Without tensor cores, all operations share one unit, so their times add up. With them, both kinds may overlap.
double floor_seconds(const Work& w, const DeviceCeilings& d, Arithmetic a) {
  if (a == Arithmetic::fp32) return std::max((w.products + w.floats) / d.fp32, w.bytes / d.copy);
  return std::max({w.products / (a == Arithmetic::tf32 ? d.tf32 : d.bf16), w.floats / d.fp32, w.bytes / d.copy});
}

std::vector<CostRow> step_cost(const CodecConfig& c, const LossConfig& loss, int64_t batch, int64_t samples,
                               Arithmetic a, const DiscriminatorConfig& discriminator, bool averaged) {
  const int64_t frames = (samples + c.hop() - 1) / c.hop();
  const Storage storage = a == Arithmetic::bf16 ? Storage::bfloat16 : Storage::float32;
  // A survey: nothing runs, and no parameter has memory.
  Context ctx({.threads = 1, .precision = a == Arithmetic::tf32 ? Precision::tf32 : Precision::fp32});
  Parameters layers, of_discriminators;
  const bool adversarial = loss.adversarial > 0;
  const Discriminators discriminators(of_discriminators, discriminator, storage);
  const Net encoder = encoder_of(layers, c);
  const Quantizer quantizer(layers, c, storage);
  const Net decoder = decoder_of(layers, c);
  Plan plan(ctx, Purpose::training);
  plan.survey([&](Plan& p) {
    if (c.denoise != Denoise::none) p.set_labels(p.persistent<int32_t>({.channels = batch}));
    const Output<float> source =
        p.source<float>({.batch = batch, .time = frames * c.hop(), .channels = c.audio_channels});
    const Normalised audio = c.segment_scale ? normalised(p, source.flow) : Normalised{.flow = source.flow};
    const Flow z = stored_as(p, encoder(p, stored_as(p, audio.flow, storage)), Storage::float32);
    const Flow y = decoder(p, stored_as(p, quantizer.plan(p, z, {.orthogonal = loss.orthogonal}).flow, storage));
    const Flow decoded = stored_as(p, y, Storage::float32);
    const Flow estimate =
        channels_apart(p, "audio.channels", c.segment_scale ? scaled(p, decoded, audio.scales) : decoded);
    const Flow real = channels_apart(p, "audio.channels", source.flow);
    if (!adversarial) {
      plan_losses(p, estimate, {}, {}, loss, c.sample_rate, {}, c.audio_channels);
      return;
    }
    p.inner([&](Plan& inner) {
      plan_discriminator_losses(inner, discriminators, {nullptr, real.shape}, estimate, discriminator.loss);
    });
    const Frozen frozen = p.freeze(of_discriminators);
    const Loss against = adversarial_loss_of(loss, discriminator.loss, discriminators, real);
    plan_losses(p, estimate, {}, {}, loss, c.sample_rate, std::span(&against, 1), c.audio_channels);
  });
  // Discriminators are planned several times: on recorded and decoded audio for their training, and again for the
  // codec's. Their rows are sums.
  std::vector<CostRow> rows{batch_row(static_cast<double>(batch * frames * c.hop() * c.audio_channels))};
  for (const CostRow& row : plan.costs()) {
    const auto same = std::find_if(rows.begin(), rows.end(), [&](const CostRow& r) { return r.name == row.name; });
    if (same == rows.end())
      rows.push_back(row);
    else
      same->forward += row.forward, same->backward += row.backward;
  }
  if (c.quantizer == QuantizerKind::factorised) add_projections(rows, c, storage);
  add_optimizer(rows, "optimizer", layers, storage, averaged);
  // Discriminators have no averages.
  if (adversarial) add_optimizer(rows, "optimizer.discriminator", of_discriminators, storage, false);
  return rows;
}

}  // namespace nacre
