#pragma once
#include <algorithm>
#include <cmath>

namespace nacre::reference {

struct AdamWOptions {
  double lr, beta1, beta2, eps, weight_decay, max_norm;
  int step;  ///< number of this update, from 1
};
struct AdamWState {
  double value, m, v;
};
inline double adamw_clip(double norm, double max_norm) {
  return max_norm > 0 ? std::min(1.0, max_norm / (norm + 1e-6)) : 1;
}
inline AdamWState adamw(AdamWState s, double grad, double norm, const AdamWOptions& o) {
  const double g = adamw_clip(norm, o.max_norm) * grad;
  s.m = o.beta1 * s.m + (1 - o.beta1) * g;
  s.v = o.beta2 * s.v + (1 - o.beta2) * g * g;
  const double m = s.m / (1 - std::pow(o.beta1, o.step)), v = s.v / (1 - std::pow(o.beta2, o.step));
  s.value -= o.lr * (o.weight_decay * s.value + m / (std::sqrt(v) + o.eps));
  return s;
}

}  // namespace nacre::reference
