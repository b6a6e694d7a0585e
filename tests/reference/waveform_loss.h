#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

namespace nacre::reference {

struct WaveformLoss {
  double loss = 0;
  std::vector<double> gradient;
};
/// Signals of `batch` items with `per_item` values each. Lengths count values.
inline WaveformLoss waveform_loss(const std::vector<double>& estimate, const std::vector<double>& target,
                                  const std::vector<int64_t>& lengths, int64_t per_item, bool squared) {
  WaveformLoss r;
  r.gradient.assign(estimate.size(), 0);
  double count = 0;
  for (int64_t n : lengths) count += static_cast<double>(n);
  if (count == 0) return r;
  for (size_t item = 0; item < lengths.size(); ++item)
    for (int64_t t = 0; t < lengths[item]; ++t) {
      const size_t i = item * static_cast<size_t>(per_item) + static_cast<size_t>(t);
      const double d = estimate[i] - target[i];
      r.loss += (squared ? d * d : std::fabs(d)) / count;
      r.gradient[i] = (squared ? 2 * d : static_cast<double>((d > 0) - (d < 0))) / count;
    }
  return r;
}

}  // namespace nacre::reference
