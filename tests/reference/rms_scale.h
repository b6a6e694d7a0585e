#pragma once
// rms_scale in double, from its definition: eps + sqrt(mean over time of (mean over channels)^2).
#include <cmath>
#include <cstddef>
#include <vector>

namespace nacre::reference {

/// x: one item, [time, channels]. The first `length` samples count.
inline double rms_scale(const std::vector<double>& x, size_t channels, size_t length, double eps) {
  double power = 0;
  for (size_t t = 0; t < length; ++t) {
    double mono = 0;
    for (size_t c = 0; c < channels; ++c) mono += x[t * channels + c] / static_cast<double>(channels);
    power += mono * mono / static_cast<double>(length);
  }
  return eps + std::sqrt(power);
}

}  // namespace nacre::reference
