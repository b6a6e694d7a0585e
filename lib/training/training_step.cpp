#include "nacre/training/training_step.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <cstdio>
#include <optional>

#include "codec/callers.h"

namespace nacre {

void OptimizerConfig::check() const {
  const auto need = [](bool ok, const char* key, double value, const char* expected) {
    if (ok) return;
    char found[32];
    std::snprintf(found, sizeof found, "%.12g", value);
    throw Error(ErrorKind::usage, std::string("optimizer.") + key + " is " + found + ", expected " + expected);
  };
  need(learning_rate > 0 && learning_rate <= 10, "learning_rate", learning_rate, "above 0, at most 10");
  need(beta1 >= 0 && beta1 < 1, "beta1", beta1, "0 to below 1");
  need(beta2 >= 0 && beta2 < 1, "beta2", beta2, "0 to below 1");
  need(eps > 0 && eps < 1, "eps", eps, "above 0, below 1");
  need(weight_decay >= 0 && weight_decay < 100, "weight_decay", weight_decay, "0 or more");
  need(clip >= 0 && clip < 1e9, "clip", clip, "0 (none) or more");
  need(ema_decay >= 0 && ema_decay < 1, "ema_decay", ema_decay, "0 (none) to below 1");
}

namespace {

/// Encoder or decoder behind floats on both ends, whatever it stores inside.
struct Side {
  virtual ~Side() = default;
  virtual Flow<float> plan(Plan&, Flow<float>) = 0;
  virtual void forward(Context&) = 0;
  virtual void backward(Context&) = 0;
};
template <class Net>
struct FloatSide final : Side {
  FloatSide(Parameters& p, const CodecConfig& c) : net(p, c) {}
  Flow<float> plan(Plan& p, Flow<float> x) override { return net.plan(p, x); }
  void forward(Context& c) override { net.forward(c); }
  void backward(Context& c) override { net.backward(c); }
  Net net;
};
template <class Net>
struct Bf16Side final : Side {
  Bf16Side(Parameters& p, const CodecConfig& c, bool first) : in(!first), net(p, c) {}
  Flow<float> plan(Plan& p, Flow<float> x) override { return out.plan(p, net.plan(p, in.plan(p, x))); }
  void forward(Context& c) override { in.forward(c), net.forward(c), out.forward(c); }
  void backward(Context& c) override { out.backward(c), net.backward(c), in.backward(c); }
  Cast<float, bf16> in;
  Net net;
  Cast<bf16, float> out;
};
template <template <class> class Net>
std::unique_ptr<Side> side(Storage storage, Parameters& p, const CodecConfig& c, bool first) {
  if (storage == Storage::bfloat16) return std::make_unique<Bf16Side<Net<bf16>>>(p, c, first);
  return std::make_unique<FloatSide<Net<float>>>(p, c);
}

}  // namespace

struct TrainingStep::Impl {
  Impl(Context& c, const CodecConfig& codec, const LossConfig& loss_config, const OptimizerConfig& opt,
       int64_t batch_size, int64_t wanted_samples, uint64_t seed_value, Storage storage)
      : ctx(c.share()),
        config(codec),
        optimizer(opt),
        seed(seed_value),
        batch(batch_size),
        samples((wanted_samples + codec.hop() - 1) / codec.hop() * codec.hop()),
        encoder(side<Encoder>(storage, parameters, codec, true)),
        quantizer(parameters, codec),
        decoder(side<Decoder>(storage, parameters, codec, false)),
        loss(loss_config, codec.sample_rate),
        plan(ctx, Purpose::training) {
    optimizer.check();
    if (batch < 1) throw Error(ErrorKind::usage, "batch_size is " + std::to_string(batch) + ", expected at least 1");
    if (wanted_samples < codec.hop())
      throw Error(ErrorKind::usage, "segment_length is " + std::to_string(wanted_samples) +
                                        " samples, expected at least one hop, " + std::to_string(codec.hop()));
    quantizer.set_weights(static_cast<float>(loss_config.vq), 1.0f);
    quantizer.set_orthogonal(loss_config.orthogonal);
    parameters.allocate(ctx, true, storage);
    const int64_t n = parameters.trained_elements();
    const bool averaging = optimizer.ema_decay > 0;
    moments_memory = Memory(ctx, static_cast<size_t>(n) * (averaging ? 3 : 2) * sizeof(float));
    auto* at = reinterpret_cast<float*>(moments_memory.data());
    m = View<float>(at, {.channels = n});
    v = View<float>(at + n, {.channels = n});
    if (averaging) average = View<float>(at + 2 * n, {.channels = n});
    scalars_memory = Memory(ctx, sizeof(AdamWScalars));
    scalars = View<AdamWScalars>(reinterpret_cast<AdamWScalars*>(scalars_memory.data()), {});
    const Shape scratch = parameters.update_scratch(ctx);
    adamw_scratch_memory = Memory(ctx, static_cast<size_t>(scratch.elements()) * sizeof(float));
    optimizer_scratch = View<float>(reinterpret_cast<float*>(adamw_scratch_memory.data()), scratch);
    initialise(ctx, parameters, config, seed);
    reset_average();
    plan.reserve([this](Plan& p) {
      p.next_step();
      const Made<float> source = p.source<float>({.batch = batch, .time = samples});
      audio = source.value;
      lengths = p.keeps<int32_t>({.channels = batch});
      const Flow<float> z = encoder->plan(p, source.flow);
      latent = p.training() ? View<const float>(p.result(z)) : View<const float>{};
      loss.plan(p, decoder->plan(p, quantizer.plan(p, z)), audio, lengths);
    });
    set_learning_rate(optimizer.learning_rate);
    captures = ctx.device().kind == Device::cuda;
    host.stages.assign(static_cast<size_t>(batch), static_cast<int32_t>(config.n_codebooks));
    host.frames.resize(static_cast<size_t>(batch));
  }

