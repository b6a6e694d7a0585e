#pragma once
#include <cmath>

namespace nacre::reference {

/// The frequency and magnitude that `log_scale` and an absent beta make of the parameters.
struct SnakeParameters {
  double alpha, beta;
  bool with_beta, log_scale;
  double a() const { return log_scale ? std::exp(alpha) : alpha; }
  double b() const { return !with_beta ? a() : (log_scale ? std::exp(beta) : beta); }
};
inline double snake(double x, SnakeParameters p) {
  const double s = std::sin(p.a() * x);
  return x + s * s / (p.b() + 1e-9);
}
struct SnakeSlopes {
  double x, alpha, beta;
};
/// Derivatives of snake(x) with respect to x and to both parameters as stored.
inline SnakeSlopes snake_slopes(double x, SnakeParameters p) {
  const double a = p.a(), b = p.b() + 1e-9, s = std::sin(a * x);
  const double by_a = x * std::sin(2 * a * x) / b, by_b = -s * s / (b * b);
  const double scale_a = p.log_scale ? a : 1, scale_b = p.log_scale ? p.b() : 1;
  return {1 + a * std::sin(2 * a * x) / b, p.with_beta ? by_a * scale_a : (by_a + by_b) * scale_a,
          p.with_beta ? by_b * scale_b : 0};
}

}  // namespace nacre::reference
