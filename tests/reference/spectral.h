#pragma once
// STFT and spectral losses in double precision, written from the definitions. They share with the library only the
// structs that describe a case. Each gradient comes with the possible error of a float computation.
#include <cmath>
#include <complex>
#include <cstdint>
#include <vector>

#include "nacre/ops/spectral_loss.h"

namespace nacre::test::reference {

using Complex = std::complex<double>;
using Vector = std::vector<double>;
inline constexpr double pi = 3.14159265358979323846;
inline constexpr double unit = 0x1p-24;  // relative rounding error of one float operation

inline size_t at(int64_t i) { return static_cast<size_t>(i); }

/// sum_n x[n] exp(-2 pi i k n / N). Even lengths are halved recursively, odd lengths are summed directly.
inline std::vector<Complex> dft(const std::vector<Complex>& x) {
  const size_t N = x.size();
  std::vector<Complex> y(N);
  const auto root = [N](size_t i) {
    return std::polar(1.0, -2 * pi * static_cast<double>(i % N) / static_cast<double>(N));
  };
  if (N % 2 != 0) {
    for (size_t k = 0; k < N; ++k)
      for (size_t n = 0; n < N; ++n) y[k] += x[n] * root(k * n);
    return y;
  }
  std::vector<Complex> even(N / 2), odd(N / 2);
  for (size_t i = 0; i < N / 2; ++i) even[i] = x[2 * i], odd[i] = x[2 * i + 1];
  even = dft(even), odd = dft(odd);
  for (size_t k = 0; k < N; ++k) y[k] = even[k % (N / 2)] + root(k) * odd[k % (N / 2)];
  return y;
}

inline double hann(int64_t n, int64_t window) {
  return 0.5 - 0.5 * std::cos(2 * pi * static_cast<double>(n) / static_cast<double>(window));
}
/// The window of a geometry.
inline Vector window_of(const StftGeometry& g) {
  Vector h;
  double squares = 0;
  for (int64_t n = 0; n < g.window; ++n) {
    h.push_back(hann(n, g.window));
    squares += h.back() * h.back();
  }
  if (g.normalised)
    for (double& v : h) v /= std::sqrt(squares);
  return h;
}

/// The sample of the signal at position i, or -1. Positions outside are reflected at the ends, one step at a time.
inline int64_t source(int64_t i, int64_t time, StftPadding padding) {
  while (i < 0 || i >= time) {
    if (padding == StftPadding::zero) return -1;
    if (time == 1) return 0;
    i = i < 0 ? -i : 2 * (time - 1) - i;
  }
  return i;
}

/// The position of the first sample of frame f.
inline int64_t start(const StftGeometry& g, int64_t f) {
  if (g.inside) return f * g.hop;
  return f * g.hop - (g.aligned ? (g.window - g.hop) / 2 : g.window / 2);
}

/// Frame f of x [time], multiplied by the window.
inline std::vector<Complex> frame(const double* x, int64_t time, const StftGeometry& g, int64_t f) {
  std::vector<Complex> out(at(g.window));
  const Vector h = window_of(g);
  for (int64_t n = 0; n < g.window; ++n) {
    const int64_t i = source(start(g, f) + n, time, g.padding);
    out[at(n)] = i < 0 ? 0.0 : x[i] * h[at(n)];
  }
  return out;
}
inline double norm(const std::vector<Complex>& x) {
  double sum = 0;
  for (const Complex& v : x) sum += std::norm(v);
  return std::sqrt(sum);
}

/// The error of one bin of a float transform. Each of the log2 N stages, the window and the split round each value once
/// or twice. Errors are distributed over the bins as the signal is.
inline double bin_error(int64_t window, double frame_norm) {
  return 4 * unit * (std::log2(static_cast<double>(window)) + 1) * frame_norm;
}

/// dx [time] += the adjoint of frame f for the spectrum D [bins]. variance += the square of the error of dx if every
/// D[k] has an independent error of dD[k]. variance may be empty. Positions from `end` on are zeros and add nothing.
inline void add_adjoint(const std::vector<Complex>& D, const Vector& dD, int64_t time, const StftGeometry& g, int64_t f,
                        double* dx, double* variance, int64_t end = INT64_MAX) {
  std::vector<Complex> full(at(g.window));
  double square = 0;
  for (size_t k = 0; k < D.size(); ++k) {
    full[k] = std::conj(D[k]);
    if (!dD.empty()) square += dD[k] * dD[k];
  }
  const double transform = bin_error(g.window, norm(full));
  full = dft(full);
  const Vector h = window_of(g);
  for (int64_t n = 0; n < g.window; ++n) {
    const int64_t i = start(g, f) + n < end ? source(start(g, f) + n, time, g.padding) : -1;
    if (i < 0) continue;
    dx[i] += h[at(n)] * full[at(n)].real();
    if (variance) variance[i] += std::pow(h[at(n)], 2) * (square + transform * transform);
  }
}

/// Triangles between equally spaced points of the mel scale, [band][bin].
inline std::vector<Vector> mel_bank(int64_t rate, int64_t window, int64_t bands, double fmin, double fmax,
                                    MelScale scale, bool area) {
  if (fmax == 0) fmax = static_cast<double>(rate) / 2;
  const auto mel = [scale](double f) {
    if (scale == MelScale::htk) return 2595 * std::log10(1 + f / 700);
    return f < 1000 ? 3 * f / 200 : 15 + 27 * std::log(f / 1000) / std::log(6.4);
  };
  const auto hertz = [&](double m) {  // bisection: the scale is written only once
    double low = 0, high = static_cast<double>(rate);
    for (int i = 0; i < 200; ++i) (mel((low + high) / 2) < m ? low : high) = (low + high) / 2;
    return (low + high) / 2;
  };
  std::vector<Vector> out;
  for (int64_t b = 0; b < bands; ++b) {
    double f[3];
    for (int i = 0; i < 3; ++i)
      f[i] = hertz(mel(fmin) + (mel(fmax) - mel(fmin)) * static_cast<double>(b + i) / static_cast<double>(bands + 1));
    Vector row(at(window / 2 + 1));
    for (size_t k = 0; k < row.size(); ++k) {
      const double x = static_cast<double>(k) * static_cast<double>(rate) / static_cast<double>(window);
      if (x > f[0] && x < f[2]) row[k] = x < f[1] ? (x - f[0]) / (f[1] - f[0]) : (f[2] - x) / (f[2] - f[1]);
      if (area) row[k] *= 2 / (f[2] - f[0]);
    }
    out.push_back(row);
  }
  return out;
}

struct Spectral {
  double losses[2] = {0, 0}, loss_errors[2] = {0, 0};
  Vector gradients[2], variances[2];  ///< of stft and mel; [batch][time]
};

/// Slope in m of linear |m - n| + logarithmic |log10 max(m, floor)^p - log10 max(n, floor)^p|, and its possible error
/// if a float computation has m and n within me and ne. Adds the loss and its error.
inline double compare(double m, double n, double me, double ne, double linear, double logarithmic, double floor,
                      double& loss, double& loss_error, double& slope_error) {
  const double cm = std::max(m, floor), cn = std::max(n, floor), d = std::log10(cm) - std::log10(cn);
  loss += linear * std::fabs(m - n) + logarithmic * std::fabs(d);
  loss_error += linear * (me + ne + unit * (m + n)) + logarithmic * (me / cm + ne / cn) / std::log(10.0) +
                logarithmic * 8 * unit * (std::fabs(std::log10(cm)) + std::fabs(std::log10(cn)) + 1);
  const double slope = linear * (m > n ? 1 : m < n ? -1 : 0);
  const double log_slope = m >= floor ? logarithmic / (std::log(10.0) * cm) * (cm > cn ? 1 : cm < cn ? -1 : 0) : 0;
  // Two values that differ by less than their errors may be exchanged. A value near the floor may be on its other side.
  const bool kink = std::fabs(m - n) <= me + ne, edge = std::fabs(m - floor) <= me && logarithmic > 0;
  slope_error = kink || edge ? 2 * (linear + logarithmic / (std::log(10.0) * cm))
                             : std::fabs(log_slope) * (me / cm + 4 * unit) + 4 * unit * linear;
  return slope + log_slope;
}

/// As compare, of linear |m - n| + logarithmic (log10(floor + m) - log10(floor + n))^2. m and n are not negative.
inline double compare_powers(double m, double n, double me, double ne, double linear, double logarithmic, double floor,
                             double& loss, double& loss_error, double& slope_error) {
  const double cm = floor + m, cn = floor + n, d = std::log10(cm) - std::log10(cn);
  const double d_error =
      (me / cm + ne / cn) / std::log(10.0) + 8 * unit * (std::fabs(std::log10(cm)) + std::fabs(std::log10(cn)) + 1);
  loss += linear * std::fabs(m - n) + logarithmic * d * d;
  loss_error += linear * (me + ne + unit * (m + n)) +
                logarithmic * (2 * std::fabs(d) * d_error + d_error * d_error + 4 * unit * d * d);
  const double per_d = 2 * logarithmic / (std::log(10.0) * cm);
  slope_error = (std::fabs(m - n) <= me + ne ? 2 * linear : 4 * unit * linear) +
                per_d * (d_error + std::fabs(d) * (me / cm + 8 * unit));
  return linear * (m > n ? 1 : m < n ? -1 : 0) + per_d * d;
}

/// The slopes of linear |m - n|_1 + logarithmic |ln(floor + m) - ln(floor + n)|_2 in every m, as compare.
inline Vector compare_norms(const Vector& m, const Vector& n, const Vector& me, const Vector& ne, double linear,
                            double logarithmic, double floor, double& loss, double& loss_error, Vector& slope_error) {
  Vector e, e_error, slope;
  double square = 0, error_square = 0;
  for (size_t i = 0; i < m.size(); ++i) {
    e.push_back(std::log(floor + m[i]) - std::log(floor + n[i]));
    // As in compare_powers, in units of the natural logarithm.
    e_error.push_back(me[i] / (floor + m[i]) + ne[i] / (floor + n[i]) +
                      8 * unit * (std::fabs(std::log(floor + m[i])) + std::fabs(std::log(floor + n[i])) + 2.4));
    square += e[i] * e[i], error_square += e_error[i] * e_error[i];
    loss += linear * std::fabs(m[i] - n[i]), loss_error += linear * (me[i] + ne[i] + unit * (m[i] + n[i]));
  }
  // By the triangle inequality the norm moves by at most the norm of the errors. Its sum in float adds up to 64 bands.
  const double norm = std::sqrt(square), norm_error = std::sqrt(error_square) + 64 * unit * norm;
  loss += logarithmic * norm, loss_error += logarithmic * norm_error;
  for (size_t i = 0; i < m.size(); ++i) {
    // An entry of a unit vector: the direction is unknown if the error may be the whole norm.
    const double entry = norm > 0 ? e[i] / norm : 0, per_entry = logarithmic / (floor + m[i]);
    const double entry_error =
        norm <= 2 * norm_error ? 2 : (e_error[i] + std::fabs(entry) * norm_error) / (norm - norm_error);
    slope.push_back(linear * (m[i] > n[i] ? 1 : m[i] < n[i] ? -1 : 0) + per_entry * entry);
    slope_error.push_back((std::fabs(m[i] - n[i]) <= me[i] + ne[i] ? 2 * linear : 4 * unit * linear) +
                          per_entry * (entry_error + std::fabs(entry) * (me[i] / (floor + m[i]) + 8 * unit)));
  }
  return slope;
}

/// The level of a frame in dB, and its error in float.
struct Level {
  double value, error;
};
inline Level level_of(const std::vector<Complex>& frame, int64_t window) {
  double energy = 0;
  for (const Complex& v : frame) energy += std::norm(v);
  energy /= 0.375 * static_cast<double>(window);
  // The contract's error of an energy, which the 1e-6 limits, and that of a logarithm.
  const double relative = energy / (1e-6 + energy) * (static_cast<double>(window) / 16 + 8) * 2 * unit + 2 * unit;
  const double value = 10 * std::log10(1e-6 + energy);
  return {value, relative * 10 / std::log(10.0) + 8 * unit * (std::fabs(value) + 10)};
}

inline Spectral spectral_loss(const SpectralConfig& c, int64_t batch, int64_t time, const Vector& estimate,
                              const Vector& target, const std::vector<int32_t>& lengths, bool gradients = true) {
  Spectral out;
  for (int i = 0; i < 2; ++i) out.gradients[i].resize(estimate.size()), out.variances[i].resize(estimate.size());
  Vector x = estimate, y = target;
  const auto valid = [&](int64_t b) {
    return lengths.empty() ? time : std::min<int64_t>(std::max<int64_t>(lengths[at(b)], 0), time);
  };
  for (int64_t b = 0; b < batch; ++b)
    for (int64_t t = valid(b); t < time; ++t) x[at(b * time + t)] = y[at(b * time + t)] = 0;
  for (const SpectralScale& s : c.scales) {
    const StftGeometry g{s.window, s.hop, c.padding, s.aligned};
    const bool power = s.mel_kind == MelKind::power;
    const int64_t frames = s.aligned ? (time + s.hop - 1) / s.hop : 1 + time / s.hop, bins = s.window / 2 + 1;
    // Beyond the padding of aligned frames the signal is zero.
    const int64_t end = s.aligned ? time + (s.window - s.hop) / 2 : INT64_MAX;
    double energy = 0;  // of the window
    for (int64_t n = 0; n < s.window; ++n) energy += std::pow(hann(n, s.window), 2);
    std::vector<Vector> bank;
    if (s.mels > 0) bank = mel_bank(c.sample_rate, s.window, s.mels, c.fmin, c.fmax, c.mel_scale, c.area_normalised);
    const auto counted = [&](int64_t b, int64_t f) { return valid(b) == time || f * s.hop < valid(b); };
    double count = 0;
    for (int64_t b = 0; b < batch; ++b)
      for (int64_t f = 0; f < frames; ++f) count += counted(b, f);
    for (int64_t b = 0; b < batch; ++b)
      for (int64_t f = 0; f < frames; ++f) {
        if (!counted(b, f)) continue;
        auto fx = frame(&x[at(b * time)], time, g, f), fy = frame(&y[at(b * time)], time, g, f);
        for (int64_t n = 0; n < s.window; ++n)
          if (start(g, f) + n >= end) fx[at(n)] = fy[at(n)] = 0;
        const double ex = bin_error(s.window, norm(fx)), ey = bin_error(s.window, norm(fy));
        const auto X = dft(fx), Y = dft(fy);
        // `slope` is that of |X|, or of |X|^2 for powers.
        const auto back = [&](const Vector& slope, const Vector& slope_error, int which, bool powers) {
          std::vector<Complex> D(at(bins));
          Vector error(at(bins));
          for (size_t k = 0; k < D.size(); ++k) {
            const double m = std::abs(X[k]);
            if (powers) {
              D[k] = 2 * slope[k] * X[k];
              error[k] = 2 * slope_error[k] * (m + ex) + 2 * std::fabs(slope[k]) * (ex + 4 * unit * m);
              continue;
            }
            // The direction X / |X| turns by at most ex / |X|. It is undefined in bins that contain only errors.
            D[k] = m > 0 ? slope[k] * X[k] / m : 0;
            error[k] = slope_error[k] + std::fabs(slope[k]) * (m > 0 ? std::min(2.0, ex / m) : ex > 0 ? 1.0 : 0.0);
          }
          add_adjoint(D, error, time, g, f, &out.gradients[which][at(b * time)], &out.variances[which][at(b * time)],
                      end);
        };
        Vector slope(at(bins)), slope_error(at(bins));
        const double cells = count * static_cast<double>(bins);
        for (size_t k = 0; k < slope.size(); ++k)
          slope[k] = compare(std::abs(X[k]), std::abs(Y[k]), ex, ey, static_cast<double>(s.magnitude) / cells,
                             static_cast<double>(s.log_magnitude * c.log_power) / cells, static_cast<double>(c.floor),
                             out.losses[0], out.loss_errors[0], slope_error[k]);
        if (gradients && (s.magnitude != 0 || s.log_magnitude != 0)) back(slope, slope_error, 0, false);
        if (s.mels == 0 || (s.mel_magnitude == 0 && s.mel_log == 0)) continue;
        std::fill(slope.begin(), slope.end(), 0.0), std::fill(slope_error.begin(), slope_error.end(), 0.0);
        double weight = 1, weight_error = 0;
        if (c.mel_transient != 0 && f > 0) {
          auto past = frame(&y[at(b * time)], time, g, f - 1);
          for (int64_t n = 0; n < s.window; ++n)
            if (start(g, f - 1) + n >= end) past[at(n)] = 0;
          const Level now = level_of(fy, s.window), before = level_of(past, s.window);
          const double rise = static_cast<double>(c.transient_rise), by = static_cast<double>(c.mel_transient);
          weight += by * std::min(1.0, std::max(0.0, (now.value - before.value) / rise));
          weight_error = by * (now.error + before.error) / rise + 4 * unit * weight;
        }
        Vector ms, ns, mes, nes;
        for (const Vector& row : bank) {
          double m = 0, n = 0, me = 0, ne = 0;
          for (size_t k = 0; k < slope.size(); ++k) {
            const double of_bin[2] = {std::abs(X[k]), std::abs(Y[k])};
            const auto value = [&](double v) { return power ? v * v / energy : v; };
            // |X|^2 is between (|X| - ex)^2 and (|X| + ex)^2.
            const auto value_error = [&](double v, double e) { return power ? (2 * v + e) * e / energy : e; };
            m += row[k] * value(of_bin[0]), me += row[k] * value_error(of_bin[0], ex);
            n += row[k] * value(of_bin[1]), ne += row[k] * value_error(of_bin[1], ey);
          }
          ms.push_back(m), ns.push_back(n), mes.push_back(me + 8 * unit * m), nes.push_back(ne + 8 * unit * n);
        }
        const bool norms = s.mel_kind == MelKind::norms;
        const double share = count * (norms ? 1 : static_cast<double>(s.mels));
        const double linear = static_cast<double>(s.mel_magnitude) / share;
        const double logarithmic = static_cast<double>(s.mel_log) / share, floor = static_cast<double>(c.floor);
        double &loss = out.losses[1], &loss_error = out.loss_errors[1];
        Vector d, d_error;
        if (norms) d = compare_norms(ms, ns, mes, nes, linear, logarithmic, floor, loss, loss_error, d_error);
        for (size_t i = 0; i < bank.size() && !norms; ++i) {
          double error = 0, above = 1;
          if (!power && std::max(ms[i], floor) > std::max(ns[i], floor)) above = static_cast<double>(c.mel_excess);
          const auto of_bands = power ? compare_powers : compare;
          const double before = loss;
          d.push_back(of_bands(ms[i], ns[i], mes[i], nes[i], linear, above * weight * logarithmic, floor, loss,
                               loss_error, error));
          // Bands that may be exchanged have a slope of the other weight, too: that of the larger one.
          const bool kink = std::fabs(ms[i] - ns[i]) <= mes[i] + nes[i];
          if (kink && c.mel_excess > 1) {
            error *= static_cast<double>(c.mel_excess);
            loss_error += static_cast<double>(c.mel_excess) * weight * logarithmic * (mes[i] + nes[i]) /
                          (std::log(10.0) * std::max(floor, std::min(ms[i], ns[i])));
          }
          loss_error += weight_error / weight * (loss - before);
          d_error.push_back(error + weight_error / weight * std::fabs(d[i]));
        }
        for (size_t i = 0; i < bank.size(); ++i) {
          const double by = power ? 1 / energy : 1;
          for (size_t k = 0; k < slope.size(); ++k)
            slope[k] += by * bank[i][k] * d[i], slope_error[k] += by * bank[i][k] * d_error[i];
        }
        if (gradients) back(slope, slope_error, 1, power);
      }
  }
  for (int i = 0; i < 2; ++i)
    for (int64_t b = 0; b < batch; ++b)
      for (int64_t t = valid(b); t < time; ++t)
        out.gradients[i][at(b * time + t)] = out.variances[i][at(b * time + t)] = 0;
  return out;
}

}  // namespace nacre::test::reference
