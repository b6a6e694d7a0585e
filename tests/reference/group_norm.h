#pragma once
// Group and layer normalisation in double.
#include <cmath>
#include <cstddef>
#include <vector>

namespace nacre::reference {

/// x is [items][positions][channels].
struct GroupNorm {
  size_t items, positions, channels, groups;
  bool per_position;  ///< mean and variance of each position, otherwise of all positions of an item
  double eps = static_cast<double>(1e-5f);

  using Values = std::vector<double>;

  size_t width() const { return channels / groups; }
  size_t sets() const { return items * groups * (per_position ? positions : 1); }
  double set_size() const { return static_cast<double>(width() * (per_position ? 1 : positions)); }
  /// The set of element i, in the order of the saved statistics.
  size_t set_of(size_t i) const {
    const size_t row = i / channels, group = i % channels / width();
    return (per_position ? row : row / positions) * groups + group;
  }

  /// Mean of v over each set.
  Values means(const Values& v) const {
    Values m(sets());
    for (size_t i = 0; i < v.size(); ++i) m[set_of(i)] += v[i];
    for (double& x : m) x /= set_size();
    return m;
  }
  struct Statistics {
    Values mean, inverse_deviation;
  };
  Statistics statistics(const Values& x) const {
    Statistics s{means(x), {}};
    Values squares(x.size());
    for (size_t i = 0; i < x.size(); ++i) squares[i] = std::pow(x[i] - s.mean[set_of(i)], 2);
    for (const double variance : means(squares)) s.inverse_deviation.push_back(1 / std::sqrt(variance + eps));
    return s;
  }
  /// (x - mean) / deviation.
  Values normalised(const Values& x, const Statistics& s) const {
    Values h(x.size());
    for (size_t i = 0; i < x.size(); ++i) h[i] = (x[i] - s.mean[set_of(i)]) * s.inverse_deviation[set_of(i)];
    return h;
  }
  Values forward(const Values& x, const Values& gain, const Values& bias) const {
    Values y = normalised(x, statistics(x));
    for (size_t i = 0; i < y.size(); ++i) y[i] = y[i] * gain[i % channels] + bias[i % channels];
    return y;
  }
  struct Gradients {
    Values x, gain, bias;
  };
  Gradients backward(const Values& x, const Values& gain, const Values& dy) const {
    const Statistics s = statistics(x);
    const Values h = normalised(x, s);
    Gradients g{Values(x.size()), Values(channels), Values(channels)};
    Values d(x.size()), dh(x.size());
    for (size_t i = 0; i < x.size(); ++i) {
      d[i] = dy[i] * gain[i % channels];
      dh[i] = d[i] * h[i];
      g.gain[i % channels] += dy[i] * h[i];
      g.bias[i % channels] += dy[i];
    }
    const Values mean_d = means(d), mean_dh = means(dh);
    for (size_t i = 0; i < x.size(); ++i)
      g.x[i] = s.inverse_deviation[set_of(i)] * (d[i] - mean_d[set_of(i)] - h[i] * mean_dh[set_of(i)]);
    return g;
  }
};

}  // namespace nacre::reference
