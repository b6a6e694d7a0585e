#pragma once
// average_pool from its definition: every window is a list of the elements that it averages.
#include <cstddef>
#include <vector>

namespace nacre::reference {

struct AveragePool {
  size_t batch, time, inner, taps, stride, padding;
  bool count_padding;

  size_t length() const { return (time + 2 * padding - taps) / stride + 1; }
  struct Window {
    std::vector<size_t> elements{};
    double weight = 0;  // of each of them
  };
  /// For each element of y, in its order.
  std::vector<Window> windows() const {
    std::vector<Window> all;
    for (size_t b = 0; b < batch; ++b)
      for (size_t t = 0; t < length(); ++t)
        for (size_t c = 0; c < inner; ++c) {
          Window w;
          for (size_t k = 0; k < taps; ++k) {
            const size_t padded = t * stride + k;  // position in the padded signal
            if (padded >= padding && padded - padding < time)
              w.elements.push_back((b * time + padded - padding) * inner + c);
          }
          w.weight = 1 / static_cast<double>(count_padding ? taps : w.elements.size());
          all.push_back(w);
        }
    return all;
  }
  std::vector<double> forward(const std::vector<double>& x) const {
    std::vector<double> y;
    for (const Window& w : windows()) {
      double sum = 0;
      for (const size_t i : w.elements) sum += x[i];
      y.push_back(w.weight * sum);
    }
    return y;
  }
  /// The gradient of x.
  std::vector<double> adjoint(const std::vector<double>& dy) const {
    std::vector<double> dx(batch * time * inner);
    size_t at = 0;
    for (const Window& w : windows()) {
      for (const size_t i : w.elements) dx[i] += w.weight * dy[at];
      ++at;
    }
    return dx;
  }
};

}  // namespace nacre::reference
