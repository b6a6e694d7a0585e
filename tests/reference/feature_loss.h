#pragma once
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <vector>

namespace nacre::reference {

struct FeatureLoss {
  double loss = 0;
  std::vector<std::vector<double>> gradients;  ///< with respect to fake
};
inline FeatureLoss feature_loss(const std::vector<std::vector<double>>& real,
                                const std::vector<std::vector<double>>& fake, bool relative = false) {
  FeatureLoss r;
  for (size_t pair = 0; pair < real.size(); ++pair) {
    const double count = static_cast<double>(real[pair].size());
    double sum = 0, divisor = 1;
    std::vector<double> gradient;
    if (relative && count > 0) {
      double magnitudes = 0;
      for (const double x : real[pair]) magnitudes += std::fabs(x);
      divisor = std::max(magnitudes / count, 1e-12);
    }
    for (size_t i = 0; i < real[pair].size(); ++i) {
      const double d = fake[pair][i] - real[pair][i];
      sum += std::fabs(d);
      gradient.push_back(static_cast<double>((d > 0) - (d < 0)) / count / divisor);
    }
    r.loss += count > 0 ? sum / count / divisor : 0;
    r.gradients.push_back(gradient);
  }
  return r;
}

}  // namespace nacre::reference
