// One training step of a codec as one plan. The constructor registers and allocates the parameters, walks the network
// once to lay out memory and once to record the program (nacre/nn/plan.h), and sizes the buffers of the host. A step is
// then load(), run() and, where figures are wanted, metrics(). Impl::walk() has the order of the passes:
//
//   forward     encoder, quantizer, decoder
//   inner walk  with discriminators: their forward passes, losses, backward passes and update
//   forward     with discriminators: these again, now frozen, with the updated weights
//   backward    clear the gradients; then losses, balancer, decoder, quantizer and its codebooks, encoder
//   then        clip, AdamW, averaged weights, effective weights
//
// Numbers that change from step to step (learning rate, gates, lengths, stages, labels, step number) lie in the
// device's memory. A captured graph therefore stays valid for every later step.
#include "nacre/training/training_step.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <limits>
#include <optional>

#include "codec/callers.h"
#include "nacre/discriminators/signals.h"
#include "nn/segment_scale.h"

namespace nacre {
namespace {

/// AdamW of the discriminators. The keys that the section does not have keep their defaults.
OptimizerConfig optimizer_of(const DiscriminatorConfig& c) {
  // No averaged weights: only the codec is used after training.
  return {.learning_rate = c.learning_rate,
          .beta1 = c.beta1,
          .beta2 = c.beta2,
          .weight_decay = c.weight_decay,
          .clip = c.clip,
          .ema_decay = 0};
}

}  // namespace

/// The discriminators of a step with their weights and the training of these.
struct Critics {
  Critics(Context& ctx, const DiscriminatorConfig& c, uint64_t seed, Storage storage, Communicator* communicator)
      // `networks` registers its parameters, so `parameters` is declared in front of it.
      : config(c), networks(parameters, c, storage) {
    parameters.allocate(ctx, true, storage);
    parameters.initialise(ctx, seed);
    optimizer.emplace(ctx, parameters, optimizer_of(c), "discriminator", communicator);
  }
  DiscriminatorConfig config;
  Parameters parameters;
  Discriminators networks;
  std::optional<Optimizer> optimizer;  // set once the parameters have their values
  PlannedVerdicts verdicts{};          // losses and shares of right logits, set by the walk
};

struct TrainingStep::Impl {
  Impl(Context& c, const CodecConfig& codec, const LossConfig& loss_config, const OptimizerConfig& optimizer_config,
       int64_t batch_size, int64_t wanted_samples, uint64_t seed_value, Storage storage, Communicator* communicator,
       const DiscriminatorConfig& discriminator, bool with_target)
      : ctx(c.share()),
        config(codec),
        seed(seed_value),
        batch(batch_size),
        // Rounded up to whole frames.
        samples((wanted_samples + codec.hop() - 1) / codec.hop() * codec.hop()),
        own_target(with_target),
        system(parameters, codec),
        plan(ctx, Purpose::training) {
    optimizer_config.check();
    if (batch < 1) throw Error(ErrorKind::usage, "batch_size is " + std::to_string(batch) + ", expected at least 1");
    if (wanted_samples < codec.hop())
      throw Error(ErrorKind::usage, "segment_length is " + std::to_string(wanted_samples) +
                                        " samples, expected at least one hop, " + std::to_string(codec.hop()));
    // The order is fixed. The optimizer copies the initial values as its first average, and the closures of the plan
    // hold addresses of parameters, gradients and the optimizer's step number.
    parameters.allocate(ctx, true, storage);
    parameters.initialise(ctx, seed);
    optimizer.emplace(ctx, parameters, optimizer_config, "adamw", communicator);
    if (loss_config.adversarial > 0) critics.emplace(ctx, discriminator, seed, storage, communicator);
    plan.reserve([&](Plan& p) { walk(p, loss_config, storage); });
    captures = ctx.device().kind == Device::cuda;
    // The buffers of load() and metrics() get their final sizes here.
    host.stages.assign(static_cast<size_t>(batch), static_cast<int32_t>(config.n_codebooks));
    host.frames.resize(static_cast<size_t>(batch));
    host.channel_lengths.resize(static_cast<size_t>(batch * config.audio_channels));
    host.values.resize(losses.terms.size()), host.shares.resize(losses.leader.size());
    for (const TermSpec& t : losses.terms)
      host.metrics.terms.push_back({.name = t.name, .title = t.title, .in_sum = t.in_sum});
    if (critics) {
      // Per discriminator one loss, and the shares of right logits on real and on decoded audio.
      host.verdicts.resize(3 * critics->networks.names().size());
      // The plan's memory is zero at first, so all gates would be closed, also those of the other losses.
      set_adversarial(true);
    }
  }

