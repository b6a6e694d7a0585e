// Losses of discriminators (ops/adversarial_loss.h), and of a generator against them (also ops/feature_loss.h).
#include "nacre/losses/adversarial.h"

#include "nacre/discriminators/signals.h"
#include "nacre/ops/feature_loss.h"

namespace nacre {
namespace {

/// Element i of a vector on the device; without an address in the first walk.
View<float> element(View<float> v, size_t i, int64_t count = 1) {
  return {v ? v.data + i : nullptr, {.channels = count}};
}

/// Declares that a loss reads an activation and overwrites its gradient.
template <class T>
Input<T> read_last(const Step& s, Flow x) {
  const Input<T> in = s.reads<T>(x, Until::backward);
  if (in.add)
    throw Error(ErrorKind::usage, "loss: a later step reads an activation, expected the loss as its last reader");
  return in;
}

template <class T>
Costs elementwise_costs(int64_t elements, double tensors, double launches) {
  const auto n = static_cast<double>(elements);
  return {.forward = {.floats = 4 * n, .bytes = tensors * sizeof(T) * n, .launches = launches}};
}
/// Up to `short_logits` logits of one kind are a block's; the parts of more are added by a second kernel (sum_part in
/// kernels/runtime/partials.cuh).
constexpr int64_t short_logits = 4096;
template <class T>
Costs logits_costs(int64_t logits, int64_t kinds) {
  return elementwise_costs<T>(logits, 2, logits / kinds > short_logits ? 2 : 1);
}

/// Values and gradients come from one pass, so the steps have backward passes only. These run in reverse order: the
/// step of the last discriminator is the first, and overwrites the sum.
void plan_generator_loss(Plan& p, const std::string& name, Flow logits, View<float> sum, bool add, AdversarialKind kind,
                         double weight) {
  visit(logits.storage, [&]<class T>(Type<T>) {
    const Step s = p.step("loss.adversarial." + name);
    const Input<T> in = read_last<T>(s, logits);
    const View<float> scratch = s.scratch(adversarial_loss_scratch(p.context(), logits.shape), Until::backward);
    s.costs(logits_costs<T>(logits.shape.elements(), 1));
    s.backward([=](Context& c) {
      generator_loss<T>(c, {.logits = in.value,
                            .loss = sum,
                            .gradient = in.grad,
                            .scratch = scratch,
                            .kind = kind,
                            .weight = static_cast<float>(weight),
                            .add_loss = add});
    });
  });
}

void plan_feature_loss(Plan& p, const std::string& name, const Verdict& real, const Verdict& fake, View<float> sum,
                       bool add, double weight, bool relative) {
  if (fake.features.size() > static_cast<size_t>(feature_loss_max))
    throw Error(ErrorKind::usage, "loss.feature: discriminator " + name + " has " +
                                      std::to_string(fake.features.size()) + " features, expected at most " +
                                      std::to_string(feature_loss_max));
  visit(fake.logits.storage, [&]<class T>(Type<T>) {
    const Step s = p.step("loss.feature." + name);
    FeatureLoss<T> op{};
    int64_t elements = 0;
    for (size_t i = 0; i < fake.features.size(); ++i) {
      const Input<T> x = s.reads<T>(real.features[i], Until::backward), y = read_last<T>(s, fake.features[i]);
      op.pairs[i] = {.real = x.value, .fake = y.value, .gradient = y.grad};
      elements += fake.features[i].shape.elements();
    }
    // Relative distances first take the means of the recorded audio's activations.
    s.costs(elementwise_costs<T>(elements, relative ? 4 : 3, relative ? 4 : 2));
    op.count = static_cast<int>(fake.features.size());
    op.loss = sum, op.weight = static_cast<float>(weight), op.add_loss = add, op.relative = relative;
    op.scratch = s.scratch(feature_loss_scratch(p.context(), elements, op.count, relative), Until::backward);
    s.backward([op](Context& c) { feature_loss<T>(c, op); });
  });
}

}  // namespace

PlannedVerdicts plan_discriminator_losses(Plan& p, const Discriminators& discriminators, View<const float> real,
                                          Flow fake, AdversarialKind kind) {
  const std::vector<std::string>& names = discriminators.names();
  const auto count = static_cast<int64_t>(names.size());
  const View<float> losses = p.persistent<float>({.channels = count}),
                    right = p.persistent<float>({.width = count, .channels = 2});
  // detach(): the walk is an inner one, and no gradient may leave it.
  const std::vector<Verdict> verdicts = discriminators.plan(p, pair(p, "discriminators.pair", real, p.detach(fake)));
  for (size_t i = 0; i < verdicts.size(); ++i) {
    const Flow logits = verdicts[i].logits;
    visit(logits.storage, [&]<class T>(Type<T>) {
      const Step s = p.step("loss.discriminator." + names[i]);
      const Input<T> in = read_last<T>(s, logits);
      const View<float> scratch = s.scratch(adversarial_loss_scratch(p.context(), logits.shape), Until::backward);
      const View<float> loss = element(losses, i), of_right = element(right, 2 * i, 2);
      s.costs(logits_costs<T>(logits.shape.elements(), 2));
      s.backward([=](Context& c) {
        discriminator_loss<T>(c, {.logits = in.value,
                                  .loss = loss,
                                  .right = of_right,
                                  .gradient = in.grad,
                                  .scratch = scratch,
                                  .kind = kind});
      });
    });
  }
  return {.losses = losses, .right = right};
}

// Logs show both, but the sum of the losses leaves them out: they depend on the state of the discriminators.
std::vector<TermSpec> adversarial_terms(const LossConfig& config) {
  std::vector<TermSpec> terms{
      {.name = "adversarial", .title = "adversarial", .weight = config.adversarial, .in_sum = false}};
  if (config.feature > 0)
    terms.push_back({.name = "feature", .title = "feature", .weight = config.feature, .in_sum = false});
  return terms;
}

Loss adversarial_loss_of(const LossConfig& config, AdversarialKind kind, const Discriminators& discriminators,
                         Flow real) {
  const bool joint = !config.balanced, features = config.feature > 0;
  const auto plan = [=](Plan& p, const Signals& signals) {
    const std::vector<std::string>& names = discriminators.names();
    // Without gradients: real audio has none, and the weights are frozen.
    const std::vector<Verdict> real_verdicts = features ? discriminators.plan(p, real) : std::vector<Verdict>{};
    // Branch 0 carries the adversarial gradient and branch 1 that of the features. A joint loss has branch 0 alone, for
    // both.
    const std::vector<Verdict> judged = discriminators.plan(p, signals.estimates[0]);
    const std::vector<Verdict> compared = features && !joint ? discriminators.plan(p, signals.estimates[1]) : judged;
    for (size_t i = 0; i < names.size(); ++i) {
      const bool add = i + 1 < names.size();
      plan_generator_loss(p, names[i], judged[i].logits, element(signals.values, 0), add, kind,
                          joint ? config.adversarial : 1);
      if (features)
        plan_feature_loss(p, names[i], real_verdicts[i], compared[i], element(signals.values, 1), add,
                          joint ? config.feature : 1, config.feature_relative);
    }
  };
  return {.terms = adversarial_terms(config), .plan = plan, .joint = joint};
}

}  // namespace nacre