  void reset_average() {
    if (average) ctx.copy<float>(parameters.values(), average);
  }
  void set_learning_rate(double lr) {
    const float value = static_cast<float>(lr);
    ctx.upload<float>(std::span<const float>(&value, 1), View<float>(&scalars.data->lr, {}));
  }
  void forward() {
    encoder->forward(ctx);
    quantizer.forward(ctx);
    decoder->forward(ctx);
  }
  void update_averages(double decay) {
    quantizer.update(ctx, View<const int32_t>(&scalars.data->step, {}), seed, decay);
  }
  void backward(bool update_codebooks) {
    parameters.clear_gradients(ctx);
    loss.backward(ctx);
    decoder->backward(ctx);
    quantizer.backward(ctx);
    if (update_codebooks) update_averages(config.ema_decay_of(latent.shape.rows()));
    encoder->backward(ctx);
  }
  void step() {
    forward();
    backward(true);
    parameters.update(ctx, {.value = parameters.values(),
                            .grad = parameters.gradients(),
                            .m = m,
                            .v = v,
                            .ema = average,
                            .scalars = scalars,
                            .scratch = optimizer_scratch,
                            .beta1 = static_cast<float>(optimizer.beta1),
                            .beta2 = static_cast<float>(optimizer.beta2),
                            .eps = static_cast<float>(optimizer.eps),
                            .weight_decay = static_cast<float>(optimizer.weight_decay),
                            .max_norm = static_cast<float>(optimizer.clip),
                            .ema_decay = static_cast<float>(optimizer.ema_decay)});
  }

  void start_codebooks(const std::function<void()>& next_batch, int64_t rows, int64_t average_rows,
                       const StartProgress&);

