#pragma once
// Double-precision reference of residual vector quantisation with given codes: forward, losses, gradients.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <numeric>
#include <vector>

namespace nacre::test {

/// With sign = +1 and absolute values everywhere, the same recursions give the sum of the magnitudes of a result's
/// terms. Rounding errors are relative to that sum.
struct RvqReference {
  using Vector = std::vector<double>;
  int64_t rows = 1, stages = 1, codes = 1, dim = 1, latent = 1;
  bool factorised = false, orthogonal = false;
  bool mean = false;  // losses are divided by the largest number of stages used
  double sign = -1, commitment_weight = 1, codebook_weight = 1;
  Vector z, codebooks, in_weight, in_bias, out_weight, out_bias, dy;
  std::vector<int64_t> chosen;    // [rows][stages]
  std::vector<int64_t> used;      // stages used, per row
  std::vector<bool> valid;        // per row
  Vector frozen_e, frozen_codes;  // stop-gradient values [stages][rows][dim]; empty: those of the current point

  Vector y, e, residuals;  // e [stages][rows][dim], residuals [stages + 1][rows][latent]
  double commitment = 0, codebook_loss = 0;
  Vector dz, dcodebooks, din_weight, din_bias, dout_weight, dout_bias;

  double elements() const {
    int64_t n = 0;
    for (bool v : valid) n += v ? 1 : 0;
    const int64_t most = std::max<int64_t>(1, *std::max_element(used.begin(), used.end()));
    return static_cast<double>(n * dim * (mean ? most : 1));
  }
  bool counts(int64_t row, int64_t i) const { return valid[size_t(row)] && i < used[size_t(row)]; }
  const double* code(int64_t row, int64_t i) const {
    return codebooks.data() + (i * codes + chosen[size_t(row * stages + i)]) * dim;
  }
  void absolute() {
    sign = 1;
    for (Vector* v : {&z, &codebooks, &in_weight, &in_bias, &out_weight, &out_bias, &dy})
      for (double& x : *v) x = std::fabs(x);
  }
  /// Stores the stop-gradient values of this point.
  void freeze() {
    forward();
    frozen_e = e;
    frozen_codes.assign(size_t(stages * rows * dim), 0);
    for (int64_t i = 0; i < stages; ++i)
      for (int64_t row = 0; row < rows; ++row)
        for (int64_t d = 0; d < dim; ++d) frozen_codes[size_t((i * rows + row) * dim + d)] = code(row, i)[d];
  }

  void forward() {
    y.assign(size_t(rows * latent), 0);
    e.assign(size_t(stages * rows * dim), 0);
    residuals.assign(size_t((stages + 1) * rows * latent), 0);
    commitment = codebook_loss = 0;
    for (int64_t row = 0; row < rows; ++row)
      for (int64_t l = 0; l < latent; ++l) residuals[size_t(row * latent + l)] = z[size_t(row * latent + l)];
    for (int64_t i = 0; i < stages; ++i)
      for (int64_t row = 0; row < rows; ++row) {
        const double* r = residuals.data() + (i * rows + row) * latent;
        double* next = residuals.data() + ((i + 1) * rows + row) * latent;
        for (int64_t d = 0; d < dim; ++d) {
          const size_t at = size_t((i * rows + row) * dim + d);
          double sum = factorised ? in_bias[size_t(i * dim + d)] : r[d];
          if (factorised)
            for (int64_t l = 0; l < latent; ++l) sum += in_weight[size_t((i * dim + d) * latent + l)] * r[l];
          e[at] = sum;
          if (!counts(row, i)) continue;
          const double held_code = frozen_codes.empty() ? code(row, i)[d] : frozen_codes[at];
          const double held_e = frozen_e.empty() ? sum : frozen_e[at];
          commitment += std::pow(sum + sign * held_code, 2) / elements();
          codebook_loss += std::pow(code(row, i)[d] + sign * held_e, 2) / elements();
        }
        for (int64_t l = 0; l < latent; ++l) {
          double q = 0;
          if (factorised) {
            q = out_bias[size_t(i * latent + l)];
            for (int64_t d = 0; d < dim; ++d) {
              const size_t at = size_t((i * rows + row) * dim + d);
              // Straight through: the value is that of the code, the slope that of e.
              const double s = frozen_e.empty() ? code(row, i)[d] : e[at] + frozen_codes[at] - frozen_e[at];
              q += out_weight[size_t((i * latent + l) * dim + d)] * s;
            }
          } else {
            q = frozen_codes.empty() ? code(row, i)[l] : frozen_codes[size_t((i * rows + row) * dim + l)];
          }
          if (i < used[size_t(row)]) y[size_t(row * latent + l)] += q;
          next[l] = r[l] + sign * q;
        }
      }
  }

  /// dy.y + the weighted losses, as a function whose ordinary derivative is the requested gradient. If codes have the
  /// latent's dimension, y is z plus a constant.
  double objective() {
    forward();
    double sum = commitment_weight * commitment + codebook_weight * codebook_loss;
    for (size_t i = 0; i < y.size(); ++i) sum += dy[i] * (factorised ? y[i] : z[i]);
    return sum;
  }

  /// y - z of the used stages, [rows][latent]. Zero for rows that take no part.
  Vector error() const {
    Vector out(size_t(rows * latent), 0.0);
    for (int64_t row = 0; row < rows; ++row)
      for (int64_t l = 0; l < latent && valid[size_t(row)] && used[size_t(row)] > 0; ++l)
        out[size_t(row * latent + l)] = -residuals[size_t((used[size_t(row)] * rows + row) * latent + l)];
    return out;
  }
  /// The factor of `error` in the component of the gradient along it.
  static double factor_of(const Vector& gradient, const Vector& error) {
    const double squares = std::inner_product(error.begin(), error.end(), error.begin(), 0.0);
    return squares == 0 ? 0 : std::inner_product(gradient.begin(), gradient.end(), error.begin(), 0.0) / squares;
  }

