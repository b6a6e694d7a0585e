#include "nacre/codec/codec.h"

#include <algorithm>

#include "nacre/ops/convert.h"

namespace nacre {
namespace {

std::vector<std::string> stage_names(const std::string& before, int64_t stages, const std::string& after) {
  std::vector<std::string> names;
  for (int64_t i = 0; i < stages; ++i) names.push_back(before + std::to_string(i) + after);
  return names;
}

int64_t half(int64_t stride) { return (stride + 1) / 2; }  // DAC's padding of strided layers, ceil(stride / 2)

template <class T>
std::vector<ResidualUnit<T>> units(Parameters& p, const CodecConfig& c, const std::string& name, size_t first,
                                   int64_t channels) {
  std::vector<ResidualUnit<T>> made;
  for (size_t i = 0; i < c.dilations.size(); ++i)
    made.emplace_back(p, name + std::to_string(first + i), channels, c.kernel_size, c.dilations[i], c.activation);
  return made;
}

}  // namespace

// ---- Encoder
// -------------------------------------------------------------------------------------------------------------

template <class T>
Encoder<T>::Encoder(Parameters& p, const CodecConfig& c)
    : first_(p, "encoder.block.0", 1, c.encoder_dim, c.kernel_size,
             {.left = (c.kernel_size - 1) / 2, .right = (c.kernel_size - 1) / 2}) {
  const size_t per_block = c.dilations.size();
  int64_t channels = c.encoder_dim;
  size_t index = 1;
  for (const int64_t rate : c.encoder_rates) {
    const std::string name = "encoder.block." + std::to_string(index++) + ".block.";
    blocks_.push_back({units<T>(p, c, name, 0, channels),
                       ActivatedConv1d<T>(p, name + std::to_string(per_block), name + std::to_string(per_block + 1),
                                          channels, 2 * channels, 2 * rate, c.activation,
                                          {.stride = rate, .left = half(rate), .right = half(rate)})});
    channels *= 2;
  }
  last_.emplace_back(p, "encoder.block." + std::to_string(index), "encoder.block." + std::to_string(index + 1),
                     channels, c.latent(), 3, c.activation, Conv1dGeometry{.left = 1, .right = 1});
}

template <class T>
Flow<T> Encoder<T>::plan(Plan& p, Flow<T> x) {
  x = first_.plan(p, x);
  for (Block& b : blocks_) {
    for (ResidualUnit<T>& u : b.units) x = u.plan(p, x);
    x = b.down.plan(p, x);
  }
  return last_[0].plan(p, x);
}
template <class T>
void Encoder<T>::forward(Context& c) {
  first_.forward(c);
  for (Block& b : blocks_) {
    for (ResidualUnit<T>& u : b.units) u.forward(c);
    b.down.forward(c);
  }
  last_[0].forward(c);
}
template <class T>
void Encoder<T>::backward(Context& c) {
  last_[0].backward(c);
  for (size_t i = blocks_.size(); i-- > 0;) {
    blocks_[i].down.backward(c);
    for (size_t u = blocks_[i].units.size(); u-- > 0;) blocks_[i].units[u].backward(c);
  }
  first_.backward(c);
}

// ---- Decoder
// -------------------------------------------------------------------------------------------------------------

template <class T>
Decoder<T>::Decoder(Parameters& p, const CodecConfig& c)
    : first_(p, "decoder.model.0", c.latent(), c.decoder_dim, c.kernel_size,
             {.left = (c.kernel_size - 1) / 2, .right = (c.kernel_size - 1) / 2}) {
  const int64_t edge = (c.kernel_size - 1) / 2;
  int64_t channels = c.decoder_dim;
  size_t index = 1;
  for (const int64_t rate : c.decoder_rates) {
    const std::string name = "decoder.model." + std::to_string(index++) + ".block.";
    blocks_.push_back({Activation<T>(p, name + "0", channels, c.activation),
                       ConvTranspose1d<T>(p, name + "1", channels, channels / 2, 2 * rate, rate, half(rate), rate % 2),
                       units<T>(p, c, name, 2, channels / 2)});
    channels /= 2;
  }
  const std::string name = "decoder.model.";
  last_.emplace_back(p, name + std::to_string(index), name + std::to_string(index + 1), channels, 1, c.kernel_size,
                     c.activation, Conv1dGeometry{.left = edge, .right = edge});
  if (c.output_tanh) tanh_.emplace_back(p, name + std::to_string(index + 2), 1, ActivationKind::tanh);
}

template <class T>
Flow<T> Decoder<T>::plan(Plan& p, Flow<T> x) {
  x = first_.plan(p, x);
  for (Block& b : blocks_) {
    x = b.up.plan(p, b.activation.plan(p, x));
    for (ResidualUnit<T>& u : b.units) x = u.plan(p, x);
  }
  x = last_[0].plan(p, x);
  return tanh_.empty() ? x : tanh_[0].plan(p, x);
}
template <class T>
void Decoder<T>::forward(Context& c) {
  first_.forward(c);
  for (Block& b : blocks_) {
    b.activation.forward(c);
    b.up.forward(c);
    for (ResidualUnit<T>& u : b.units) u.forward(c);
  }
  last_[0].forward(c);
  for (Activation<T>& t : tanh_) t.forward(c);
}
template <class T>
void Decoder<T>::backward(Context& c) {
  for (Activation<T>& t : tanh_) t.backward(c);
  last_[0].backward(c);
  for (size_t i = blocks_.size(); i-- > 0;) {
    for (size_t u = blocks_[i].units.size(); u-- > 0;) blocks_[i].units[u].backward(c);
    blocks_[i].up.backward(c);
    blocks_[i].activation.backward(c);
  }
  first_.backward(c);
}

template class Encoder<float>;
template class Encoder<bf16>;
template class Decoder<float>;
template class Decoder<bf16>;

// ---- Quantizer
// -----------------------------------------------------------------------------------------------------------

Quantizer::Quantizer(Parameters& p, const CodecConfig& c) : config_(c) {
  const int64_t n = c.n_codebooks, k = c.codebook_size, d = c.code_dim(), latent = c.latent();
  const std::string at = "quantizer.quantizers.";
  const Shape books{.batch = n, .time = k, .channels = d};
  if (factorised()) {
    codebooks_ = &p.add_stack(stage_names(at, n, ".codebook.weight"), {k, d}, books);
    in_weight_ =
        &p.add_weight(stage_names(at, n, ".in_proj"), {d, latent, 1}, {.batch = n, .time = d, .channels = latent});
    out_weight_ =
        &p.add_weight(stage_names(at, n, ".out_proj"), {latent, d, 1}, {.batch = n, .time = latent, .channels = d});
    in_bias_ = &p.add_stack(stage_names(at, n, ".in_proj.bias"), {d}, {.batch = n, .channels = d});
    out_bias_ = &p.add_stack(stage_names(at, n, ".out_proj.bias"), {latent}, {.batch = n, .channels = latent});
  } else {
    codebooks_ = &p.add_stack(stage_names(at, n, ".codebook.embed"), {k, d}, books, StoredAs::same, false);
    counts_ = &p.add_stack(stage_names(at, n, ".codebook.cluster_size"), {k}, {.batch = n, .channels = k},
                           StoredAs::same, false);
    sums_ = &p.add_stack(stage_names(at, n, ".codebook.embed_avg"), {k, d}, books, StoredAs::same, false);
  }
}

RvqProjections Quantizer::projections() const {
  if (!factorised()) return {};
  const auto weight = [](const Weight& w, View<float> converted) {
    return converted ? View<const float>(converted) : w.value<float>();
  };
  return {.in_weight = weight(*in_weight_, in_weight32_),
          .in_bias = in_bias_->value,
          .out_weight = weight(*out_weight_, out_weight32_),
          .out_bias = out_bias_->value};
}
void Quantizer::plan_projections(Plan& p) {
  if (!factorised() || in_weight_->value32) return;
  in_weight32_ = p.keeps<float>(in_weight_->shape);
  out_weight32_ = p.keeps<float>(out_weight_->shape);
}
void Quantizer::refresh_projections(Context& c) {
  if (!in_weight32_) return;
  convert<bf16, float>(c, {.x = in_weight_->value<bf16>(), .y = in_weight32_});
  convert<bf16, float>(c, {.x = out_weight_->value<bf16>(), .y = out_weight32_});
}

Flow<float> Quantizer::plan(Plan& p, Flow<float> z) {
  p.next_step();
  Context& c = p.context();
  const Shape s = z.shape, books = codebooks_->shape;
  const int64_t stages = config_.n_codebooks;
  z_ = p.reads(z, Phase::backward);
  y_ = p.makes<float>(s);
  codes_ = p.keeps<int32_t>({.batch = s.batch, .time = s.time, .channels = stages});
  plan_projections(p);
  // The codebooks' averages are those of nearest codes: under a beam a stage's code is no longer the mean of what the
  // stage sees, for later stages make up for it.
  beam_ = p.training() ? 1 : config_.beam;
  forward_scratch_ = p.scratch(rvq_forward_scratch(c, s, books, factorised(), beam_), Phase::forward);
  if (p.training()) {
    losses_ = p.keeps<float>({.channels = 2});
    stages_ = p.keeps<int32_t>({.channels = s.batch});
    frames_ = p.keeps<int32_t>({.channels = s.batch});
    quantised_ = p.kept<float>({.batch = stages, .time = s.batch * s.time, .channels = config_.code_dim()});
    backward_scratch_ = p.scratch(rvq_backward_scratch(c, s, books, factorised()), Phase::backward);
    if (!factorised()) update_scratch_ = p.scratch(vq_ema_scratch(c, quantised_.shape, books), Phase::backward);
  }
  return y_.flow;
}

void Quantizer::forward(Context& c) {
  refresh_projections(c);
  rvq_forward(c, {.z = z_.value,
                  .codebooks = codebooks_->value,
                  .projections = projections(),
                  .stages = stages_,
                  .frames = frames_,
                  .y = y_.value,
                  .codes = codes_,
                  .quantised = quantised_,
                  .losses = losses_,
                  .scratch = forward_scratch_,
                  .metric = config_.metric,
                  .beam = beam_});
}

void Quantizer::backward(Context& c) {
  rvq_backward(c, {.z = z_.value,
                   .codebooks = codebooks_->value,
                   .projections = projections(),
                   .stages = stages_,
                   .frames = frames_,
                   .codes = codes_,
                   .quantised = quantised_,
                   .dy = y_.grad,
                   .dz = z_.grad,
                   .dcodebooks = codebooks_->grad,
                   .din_weight = factorised() ? in_weight_->added_to(c) : View<float>{},
                   .din_bias = factorised() ? in_bias_->grad : View<float>{},
                   .dout_weight = factorised() ? out_weight_->added_to(c) : View<float>{},
                   .dout_bias = factorised() ? out_bias_->grad : View<float>{},
                   .scratch = backward_scratch_,
                   .commitment_weight = commitment_,
                   .codebook_weight = codebook_,
                   .orthogonal = orthogonal_,
                   .add_dz = z_.add});
}

void Quantizer::update(Context& c, View<const int32_t> step, uint64_t seed, double decay) {
  if (factorised()) return;
  vq_ema(c, {.x = quantised_,
             .codes = codes_,
             .frames = frames_,
             .batch = codes_.shape.batch,
             .codebooks = codebooks_->value,
             .counts = counts_->value,
             .sums = sums_->value,
             .step = step,
             .scratch = update_scratch_,
             .decay = static_cast<float>(decay),
             .dead_below = static_cast<float>(config_.dead_below),
             .seed = seed});
}

Flow<float> Quantizer::plan_decode(Plan& p, View<const int32_t> codes) {
  p.next_step();
  decode_codes_ = codes;
  const Shape y{.batch = codes.shape.batch, .time = codes.shape.time, .channels = config_.latent()};
  y_ = p.makes<float>(y);
  forward_scratch_ =
      p.scratch(rvq_decode_scratch(p.context(), codes.shape, y, codebooks_->shape, factorised()), Phase::forward);
  return y_.flow;
}
void Quantizer::decode(Context& c) {
  rvq_decode(c, {.codes = decode_codes_,
                 .codebooks = codebooks_->value,
                 .projections = projections(),
                 .y = y_.value,
                 .scratch = forward_scratch_});
}

}  // namespace nacre
