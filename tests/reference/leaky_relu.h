#pragma once
#include <cmath>

namespace nacre::reference {
inline double leaky_relu_value(double x, double slope) { return x > 0 ? x : slope * x; }
inline double leaky_relu_slope(double y, double slope) { return y > 0 ? 1 : slope; }
}  // namespace nacre::reference
