#pragma once
// One row of weight normalisation in double.
#include <cmath>
#include <vector>

namespace nacre::reference {

inline double norm(const std::vector<double>& v) {
  double sum = 0;
  for (const double x : v) sum += x * x;
  return std::sqrt(sum);
}
inline std::vector<double> weight_norm(const std::vector<double>& v, double g) {
  std::vector<double> w(v.size());
  const double length = norm(v);
  for (size_t i = 0; i < v.size(); ++i) w[i] = length > 0 ? g * v[i] / length : 0;
  return w;
}
struct WeightNormGradient {
  std::vector<double> dv;
  double dg = 0;
};
inline WeightNormGradient weight_norm_gradient(const std::vector<double>& v, double g, const std::vector<double>& dw) {
  WeightNormGradient out{std::vector<double>(v.size()), 0};
  const double length = norm(v);
  if (length == 0) return out;
  for (size_t i = 0; i < v.size(); ++i) out.dg += dw[i] * v[i] / length;
  for (size_t i = 0; i < v.size(); ++i) out.dv[i] = g / length * (dw[i] - out.dg * v[i] / length);
  return out;
}

}  // namespace nacre::reference
