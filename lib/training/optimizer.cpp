// AdamW over one set of parameters (nacre/ops/adamw.h has the formulas). All of its state lies on the device: one block
// of n = trained elements for each of
//
//   m, v      first and second moments, zero at the start
//   average   averaged weights, only if ema_decay is above 0
//
// back to back in this order and each laid out as Parameters::values(); and AdamWScalars (learning rate, norm, counters
// of updates and skipped updates), which a captured step reads and writes.
#include "nacre/training/optimizer.h"

#include "files/fields.h"

namespace nacre {

void OptimizerConfig::check() const {
  OptimizerConfig c = *this;  // fields_of() takes a configuration that can be changed
  check_limits("optimizer", fields_of(c), twelve_digits);
}

Optimizer::Optimizer(Context& ctx, Parameters& parameters, const OptimizerConfig& config, std::string name,
                     Communicator* communicator)
    : ctx_(ctx.share()),
      parameters_(parameters),
      config_(config),
      name_(std::move(name)),
      communicator_(communicator) {
  config_.check();
  if (!parameters.allocated() || !parameters.with_gradients())
    throw Error(ErrorKind::usage, "optimizer " + name_ + ": the parameters have no gradients");
  const int64_t n = parameters.trained_elements();
  const bool averaging = config_.ema_decay > 0;
  // Memory is zero-filled, as the moments and the counters have to be.
  moments_memory_ = Memory(ctx_, static_cast<size_t>(n) * (averaging ? 3 : 2) * sizeof(float));
  auto* at = reinterpret_cast<float*>(moments_memory_.data());
  m_ = View<float>(at, {.channels = n});
  v_ = View<float>(at + n, {.channels = n});
  if (averaging) average_ = View<float>(at + 2 * n, {.channels = n});
  scalars_memory_ = Memory(ctx_, sizeof(AdamWScalars));
  scalars_ = View<AdamWScalars>(reinterpret_cast<AdamWScalars*>(scalars_memory_.data()), {});
  // Allocated here, because an update runs inside of a plan and must not allocate.
  const Shape scratch = parameters.update_scratch(ctx_);
  scratch_memory_ = Memory(ctx_, static_cast<size_t>(scratch.elements()) * sizeof(float));
  scratch_ = View<float>(reinterpret_cast<float*>(scratch_memory_.data()), scratch);
  set_learning_rate(config_.learning_rate);
  reset_average();
}

void Optimizer::plan(Plan& p) {
  // The last step of the walk is the first to run backward, so the gradients are cleared before other steps add to
  // them.
  parameters_.clear_gradients(p);
  // The closure holds the optimizer's address, so an Optimizer can be neither copied nor moved.
  p.then([this](Context& c) { update(c); });
}

/// The update of one step, in stream order: gradients averaged over the processes, clip by the global norm, AdamW,
/// averaged weights, effective weights. If the norm is not finite, only it and the count of skipped updates are stored.
void Optimizer::update(Context& c) {
  // The gradients of effective weights and of all other parameters. The update derives those of directions and gains
  // from them, so averaging these two blocks is enough. Every process then has the same norm, and clips or skips alike.
  if (communicator_ != nullptr && communicator_->size() > 1)
    for (const View<float>& block : parameters_.step_gradients()) communicator_->average(c, block);
  parameters_.update(c, {.value = parameters_.values(),
                         .grad = parameters_.gradients(),
                         .m = m_,
                         .v = v_,
                         .ema = average_,
                         .scalars = scalars_,
                         .scratch = scratch_,
                         .beta1 = static_cast<float>(config_.beta1),
                         .beta2 = static_cast<float>(config_.beta2),
                         .eps = static_cast<float>(config_.eps),
                         .weight_decay = static_cast<float>(config_.weight_decay),
                         .max_norm = static_cast<float>(config_.clip),
                         .ema_decay = static_cast<float>(config_.ema_decay)});
}

void Optimizer::set_learning_rate(double rate) {
  // Only `lr`: the device writes the other scalars. upload() does not wait for a step that still runs.
  const auto value = static_cast<float>(rate);
  ctx_.upload<float>(std::span<const float>(&value, 1), View<float>(&scalars_.data->lr, {}));
}
void Optimizer::reset_average() {
  if (average_) ctx_.copy<float>(parameters_.values(), average_);
}
View<const float> Optimizer::averaged() const noexcept { return average_ ? average_ : parameters_.values(); }

/// Waits for the device.
AdamWScalars Optimizer::scalars() const {
  AdamWScalars s;
  Context c = ctx_.share();  // reading needs a handle that is not const
  c.read<AdamWScalars>(scalars_, std::span<AdamWScalars>(&s, 1));
  return s;
}
void Optimizer::set_scalars(const AdamWScalars& s) {
  ctx_.write<AdamWScalars>(std::span<const AdamWScalars>(&s, 1), scalars_);
}

/// Names under which checkpoints hold these blocks ("adamw.m", ...). trainer_state.cpp relies on "adamw.ema".
std::vector<StateTensor> Optimizer::state() const {
  std::vector<StateTensor> all{{name_ + ".m", m_}, {name_ + ".v", v_}};
  if (average_) all.push_back({name_ + ".ema", average_});
  return all;
}

}  // namespace nacre