  Context ctx;
  std::atomic<bool> in_use{false};
  CodecConfig config;
  OptimizerConfig optimizer;
  uint64_t seed;
  int64_t batch, samples;
  Parameters parameters;
  std::unique_ptr<Side> encoder;
  Quantizer quantizer;
  std::unique_ptr<Side> decoder;
  ReconstructionLoss loss;
  Plan plan;
  Memory moments_memory, scalars_memory, adamw_scratch_memory;
  View<float> m, v, average, optimizer_scratch;
  View<AdamWScalars> scalars;
  View<float> audio;
  View<const float> latent;
  View<int32_t> lengths;
  bool captures = false, ran = false;
  std::optional<Graph> graph;
  struct {
    std::vector<int32_t> stages, frames;
  } host;
};

TrainingStep::TrainingStep(Context& ctx, const CodecConfig& codec, const LossConfig& loss,
                           const OptimizerConfig& optimizer, int64_t batch, int64_t samples, uint64_t seed,
                           Storage storage)
    : impl_(within_memory("TrainingStep", [&] {
        return std::make_unique<Impl>(ctx, codec, loss, optimizer, batch, samples, seed, storage);
      })) {}
TrainingStep::~TrainingStep() = default;

int64_t TrainingStep::samples() const noexcept { return impl_->samples; }
int64_t TrainingStep::batch() const noexcept { return impl_->batch; }
Context& TrainingStep::context() noexcept { return impl_->ctx; }
Parameters& TrainingStep::parameters() noexcept { return impl_->parameters; }
View<const int32_t> TrainingStep::codes() const noexcept { return impl_->quantizer.codes(); }
size_t TrainingStep::planned_bytes() const noexcept { return impl_->plan.bytes(); }
size_t TrainingStep::unshared_bytes() const noexcept { return impl_->plan.unshared_bytes(); }
View<const float> TrainingStep::averaged() const noexcept {
  return impl_->average ? View<const float>(impl_->average) : View<const float>(impl_->parameters.values());
}

namespace {

void expect_range(const char* argument, std::span<const int32_t> values, int64_t most) {
  for (size_t i = 0; i < values.size(); ++i)
    if (values[i] < 0 || values[i] > most)
      throw Error(ErrorKind::usage, "load: " + std::string(argument) + "[" + std::to_string(i) + "] is " +
                                        std::to_string(values[i]) + ", expected 0 to " + std::to_string(most));
}

}  // namespace

void TrainingStep::load(std::span<const float> audio, std::span<const int32_t> lengths,
                        std::span<const int32_t> stages) {
  Impl& s = *impl_;
  const InUse alone(s.in_use, "load", "training step");
  expect_range("lengths", lengths, s.samples);
  expect_range("stages", stages, s.config.n_codebooks);
  s.ctx.upload<float>(audio, s.audio);
  s.ctx.upload<int32_t>(lengths, s.lengths);
  const auto hop = static_cast<int32_t>(s.config.hop());
  for (size_t i = 0; i < s.host.frames.size(); ++i) s.host.frames[i] = (lengths[i] + hop - 1) / hop;
  s.ctx.upload<int32_t>(s.host.frames, s.quantizer.frames());
  s.ctx.upload<int32_t>(stages.empty() ? std::span<const int32_t>(s.host.stages) : stages, s.quantizer.stages());
}

void TrainingStep::start_codebooks(const std::function<void()>& next_batch, int64_t rows, int64_t average_rows,
                                   const StartProgress& progress) {
  within_memory("start_codebooks", [&] { impl_->start_codebooks(next_batch, rows, average_rows, progress); });
}
void TrainingStep::Impl::start_codebooks(const std::function<void()>& next_batch, int64_t rows, int64_t average_rows,
                                         const StartProgress& progress) {
  Impl& s = *this;
  const int64_t per_batch = s.latent.shape.rows();
  const int64_t batches = s.config.quantizer == QuantizerKind::ema ? (average_rows + per_batch - 1) / per_batch : 0;
  // Gathering frames takes a part of the bar per batch. Short clips give fewer frames; the bar waits for those at its end.
  const int64_t gathered = (rows + per_batch - 1) / per_batch;
  // k-means gets a third of the rest: a stage of it counts as much as `weight` batches.
  const int64_t weight = batches > 0 ? std::max<int64_t>(1, batches / (2 * s.config.n_codebooks)) : 1;
  const int64_t clustered = weight * s.config.n_codebooks;
  const auto done = [&](int64_t n) {
    if (progress) progress(n, gathered + clustered + batches);
  };
  done(0);
  const int64_t d = s.config.latent(), frames = s.latent.shape.time;
  std::vector<float> all, rows_of_batch(static_cast<size_t>(s.latent.elements()));
  std::vector<int32_t> valid(static_cast<size_t>(s.batch));
  while (static_cast<int64_t>(all.size()) < rows * d) {
    next_batch();
    s.encoder->forward(s.ctx);
    s.ctx.read<float>(s.latent, rows_of_batch);
    s.ctx.read<int32_t>(s.quantizer.frames(), valid);
    const size_t before = all.size();
    for (int64_t b = 0; b < s.batch; ++b) {
      const auto from = rows_of_batch.begin() + b * frames * d;
      all.insert(all.end(), from, from + valid[static_cast<size_t>(b)] * d);
    }
    if (all.size() == before) throw Error(ErrorKind::input, "codebook start: a batch holds no audio");
    done(std::min(static_cast<int64_t>(all.size()) / (d * per_batch), gathered));
  }
  const int64_t n = static_cast<int64_t>(all.size()) / d;
  Memory memory(s.ctx, all.size() * sizeof(float));
  const View<float> latents(reinterpret_cast<float*>(memory.data()), {.time = n, .channels = d});
  s.ctx.write<float>(all, latents);
  s.quantizer.start(s.ctx, latents, s.seed, [&](int64_t stage, int64_t) { done(gathered + weight * stage); });
  // The averages span half of the batches seen, so that what k-means left is forgotten first; at most as in training.
  const double decay = s.config.ema_decay_of(per_batch);
  for (int64_t i = 0; i < batches; ++i) {
    next_batch();
    s.encoder->forward(s.ctx);
    s.quantizer.forward(s.ctx);
    // The step's number draws the replacements of dead codes; those of the start come before the first.
    const auto number = static_cast<int32_t>(i - batches);
    s.ctx.upload<int32_t>(std::span<const int32_t>(&number, 1), View<int32_t>(&s.scalars.data->step, {}));
    s.update_averages(std::min(decay, std::max(s.config.ema_decay, 1 - 2 / static_cast<double>(i + 1))));
    done(gathered + clustered + i + 1);
  }
  const int32_t none = 0;
  s.ctx.upload<int32_t>(std::span<const int32_t>(&none, 1), View<int32_t>(&s.scalars.data->step, {}));
  s.reset_average();
}
void TrainingStep::reset_average() { impl_->reset_average(); }

void TrainingStep::set_learning_rate(double lr) { impl_->set_learning_rate(lr); }

void TrainingStep::run() {
  Impl& s = *impl_;
  const InUse alone(s.in_use, "run", "training step");
  if (s.graph) return s.graph->replay();
  if (s.captures && s.ran) {
    s.graph.emplace(s.ctx.capture([&s] { s.step(); }));
    return s.graph->replay();
  }
  s.step();
  s.ran = true;
}
void TrainingStep::set_capture(bool capture) {
  impl_->captures = capture;
  impl_->graph.reset();
}

void TrainingStep::gradients() {
  const InUse alone(impl_->in_use, "gradients", "training step");
  impl_->forward();
  impl_->backward(false);
  impl_->parameters.finish_gradients(impl_->ctx);
}

void TrainingStep::measure() {
  Impl& s = *impl_;
  const InUse alone(s.in_use, "measure", "training step");
  // The balancer's averages belong to training; measuring must not move them.
  std::array<float, 6> before{};
  s.ctx.read<float>(s.loss.balancer_state(), std::span<float>(before));
  s.forward();
  s.loss.backward(s.ctx);
  s.ctx.write<float>(std::span<const float>(before), s.loss.balancer_state());
}

StepMetrics TrainingStep::metrics() {
  Impl& s = *impl_;
  std::array<float, 3> losses{}, shares{};
  std::array<float, 2> vq{};
  s.ctx.read<float>(s.loss.values(), std::span<float>(losses));
  s.ctx.read<float>(s.loss.shares(), std::span<float>(shares));
  s.ctx.read<float>(s.quantizer.losses(), std::span<float>(vq));
  const AdamWScalars a = scalars();
  return {losses[0], losses[1], losses[2], vq[0], vq[1], shares[0], shares[1], shares[2], a.norm, a.step, a.skipped};
}

AdamWScalars TrainingStep::scalars() {
  AdamWScalars a;
  impl_->ctx.read<AdamWScalars>(impl_->scalars, std::span<AdamWScalars>(&a, 1));
  return a;
}
void TrainingStep::set_scalars(const AdamWScalars& a) {
  impl_->ctx.write<AdamWScalars>(std::span<const AdamWScalars>(&a, 1), impl_->scalars);
}

std::vector<TrainingStep::StateTensor> TrainingStep::state() {
  Impl& s = *impl_;
  std::vector<StateTensor> all{{"adamw.m", s.m}, {"adamw.v", s.v}, {"balancer", s.loss.balancer_state()}};
  if (s.average) all.push_back({"adamw.ema", s.average});
  return all;
}

}  // namespace nacre
