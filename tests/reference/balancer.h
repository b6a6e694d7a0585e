#pragma once
#include <cmath>
#include <vector>

namespace nacre::reference {

struct Balancer {
  double decay, total_norm, eps;
  bool balanced;
  std::vector<double> sums, ones;  ///< the state: one value per loss each
  size_t items = 1;                ///< equal parts of each gradient, whose norms are averaged

  struct Result {
    std::vector<double> factors, norms, shares, gradient;
  };
  Result step(const std::vector<std::vector<double>>& gradients, const std::vector<double>& weights) {
    Result r;
    double all = 0, total = 0;
    for (double w : weights) all += w;
    for (size_t i = 0; i < gradients.size(); ++i) {
      double norm = 0;
      const size_t n = gradients[i].size() / items;
      for (size_t item = 0; item < items; ++item) {
        double squares = 0;
        for (size_t k = 0; k < n; ++k) squares += gradients[i][item * n + k] * gradients[i][item * n + k];
        norm += std::sqrt(squares) / static_cast<double>(items);
      }
      r.norms.push_back(norm);
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
