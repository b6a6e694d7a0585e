#pragma once
// Double-precision references of vector quantisation.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

namespace nacre::test {

/// Half the squared distances of one row to every code, without the row's own half square, and the sums of the
/// magnitudes of their terms.
struct HalfDistances {
  std::vector<double> value, size;
};

inline HalfDistances half_distances(const double* x, const std::vector<double>& codebook, int64_t dim, bool cosine) {
  const auto scale = [&](const double* v) {
    double sum = 0;
    for (int64_t d = 0; d < dim; ++d) sum += v[d] * v[d];
    return cosine ? 1 / std::max(std::sqrt(sum), 1e-12) : 1.0;
  };
  HalfDistances out;
  const double sx = scale(x);
  for (size_t k = 0; k < codebook.size() / static_cast<size_t>(dim); ++k) {
    const double* c = codebook.data() + static_cast<int64_t>(k) * dim;
    const double sc = scale(c);
    double value = 0, size = 0;
    for (int64_t d = 0; d < dim; ++d) {
      value += sc * c[d] * sc * c[d] / 2 - sx * x[d] * sc * c[d];
      size += sc * c[d] * sc * c[d] / 2 + std::fabs(sx * x[d] * sc * c[d]);
    }
    out.value.push_back(value);
    out.size.push_back(size);
  }
  return out;
}

/// One step of the moving averages of one stage. A code below `dead` is not changed and is listed.
struct EmaReference {
  std::vector<double> codebook, counts, sums, size;
  std::vector<int64_t> dead;

  void step(const std::vector<double>& x, const std::vector<int32_t>& codes, const std::vector<bool>& valid,
            int64_t dim, double decay, double dead_below, double eps) {
    const size_t count = counts.size();
    std::vector<double> n(count), sum(sums.size()), absolute(sums.size());
    for (size_t r = 0; r < codes.size(); ++r) {
      if (!valid[r]) continue;
      const size_t k = static_cast<size_t>(codes[r]);
      n[k] += 1;
      for (size_t d = 0; d < static_cast<size_t>(dim); ++d) {
        const double v = x[r * static_cast<size_t>(dim) + d];
        sum[k * static_cast<size_t>(dim) + d] += v;
        absolute[k * static_cast<size_t>(dim) + d] += std::fabs(v);
      }
    }
    size.assign(sums.size(), 0);
    for (size_t k = 0; k < count; ++k) {
      counts[k] = decay * counts[k] + (1 - decay) * n[k];
      for (size_t i = k * static_cast<size_t>(dim); i < (k + 1) * static_cast<size_t>(dim); ++i) {
        size[i] = decay * std::fabs(sums[i]) + (1 - decay) * absolute[i];
        sums[i] = decay * sums[i] + (1 - decay) * sum[i];
        codebook[i] = sums[i] / (counts[k] + eps);
      }
      if (counts[k] < dead_below) dead.push_back(static_cast<int64_t>(k));
    }
  }
};

}  // namespace nacre::test
