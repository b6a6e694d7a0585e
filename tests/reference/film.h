#pragma once
#include <cstddef>
#include <cstdint>
#include <vector>

namespace nacre::reference {

/// Items of `item` values each with their labels; gamma and beta are tables [labels][channels].
struct Film {
  std::vector<int32_t> labels;
  size_t channels;
  std::vector<double> gamma, beta;
};
/// The index in a table that belongs to value i of x.
inline size_t film_place(const Film& f, size_t values, size_t i) {
  const size_t item = i / (values / f.labels.size());
  return static_cast<size_t>(f.labels[item]) * f.channels + i % f.channels;
}
inline std::vector<double> film(const Film& f, const std::vector<double>& x) {
  std::vector<double> y;
  for (size_t i = 0; i < x.size(); ++i) {
    const size_t k = film_place(f, x.size(), i);
    y.push_back(f.gamma[k] * x[i] + f.beta[k]);
  }
  return y;
}
struct FilmGradients {
  std::vector<double> dx, dgamma, dbeta;
  std::vector<double> gamma_sizes, beta_sizes;  ///< sums of the terms' absolute values
};
inline FilmGradients film_gradients(const Film& f, const std::vector<double>& x, const std::vector<double>& dy) {
  const std::vector<double> none(f.gamma.size());
  FilmGradients g{{}, none, none, none, none};
  for (size_t i = 0; i < x.size(); ++i) {
    const size_t k = film_place(f, x.size(), i);
    g.dx.push_back(f.gamma[k] * dy[i]);
    g.dgamma[k] += dy[i] * x[i];
    g.dbeta[k] += dy[i];
    g.gamma_sizes[k] += dy[i] * x[i] < 0 ? -dy[i] * x[i] : dy[i] * x[i];
    g.beta_sizes[k] += dy[i] < 0 ? -dy[i] : dy[i];
  }
  return g;
}

}  // namespace nacre::reference