  /// Opens or closes the gates of the branches that lead to discriminators. Callers set them before every step, so
  /// nothing is copied unless they change.
  void set_adversarial(bool on) {
    if (gates_open == on) return;
    gates_open = on;
    std::vector<float> gates;
    for (const size_t term : losses.leader) gates.push_back(on || losses.terms[term].in_sum ? 1.0f : 0.0f);
    ctx.upload<float>(gates, losses.gates);
  }

  /// The whole step as one walk: encoder, quantizer, decoder, discriminators in a walk of their own, losses. What
  /// load() fills (audio, target, lengths, and the quantizer's frames and stages) outlives the runs.
  ///
  /// Shapes, with B = batch, T = samples, C = audio channels: audio and target [B, T, 1, C]; latent [B, P, 1, latent]
  /// with P = T / hop * positions per frame; at the losses [B C, T, 1, 1], where channel c of item b is item b C + c.
  /// The plan calls this function twice. The views get their addresses in the second call only.
  void walk(Plan& p, const LossConfig& loss_config, Storage storage) {
    const int64_t channels = config.audio_channels;
    const Shape shape{.batch = batch, .time = samples, .channels = channels};
    // Sources without a gradient: the backward pass ends at the encoder's first layer.
    const Output<float> source = p.source<float>(shape), wanted = own_target ? p.source<float>(shape) : source;
    audio = source.value;
    wanted_audio = wanted.value;
    lengths = p.persistent<int32_t>({.channels = batch});
    channel_lengths = channels > 1 ? p.persistent<int32_t>({.channels = batch * channels}) : lengths;
    if (config.denoise != Denoise::none) p.set_labels(labels = p.persistent<int32_t>({.channels = batch}));
    const Normalised heard =
        config.segment_scale ? normalised(p, source.flow, lengths) : Normalised{.flow = source.flow};
    // The latent and the estimate are float in every storage: distances to codes and the losses are computed in float.
    const Flow z = stored_as(p, system.encoder(p, stored_as(p, heard.flow, storage)), Storage::float32);
    // start_codebooks() reads the latents between runs, so no other activation may get their memory.
    latent = p.result<float>(z);
    after_encoder = p.last_step();
    quantized = system.quantizer.plan(p, z,
                                      {.commitment_weight = static_cast<float>(loss_config.vq),
                                       .mean = loss_config.vq_mean,
                                       .orthogonal = loss_config.orthogonal,
                                       .step = optimizer->step(),
                                       .seed = seed});
    after_quantizer = p.last_step();
    const Flow decoded = stored_as(p, system.decoder(p, stored_as(p, quantized.flow, storage)), Storage::float32);
    // Audio is compared at its own level, and each of its channels by itself, as an item of its own.
    const Flow estimate =
        channels_apart(p, "audio.channels", config.segment_scale ? scaled(p, decoded, heard.scales) : decoded);
    const Flow real = channels_apart(p, "audio.channels", wanted.flow);
    // Losses read the target in their backward passes. It needs memory that nothing else reuses: that of the source, or
    // with several channels the copy that channels_apart() makes.
    const View<const float> target = channels > 1 ? p.result<float>(real) : wanted_audio;
    if (!critics) {
      losses = plan_losses(p, estimate, target, channel_lengths, loss_config, config.sample_rate, {}, channels);
    } else {
      Critics& c = *critics;
      // The discriminators' whole step runs here. They see the estimate detached, so no gradient reaches the codec.
      p.inner([&](Plan& inner) {
        c.verdicts = plan_discriminator_losses(inner, c.networks, target, estimate, c.config.loss);
        c.optimizer->plan(inner);
      });
      // Behind their update, the codec's losses take gradients through the discriminators to the estimate and none of
      // their weights. The freeze ends with this block, after plan_losses() has walked them.
      const Frozen frozen = p.freeze(c.parameters);
      const Loss adversarial = adversarial_loss_of(loss_config, c.config.loss, c.networks, real);
      losses = plan_losses(p, estimate, target, channel_lengths, loss_config, config.sample_rate,
                           std::span(&adversarial, 1), channels);
    }
    // Last, because the last step of a walk is the first of its backward passes; see Optimizer::plan().
    optimizer->plan(p);
  }

