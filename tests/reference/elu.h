#pragma once
#include <cmath>

namespace nacre::reference {
inline double elu_value(double x, double alpha) { return x > 0 ? x : alpha * std::expm1(x); }
inline double elu_slope(double y, double alpha) { return y > 0 ? 1 : y + alpha; }
}  // namespace nacre::reference
