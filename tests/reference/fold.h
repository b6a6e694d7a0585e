#pragma once
// fold from its definition: the signal is lengthened sample by sample, then dealt out to the signals of the period.
#include <cstddef>
#include <vector>

namespace nacre::reference {

/// For each element of y, in its order, the element of x that it repeats.
inline std::vector<size_t> fold_sources(size_t batch, size_t time, size_t period) {
  std::vector<size_t> found;
  for (size_t b = 0; b < batch; ++b) {
    std::vector<size_t> longer;
    for (size_t t = 0; t < time; ++t) longer.push_back(b * time + t);
    for (size_t appended = 0; appended < period - time % period; ++appended)
      longer.push_back(b * time + time - 2 - appended);
    for (size_t j = 0; j < period; ++j)
      for (size_t at = j; at < longer.size(); at += period) found.push_back(longer[at]);
  }
  return found;
}
/// The gradient of x.
inline std::vector<double> fold_adjoint(const std::vector<size_t>& sources, const std::vector<double>& dy,
                                        size_t elements) {
  std::vector<double> dx(elements);
  for (size_t i = 0; i < dy.size(); ++i) dx[sources[i]] += dy[i];
  return dx;
}

}  // namespace nacre::reference