  void backward() {
    forward();
    dz.assign(z.size(), 0);
    dcodebooks.assign(codebooks.size(), 0);
    din_weight.assign(in_weight.size(), 0), din_bias.assign(in_bias.size(), 0);
    dout_weight.assign(out_weight.size(), 0), dout_bias.assign(out_bias.size(), 0);
    const double slope = elements() > 0 ? 2 / elements() : 0;
    for (int64_t row = 0; row < rows; ++row) {
      Vector back(size_t(latent), 0.0);
      if (!factorised)
        for (int64_t l = 0; l < latent; ++l) back[size_t(l)] = dy[size_t(row * latent + l)];
      for (int64_t i = stages - 1; i >= 0; --i) {
        const double* r = residuals.data() + (i * rows + row) * latent;
        Vector de(size_t(dim), 0.0), dq(size_t(latent), 0.0);
        if (factorised)
          for (int64_t l = 0; l < latent; ++l) {
            dq[size_t(l)] = (i < used[size_t(row)] ? dy[size_t(row * latent + l)] : 0) + sign * back[size_t(l)];
            dout_bias[size_t(i * latent + l)] += dq[size_t(l)];
            for (int64_t d = 0; d < dim; ++d) {
              const size_t at = size_t((i * latent + l) * dim + d);
              dout_weight[at] += dq[size_t(l)] * code(row, i)[d];
              de[size_t(d)] += dq[size_t(l)] * out_weight[at];
            }
          }
        for (int64_t d = 0; d < dim; ++d) {
          const double value = e[size_t((i * rows + row) * dim + d)], c = code(row, i)[d];
          if (counts(row, i)) {
            de[size_t(d)] += commitment_weight * slope * (value + sign * c);
            dcodebooks[size_t((i * codes + chosen[size_t(row * stages + i)]) * dim + d)] +=
                codebook_weight * slope * (c + sign * value);
          }
          if (!factorised) {
            back[size_t(d)] += de[size_t(d)];
            continue;
          }
          din_bias[size_t(i * dim + d)] += de[size_t(d)];
          for (int64_t l = 0; l < latent; ++l) {
            const size_t at = size_t((i * dim + d) * latent + l);
            din_weight[at] += de[size_t(d)] * r[l];
            back[size_t(l)] += de[size_t(d)] * in_weight[at];
          }
        }
      }
      for (int64_t l = 0; l < latent; ++l) dz[size_t(row * latent + l)] = back[size_t(l)];
    }
    if (!orthogonal) return;
    const Vector e_y = error();
    const double factor = factor_of(dy, e_y);
    for (size_t i = 0; i < dz.size(); ++i) dz[i] -= factor * e_y[i];
  }
};

/// The M-algorithm for one row z in double, in the order of nacre/ops/rvq.h. Codebooks are [stages][codes][dim]. After
/// `used` stages only the best hypothesis continues. The greedy sequence is always kept. `last_first` reverses the rule
/// for ties, and without `keeps_greedy` only the best are kept: for tests that must notice either.
struct BeamReference {
  const std::vector<double>& codebooks;
  int64_t stages, codes, dim, beam;
  bool last_first = false, keeps_greedy = true;

  std::vector<int32_t> search(std::vector<double> z, int64_t used) const {
    struct Hypothesis {
      std::vector<double> residual;
      std::vector<int32_t> chosen;
    };
    std::vector<Hypothesis> kept{{std::move(z), {}}};
    size_t greedy = 0;  // its place among those kept
    for (int64_t s = 0; s < stages; ++s) {
      std::vector<double> energy;  // index: hypothesis * codes + code
      for (const Hypothesis& h : kept)
        for (int64_t k = 0; k < codes; ++k) energy.push_back(half_energy(h.residual, code(s, k)));
      std::vector<size_t> order(energy.size());
      std::iota(order.begin(), order.end(), size_t{0});
      if (last_first) std::reverse(order.begin(), order.end());
      std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return energy[a] < energy[b]; });
      const auto nearest =
          std::find_if(order.begin(), order.end(), [&](size_t at) { return at / size_t(codes) == greedy; });
      const size_t continued = *nearest, place = size_t(nearest - order.begin());
      order.resize(std::min(order.size(), size_t(beam)));
      greedy = std::min(place, order.size() - 1);
      if (keeps_greedy) order[greedy] = continued;
      if (s + 1 == used) order.resize(1), greedy = 0;
      std::vector<Hypothesis> next;
      for (const size_t at : order) {
        Hypothesis h = kept[at / size_t(codes)];
        const int64_t k = int64_t(at) % codes;
        for (size_t d = 0; d < h.residual.size(); ++d) h.residual[d] -= code(s, k)[d];
        h.chosen.push_back(static_cast<int32_t>(k));
        next.push_back(std::move(h));
      }
      kept = std::move(next);
    }
    return kept.front().chosen;
  }

  const double* code(int64_t stage, int64_t k) const { return codebooks.data() + (stage * codes + k) * dim; }
  static double half_energy(const std::vector<double>& r, const double* code) {
    double sum = 0;
    for (size_t d = 0; d < r.size(); ++d) sum += (r[d] - code[d]) * (r[d] - code[d]) / 2;
    return sum;
  }
};

}  // namespace nacre::test
