#pragma once
// The example op in double, as it would be in tests/reference/scale.h. It shares nothing with the library.
// [op reference]
#include <cstddef>
#include <vector>

namespace nacre::reference {

inline std::vector<double> scale(const std::vector<double>& x, const std::vector<double>& factor) {
  std::vector<double> y;
  for (size_t i = 0; i < x.size(); ++i) y.push_back(factor[i % factor.size()] * x[i]);
  return y;
}
struct ScaleGradients {
  std::vector<double> dx, dfactor;
};
inline ScaleGradients scale_gradients(const std::vector<double>& x, const std::vector<double>& factor,
                                      const std::vector<double>& dy) {
  ScaleGradients g{.dx = {}, .dfactor = std::vector<double>(factor.size())};
  for (size_t i = 0; i < x.size(); ++i) {
    g.dx.push_back(factor[i % factor.size()] * dy[i]);
    g.dfactor[i % factor.size()] += dy[i] * x[i];
  }
  return g;
}

}  // namespace nacre::reference
// [/op reference]
