#pragma once
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <vector>

#include "nacre/ops/adversarial_loss.h"

namespace nacre::reference {

struct AdversarialLoss {
  double loss = 0;
  double size = 0;  ///< sum of the sizes of the terms
  std::vector<double> gradient;
  std::vector<double> right;  ///< per half
};
/// Logits in `halves` halves: real and fake for a discriminator, one half for a generator, whose logits shall be judged
/// real.
inline AdversarialLoss adversarial_loss(const std::vector<double>& logits, size_t halves, AdversarialKind kind) {
  AdversarialLoss r;
  const size_t n = logits.size() / halves;
  const bool hinge = kind != AdversarialKind::least_squares, linear = kind == AdversarialKind::hinge_linear;
  const double count = static_cast<double>(n), middle = hinge ? 0 : 0.5;
  for (size_t half = 0; half < halves; ++half) {
    double sum = 0, sizes = 0, right = 0;
    for (size_t i = half * n; i < (half + 1) * n; ++i) {
      const double x = logits[i], target = half == 0 ? 1 : (hinge ? -1 : 0);
      if (linear && halves == 1) {
        sum -= x;
        sizes += std::fabs(x);
        r.gradient.push_back(-1 / count);
      } else if (hinge) {
        const double z = 1 - target * x;
        sum += std::max(0.0, z);
        r.gradient.push_back(z > 0 ? -target / count : 0);
      } else {
        sum += (target - x) * (target - x);
        r.gradient.push_back(2 * (x - target) / count);
      }
      right += (x > middle) == (half == 0) ? 1 : 0;
    }
    r.loss += sum / count;
    r.size += (linear && halves == 1 ? sizes : sum) / count;
    r.right.push_back(right / count);
  }
  return r;
}

}  // namespace nacre::reference
