#pragma once
// level in double, from its definition: y = peak u / (max |u| + eps), u = x - mean x.
#include <cmath>
#include <cstddef>
#include <vector>

namespace nacre::reference {

struct Level {
  double mean = 0, largest = 0;
  size_t position = 0;         ///< the first of the largest |u|
  std::vector<double> u, y{};  ///< one item

  Level(const double* x, size_t time, double peak, double eps) : u(x, x + time) {
    for (const double v : u) mean += v / static_cast<double>(time);
    for (double& v : u) v -= mean;
    for (size_t t = 0; t < time; ++t)
      if (std::fabs(u[t]) > largest) largest = std::fabs(u[t]), position = t;
    for (const double v : u) y.push_back(peak * v / (largest + eps));
  }

  struct Gradient {
    std::vector<double> dx, size;  ///< size: the sum of the sizes of the terms of dx
  };
  /// `at` is the position whose sample gets the gradient of the largest |u|.
  Gradient gradient(const double* dy, double peak, double eps, size_t at) const {
    const size_t n = u.size();
    const double s = peak / (largest + eps);
    double of_peak = 0, sizes_of_peak = 0;
    for (size_t t = 0; t < n; ++t) {
      const double term = s / (largest + eps) * dy[t] * u[t];
      of_peak += u[at] > 0 ? term : u[at] < 0 ? -term : 0;
      sizes_of_peak += std::fabs(term);
    }
    std::vector<double> du(n), size(n);
    double mean_du = 0, mean_size = 0;
    for (size_t t = 0; t < n; ++t) {
      du[t] = s * dy[t] - (t == at ? of_peak : 0);
      size[t] = std::fabs(s * dy[t]) + (t == at ? sizes_of_peak : 0);
      mean_du += du[t] / static_cast<double>(n), mean_size += size[t] / static_cast<double>(n);
    }
    for (double& v : du) v -= mean_du;
    for (double& v : size) v += mean_size;
    return {du, size};
  }
};

}  // namespace nacre::reference
