#pragma once
// The terms of adversarial_loss for one logit.
#include "nacre/ops/adversarial_loss.h"
#include "runtime/inline.h"

namespace nacre {

struct AdversarialTerm {
  double loss;
  float gradient;
  bool right;
};
/// `kind` is a result of adversarial_rule. `real`: whether the logit should be judged real. `scale` is the factor of
/// the gradient, for least squares with the 2 of the square. NaN gives NaN, and is never right.
template <AdversarialKind kind>
NACRE_INLINE AdversarialTerm adversarial_term(float logit, bool real, float scale) {
  const float threshold = kind == AdversarialKind::least_squares ? 0.5f : 0.0f;
  const bool right = real ? logit > threshold : logit <= threshold;
  if constexpr (kind == AdversarialKind::hinge_linear) {
    return {-static_cast<double>(logit), logit == logit ? -scale : logit, right};
  } else if constexpr (kind == AdversarialKind::hinge) {
    const float z = real ? 1 - logit : 1 + logit;
    return {static_cast<double>(z <= 0 ? 0.0f : z), z > 0 ? (real ? -scale : scale) : (z <= 0 ? 0.0f : z), right};
  } else {
    const float d = real ? logit - 1 : logit;
    return {static_cast<double>(d) * static_cast<double>(d), scale * d, right};
  }
}
/// The kind whose terms a loss of one half (a generator's) or of two halves has: discriminators of linear generators
/// have those of the hinge.
inline AdversarialKind adversarial_rule(AdversarialKind kind, int halves) {
  return kind == AdversarialKind::hinge_linear && halves == 2 ? AdversarialKind::hinge : kind;
}
/// The factor of the gradient of a mean over n logits.
inline float adversarial_scale(AdversarialKind kind, float weight, int64_t n) {
  const double slope = kind == AdversarialKind::least_squares ? 2 : 1;
  return n > 0 ? static_cast<float>(slope * static_cast<double>(weight) / static_cast<double>(n)) : 0.0f;
}

}  // namespace nacre
