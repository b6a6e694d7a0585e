#pragma once
#include <cmath>
#include <vector>

namespace nacre::reference {

struct Balancer {
  double decay, total_norm, eps;
  bool balanced;
  std::vector<double> sums, ones;  ///< the state: one value per loss each

  struct Result {
    std::vector<double> factors, norms, shares, gradient;
  };
  Result step(const std::vector<std::vector<double>>& gradients, const std::vector<double>& weights) {
    Result r;
    double all = 0, total = 0;
    for (double w : weights) all += w;
    for (size_t i = 0; i < gradients.size(); ++i) {
      double squares = 0;
      for (double g : gradients[i]) squares += g * g;
      r.norms.push_back(std::sqrt(squares));
      double factor = weights[i];
      if (balanced) {
        sums[i] = decay * sums[i] + r.norms[i];
        ones[i] = decay * ones[i] + 1;
        factor = total_norm * weights[i] / all / (sums[i] / ones[i] + eps);
      }
      r.factors.push_back(factor);
      total += factor * r.norms[i];
    }
    r.gradient.assign(gradients[0].size(), 0);
    for (size_t i = 0; i < gradients.size(); ++i) {
      r.shares.push_back(total > 0 ? r.factors[i] * r.norms[i] / total : 0);
      for (size_t k = 0; k < r.gradient.size(); ++k) r.gradient[k] += r.factors[i] * gradients[i][k];
    }
    return r;
  }
};

}  // namespace nacre::reference
