#pragma once
// Adversarial training: the loss of discriminators, planned in a walk of their own, and the loss of a generator against
// them.
#include <vector>

#include "nacre/discriminators/discriminator.h"
#include "nacre/losses/loss.h"

namespace nacre {

/// What the discriminators' walk measures. Index i belongs to Discriminators::names()[i].
struct PlannedVerdicts {
  View<const float> losses{};  ///< [n]: of real and fake audio together
  View<const float> right{};   ///< [n, 2]: fractions of the real and of the fake logits that are judged right
};
/// Plans the discriminators on `real` and on `fake` in one batch, and their loss: the sum of losses[i]. No gradient
/// reaches `fake`. Meant for Plan::inner(), with the update of the discriminators' weights behind it.
PlannedVerdicts plan_discriminator_losses(Plan&, const Discriminators&, View<const float> real, Flow fake,
                                          AdversarialKind);

/// The loss of a generator whose output the discriminators judge: term "adversarial", the sum over the discriminators
/// of the generator's loss, and, with LossConfig::feature above 0, term "feature", the sum of feature_loss over the
/// discriminators. `real` is the audio that the generator was to produce. The discriminators must be frozen where the
/// loss is planned (Plan::freeze). If LossConfig::balanced, the terms have branches of their own, and the
/// discriminators are planned on each of them; otherwise the loss is joint, and they are planned once.
Loss adversarial_loss_of(const LossConfig&, AdversarialKind, const Discriminators&, Flow real);
/// The terms of that loss.
std::vector<TermSpec> adversarial_terms(const LossConfig&);

}  // namespace nacre