  void start_codebooks(const std::function<void()>& next_batch, int64_t rows, int64_t average_rows,
                       const StartProgress&);

  // In the order of construction: `system` registers its layers in `parameters`.
  Context ctx;
  std::atomic<bool> in_use{false};  // set while a call uses the step; see InUse
  CodecConfig config;
  uint64_t seed;
  int64_t batch, samples;  // items, and samples per item and channel: whole frames
  bool own_target;         // `wanted_audio` is a buffer of its own, and not `audio`
  Parameters parameters;
  System system;
  std::optional<Critics> critics;  // if the loss is adversarial
  std::optional<bool> gates_open;  // of set_adversarial(), once it was called
  Plan plan;
  Quantized quantized;
  PlannedLosses losses;                        // values, shares, gates and the balancer's state
  int after_encoder = 0, after_quantizer = 0;  // numbers of steps of the plan
  std::optional<Optimizer> optimizer;          // set once the parameters have their values
  View<float> audio, wanted_audio;             // [B, T, 1, C]: input and target, one buffer unless own_target
  View<const float> latent;                    // [B, P, 1, latent], of the last run
  View<int32_t> lengths, channel_lengths;      // per item, and per channel of every item
  View<int32_t> labels;                        // per item, if the codec denoises on request
  // captures: the second run() records a graph. ran: a run kernel by kernel has come first.
  bool captures = false, ran = false;
  bool with_inner = true;          // of set_discriminators()
  std::optional<Graph> graphs[2];  // without and with training of discriminators
  struct {
    // Buffers for load() and metrics(), allocated once. stages: all codebooks for every item, the default of load().
    std::vector<int32_t> stages, frames, channel_lengths;
    std::vector<float> values, shares, verdicts;
    StepMetrics metrics;
  } host;
};

TrainingStep::TrainingStep(Context& ctx, const CodecConfig& codec, const LossConfig& loss,
                           const OptimizerConfig& optimizer, int64_t batch, int64_t samples, uint64_t seed,
                           Storage storage, Communicator* communicator, const DiscriminatorConfig& discriminator,
                           bool own_target)
    : impl_(within_memory("TrainingStep", [&] {
        return std::make_unique<Impl>(ctx, codec, loss, optimizer, batch, samples, seed, storage, communicator,
                                      discriminator, own_target);
      })) {}
TrainingStep::~TrainingStep() = default;

int64_t TrainingStep::samples() const noexcept { return impl_->samples; }
int64_t TrainingStep::batch() const noexcept { return impl_->batch; }
Context& TrainingStep::context() noexcept { return impl_->ctx; }
Parameters& TrainingStep::parameters() noexcept { return impl_->parameters; }
View<const int32_t> TrainingStep::codes() const noexcept { return impl_->quantized.codes; }
size_t TrainingStep::planned_bytes() const noexcept { return impl_->plan.bytes(); }
size_t TrainingStep::unshared_bytes() const noexcept { return impl_->plan.unshared_bytes(); }
View<const float> TrainingStep::averaged() const noexcept { return impl_->optimizer->averaged(); }

namespace {

/// Throws unless all values are in 0 ... most.
void expect_range(const char* argument, std::span<const int32_t> values, int64_t most) {
  for (size_t i = 0; i < values.size(); ++i)
    if (values[i] < 0 || values[i] > most)
      throw Error(ErrorKind::usage, std::string(argument) + "[" + std::to_string(i) + "] is " +
                                        std::to_string(values[i]) + ", expected 0 to " + std::to_string(most));
}

}  // namespace

void TrainingStep::load(std::span<const float> audio, std::span<const int32_t> lengths, std::span<const int32_t> stages,
                        std::span<const float> target) {
  Impl& s = *impl_;
  const InUse alone(s.in_use, "load", "training step");
  if (!target.empty() && !s.own_target)
    throw Error(ErrorKind::usage, "load: target has " + std::to_string(target.size()) +
                                      " samples, expected none: the step compares with its input");
  expect_range("load: lengths", lengths, s.samples);
  expect_range("load: stages", stages, s.config.n_codebooks);
  // Runs that are queued already see the old values, later ones the new. upload() throws for a span of another size.
  // Once `lengths` has been uploaded, it is known to have one element per item, and the loops below may index it.
  s.ctx.upload<float>(audio, s.audio);
  if (s.own_target) s.ctx.upload<float>(target.empty() ? audio : target, s.wanted_audio);
  s.ctx.upload<int32_t>(lengths, s.lengths);
  // At the losses, the channels of an item are consecutive items of the item's length.
  if (const auto channels = static_cast<size_t>(s.config.audio_channels); channels > 1) {
    for (size_t i = 0; i < s.host.channel_lengths.size(); ++i) s.host.channel_lengths[i] = lengths[i / channels];
    s.ctx.upload<int32_t>(s.host.channel_lengths, s.channel_lengths);
  }
  const auto hop = static_cast<int32_t>(s.config.hop());
  // A frame that is partly filled counts.
  for (size_t i = 0; i < s.host.frames.size(); ++i) s.host.frames[i] = (lengths[i] + hop - 1) / hop;
  s.ctx.upload<int32_t>(s.host.frames, s.quantized.frames);
  s.ctx.upload<int32_t>(stages.empty() ? std::span<const int32_t>(s.host.stages) : stages, s.quantized.stages);
}

void TrainingStep::set_labels(std::span<const int32_t> labels) {
  Impl& s = *impl_;
  const InUse alone(s.in_use, "set_labels", "training step");
  if (static_cast<int64_t>(labels.size()) != s.batch)
    throw Error(ErrorKind::usage, "set_labels: " + std::to_string(labels.size()) + " labels, expected " +
                                      std::to_string(s.batch) + ", one per item");
  expect_range("set_labels: labels", labels, 1);
  // A codec that does not denoise on request has no memory for labels.
  if (s.labels) s.ctx.upload<int32_t>(labels, s.labels);
}

void TrainingStep::start_codebooks(const std::function<void()>& next_batch, int64_t rows, int64_t average_rows,
                                   const StartProgress& progress) {
  within_memory("start_codebooks", [&] { impl_->start_codebooks(next_batch, rows, average_rows, progress); });
}
void TrainingStep::Impl::start_codebooks(const std::function<void()>& next_batch, int64_t rows, int64_t average_rows,
                                         const StartProgress& progress) {
  Impl& s = *this;
  // The start has three parts: it gathers latents of the encoder before training, clusters them by k-means stage by
  // stage, and lets codebooks of moving averages follow further batches. The weights do not change meanwhile.
  // Rows are positions of the latent. With one rate, a frame is one position.
  const int64_t per_batch = s.latent.shape.rows();
  const int64_t batches = s.config.quantizer == QuantizerKind::ema ? (average_rows + per_batch - 1) / per_batch : 0;
  // Progress: gathering frames counts one part per batch. Short clips give fewer frames; progress then waits at the end
  // of this section.
  const int64_t gathered = (rows + per_batch - 1) / per_batch;
  // k-means counts as a third of the remaining work: one stage counts as much as `weight` batches.
  const int64_t weight = batches > 0 ? std::max<int64_t>(1, batches / (2 * s.config.n_codebooks)) : 1;
  const int64_t clustered = weight * s.config.n_codebooks;
  const auto done = [&](int64_t n) {
    if (progress) progress(n, gathered + clustered + batches);
  };
  done(0);
  const int64_t d = s.config.latent(), positions = s.latent.shape.time, per_frame = s.config.positions_per_frame();
  // Part 1: `all` collects the rows, d elements each, on the host.
  std::vector<float> all, rows_of_batch(static_cast<size_t>(s.latent.elements()));
  std::vector<int32_t> valid(static_cast<size_t>(s.batch));
  while (static_cast<int64_t>(all.size()) < rows * d) {
    next_batch();
    s.plan.run_until(s.after_encoder, Until::forward);
    s.ctx.read<float>(s.latent, rows_of_batch);
    s.ctx.read<int32_t>(s.quantized.frames, valid);
    const size_t before = all.size();
    for (int64_t b = 0; b < s.batch; ++b) {
      const auto from = rows_of_batch.begin() + b * positions * d;
      // Frames of padding would put codes on silence.
      all.insert(all.end(), from, from + valid[static_cast<size_t>(b)] * per_frame * d);
    }
    if (all.size() == before) throw Error(ErrorKind::input, "codebook start: a batch holds no audio");
    done(std::min(static_cast<int64_t>(all.size()) / (d * per_batch), gathered));
  }
  // Part 2: k-means over the rows of whole batches, which may be more than `rows`.
  const int64_t n = static_cast<int64_t>(all.size()) / d;
  // Outside of the plan's block, since it is needed once only.
  Memory memory(s.ctx, all.size() * sizeof(float));
  const View<float> latents(reinterpret_cast<float*>(memory.data()), {.time = n, .channels = d});
  s.ctx.write<float>(all, latents);
  s.system.quantizer.start(s.ctx, latents, s.seed, [&](int64_t stage, int64_t) { done(gathered + weight * stage); });
  // Part 3. The averages span half of the batches seen so far, so that the result of k-means is forgotten first. The
  // decay is at most that of training.
  // A decay of 1 - 2 / n spans n / 2 batches (docs/decisions/codebook-average-span.md).
  const double decay = s.config.ema_decay_of(per_batch);
  for (int64_t i = 0; i < batches; ++i) {
    next_batch();
    s.plan.run_until(s.after_quantizer, Until::forward);
    // The step number seeds the replacement of dead codes. The start uses negative numbers, which no training step has.
    const auto number = static_cast<int32_t>(i - batches);
    s.ctx.upload<int32_t>(std::span<const int32_t>(&number, 1), s.optimizer->step());
    s.quantized.update(s.ctx, std::min(decay, std::max(s.config.ema_decay, 1 - 2 / static_cast<double>(i + 1))));
    done(gathered + clustered + i + 1);
  }
  // Training counts its steps from 0.
  const int32_t none = 0;
  s.ctx.upload<int32_t>(std::span<const int32_t>(&none, 1), s.optimizer->step());
  // Factorised codebooks are trained values, so the averaged weights must restart from the new ones.
  s.optimizer->reset_average();
}
void TrainingStep::reset_average() { impl_->optimizer->reset_average(); }

void TrainingStep::set_learning_rate(double lr) { impl_->optimizer->set_learning_rate(lr); }
void TrainingStep::set_discriminator_learning_rate(double lr) {
  if (impl_->critics) impl_->critics->optimizer->set_learning_rate(lr);
}
void TrainingStep::set_adversarial(bool on) {
  if (impl_->critics) impl_->set_adversarial(on);
}
void TrainingStep::set_discriminators(bool train) {
  // The plan decides when closures run; a graph decides when it is captured. So run() has one graph for each case.
  impl_->with_inner = train;
  impl_->plan.set_inner(train);
}
Parameters* TrainingStep::discriminators() noexcept { return impl_->critics ? &impl_->critics->parameters : nullptr; }

void TrainingStep::run() {
  Impl& s = *impl_;
  const InUse alone(s.in_use, "run", "training step");
  // The first run is not captured: what the device loads or sets up at the first launch of a kernel is then done.
  std::optional<Graph>& graph = s.graphs[s.with_inner ? 1 : 0];
  if (graph) return graph->replay();
  if (s.captures && s.ran) {
    // Capturing records launches without executing them, so the graph is also replayed for this step.
    graph.emplace(s.ctx.capture([&s] { s.plan.run(); }));
    return graph->replay();
  }
  s.plan.run();
  // A run without discriminators does not launch their kernels, so it does not count.
  s.ran = s.ran || s.with_inner || !s.critics;
}
bool TrainingStep::run(const std::function<bool()>& give_up) {
  Impl& s = *impl_;
  if (s.ctx.device().kind == Device::cuda) {
    // Launches return at once and a replay is one launch, so there is no moment in between at which a step could stop.
    // run() itself marks the step as in use; a mark set here would make it refuse.
    if (give_up()) return false;
    run();
    return true;
  }
  const InUse alone(s.in_use, "run", "training step");
  return s.plan.run(give_up);
}
void TrainingStep::set_capture(bool capture) {
  impl_->captures = capture;
  // `ran` stays: kernels that were launched once are loaded.
  for (std::optional<Graph>& graph : impl_->graphs) graph.reset();
}

void TrainingStep::gradients() {
  const InUse alone(impl_->in_use, "gradients", "training step");
  impl_->plan.run_gradients();
  // The backward passes leave the gradients of effective weights. An update would derive those of directions and gains,
  // so they are derived here.
  impl_->parameters.finish_gradients(impl_->ctx);
  if (impl_->critics) impl_->critics->parameters.finish_gradients(impl_->ctx);
}

void TrainingStep::measure() {
  Impl& s = *impl_;
  const InUse alone(s.in_use, "measure", "training step");
  // Losses compute their values in their backward passes. The balancer, whose pass follows theirs, adds the shares. The
  // discriminators' inner walk is left out, and what the balancer's pass changes is restored (Plan::run_until).
  s.plan.run_until(s.losses.step, Until::backward);
}

float StepMetrics::loss() const {
  float sum = 0;
  for (const TermMetrics& t : terms)
    if (t.in_sum) sum += t.value;
  return sum + commitment;
}
const TermMetrics& StepMetrics::term(const std::string& name) const {
  std::string names;
  for (const TermMetrics& t : terms) {
    if (t.name == name) return t;
    names += (names.empty() ? "" : ", ") + t.name;
  }
  throw Error(ErrorKind::usage, "StepMetrics: no term \"" + name + "\", expected one of " + names);
}

const StepMetrics& TrainingStep::metrics() {
  Impl& s = *impl_;
  StepMetrics& m = s.host.metrics;
  std::array<float, 2> vq{};
  s.ctx.read<float>(s.losses.values, s.host.values);
  s.ctx.read<float>(s.losses.shares, s.host.shares);
  s.ctx.read<float>(s.quantized.losses, std::span<float>(vq));
  const AdamWScalars a = scalars();
  // A share belongs to a branch. It is shown with the branch's first term; further terms of a joint loss have NaN.
  for (size_t i = 0; i < m.terms.size(); ++i) {
    const size_t branch = s.losses.branch[i];
    m.terms[i].value = s.host.values[i];
    m.terms[i].share = s.losses.leader[branch] == i ? s.host.shares[branch] : std::numeric_limits<float>::quiet_NaN();
  }
  m.discriminators.clear();
  if (s.critics && s.with_inner) {
    for (const std::string& name : s.critics->networks.names()) m.discriminators.push_back({.name = name});
    const size_t count = m.discriminators.size();
    // Layout: `count` losses, then pairs of (real, fake).
    const std::span<float> read(s.host.verdicts);
    s.ctx.read<float>(s.critics->verdicts.losses, read.first(count));
    s.ctx.read<float>(s.critics->verdicts.right, read.subspan(count));
    for (size_t i = 0; i < count; ++i) {
      DiscriminatorMetrics& d = m.discriminators[i];
      d.loss = read[i], d.real = read[count + 2 * i], d.fake = read[count + 2 * i + 1];
    }
    const AdamWScalars of_critics = s.critics->optimizer->scalars();
    m.discriminator_norm = of_critics.norm, m.discriminator_skipped = of_critics.skipped;
  }
  // `skipped` counts since the state began, also across a resume: set_scalars() restores it.
  m.commitment = vq[0], m.codebook = vq[1];
  m.gradient_norm = a.norm, m.updates = a.step, m.skipped = a.skipped;
  return m;
}

AdamWScalars TrainingStep::scalars() { return impl_->optimizer->scalars(); }
void TrainingStep::set_scalars(const AdamWScalars& a) { impl_->optimizer->set_scalars(a); }

std::vector<StateTensor> TrainingStep::state() {
  std::vector<StateTensor> all = impl_->optimizer->state();
  // Two numbers per branch: the decayed sum of its gradient's norms, and the decayed sum of ones. Each is a tensor of
  // one element, named by the branch's first term, so that a checkpoint stays usable when terms are added or removed.
  const PlannedLosses& losses = impl_->losses;
  const size_t count = losses.leader.size();
  for (size_t i = 0; i < 2 * count; ++i)
    all.push_back({(i < count ? "balancer.norms." : "balancer.ones.") + losses.terms[losses.leader[i % count]].name,
                   View<float>(losses.balancer_state.data + i, {})});
  return all;
}

namespace {

/// The discriminators' optimizer; throws if there are none.
Optimizer& optimizer_of(std::optional<Critics>& critics) {
  if (!critics) throw Error(ErrorKind::usage, "training step: no discriminators, loss.adversarial is 0");
  return *critics->optimizer;
}

}  // namespace

std::vector<StateTensor> TrainingStep::discriminator_state() { return optimizer_of(impl_->critics).state(); }
AdamWScalars TrainingStep::discriminator_scalars() { return optimizer_of(impl_->critics).scalars(); }
void TrainingStep::set_discriminator_scalars(const AdamWScalars& a) { optimizer_of(impl_->critics).set_scalars(a); }

}  // namespace nacre
