#pragma once
// Double-precision reference of what lies between the cascades of a quantizer with two rates.
#include <cstddef>
#include <cstdint>
#include <vector>

namespace nacre::reference {

/// z - p.
inline std::vector<double> rest(const std::vector<double>& z, const std::vector<double>& p) {
  std::vector<double> y;
  for (size_t i = 0; i < z.size(); ++i) y.push_back(z[i] - p[i]);
  return y;
}
/// The gradient at z; that at p is its negative. `per_item`: elements of an item.
inline std::vector<double> rest_gradient(const std::vector<double>& dy, const std::vector<int32_t>& stages,
                                         size_t per_item) {
  std::vector<double> dz;
  for (size_t i = 0; i < dy.size(); ++i) dz.push_back(stages[i / per_item] > 0 ? dy[i] : 0);
  return dz;
}

}  // namespace nacre::reference
