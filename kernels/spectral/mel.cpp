#include "spectral/mel.h"

#include <cmath>
#include <string>

#include "nacre/ops/spectral_loss.h"
#include "runtime/host.h"
#include "spectral/frame_transform.h"

// Mel filter banks: overlapping triangles at equal distances on a mel scale. A bank is computed in double as a dense
// matrix, and rounded to float once, when MelBank makes it sparse. The device uses the same tables (spectral_loss.cu).
namespace nacre {
namespace {

// HTK: mel = 2595 log10(1 + hz / 700). Slaney: linear below 1 kHz (1 kHz is 15 mel), above it 27 mel per factor of 6.4.
// to_hz() is the inverse of to_mel().
constexpr double slaney_step = 200.0 / 3, slaney_knee = 1000;
double log_step() { return std::log(6.4) / 27; }

double to_mel(double hz, MelScale scale) {
  if (scale == MelScale::htk) return 2595 * std::log10(1 + hz / 700);
  if (hz < slaney_knee) return hz / slaney_step;
  return slaney_knee / slaney_step + std::log(hz / slaney_knee) / log_step();
}
double to_hz(double mel, MelScale scale) {
  if (scale == MelScale::htk) return 700 * (std::pow(10, mel / 2595) - 1);
  if (mel < slaney_knee / slaney_step) return mel * slaney_step;
  return slaney_knee * std::exp(log_step() * (mel - slaney_knee / slaney_step));
}

// The matrix value(row, column) without its zeros: a filter covers few bins, so the dense matrix would be nearly all
// zeros. Columns ascend, which fixes the order of the sums.
SparseRows sparse(int64_t rows, int64_t columns, const auto& value) {
  SparseRows out;
  out.first.push_back(0);
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t c = 0; c < columns; ++c)
      if (const double v = value(static_cast<size_t>(r), static_cast<size_t>(c)); v != 0) {
        out.column.push_back(static_cast<int32_t>(c));
        out.weight.push_back(static_cast<float>(v));
      }
    out.first.push_back(static_cast<int32_t>(out.column.size()));
  }
  return out;
}

// y[r][j] = sum over i of weight[i] x[column[i]][j], for sixteen lanes j. One weight serves sixteen frames; the sums of
// a row stay in registers.
NACRE_CLONES void multiply_rows(const int32_t* first, const int32_t* column, const float* weight, int64_t rows,
                                const float* __restrict x, float* __restrict y) {
  constexpr int64_t L = frame_lanes;
  for (int64_t r = 0; r < rows; ++r) {
    float sum[L] = {};
    for (int32_t i = first[r]; i < first[r + 1]; ++i) {
      const float* __restrict from = x + column[i] * L;
      const float w = weight[i];
      for (int64_t j = 0; j < L; ++j) sum[j] += w * from[j];
    }
    for (int64_t j = 0; j < L; ++j) y[r * L + j] = sum[j];
  }
}

}  // namespace

// Weights [bands][bins] of bins 0 .. window / 2. A band that lies between two bins has no weight at all.
std::vector<std::vector<double>> mel_filter_bank(int64_t sample_rate, int64_t window, int64_t bands, double fmin,
                                                 double fmax, MelScale scale, bool area_normalised) {
  const double nyquist = static_cast<double>(sample_rate) / 2;
  if (fmax == 0) fmax = nyquist;
  if (sample_rate < 1 || window < 2 || window % 2 != 0 || bands < 1)
    throw_usage("mel_filter_bank", "sample_rate " + std::to_string(sample_rate) + ", window " + std::to_string(window) +
                                       " and bands " + std::to_string(bands) +
                                       " must be positive, and the window even");
  if (!(fmin >= 0) || !(fmin < fmax) || !(fmax <= nyquist))
    throw_usage("mel_filter_bank", "fmin " + std::to_string(fmin) + " and fmax " + std::to_string(fmax) +
                                       " must be 0 <= fmin < fmax <= " + std::to_string(nyquist) +
                                       ", half the sample rate");
  // bands + 2 edges at equal distances in mel; band i is a triangle from edge i over i + 1 to i + 2. Area normalisation
  // divides by half its width in Hz.
  const int64_t bins = window / 2 + 1;
  std::vector<double> edge(static_cast<size_t>(bands + 2));
  const double low = to_mel(fmin, scale), high = to_mel(fmax, scale);
  for (size_t i = 0; i < edge.size(); ++i)
    edge[i] = to_hz(low + (high - low) * static_cast<double>(i) / static_cast<double>(bands + 1), scale);
  std::vector<std::vector<double>> bank(static_cast<size_t>(bands), std::vector<double>(static_cast<size_t>(bins)));
  for (size_t i = 0; i < bank.size(); ++i)
    for (size_t k = 0; k < bank[i].size(); ++k) {
      // Bin k is at k sample_rate / window Hz. Outside the triangle the smaller of the two lines is negative.
      const double hz = nyquist * static_cast<double>(k) / static_cast<double>(bins - 1);
      const double up = (hz - edge[i]) / (edge[i + 1] - edge[i]);
      const double down = (edge[i + 2] - hz) / (edge[i + 2] - edge[i + 1]);
      bank[i][k] = std::max(0.0, std::min(up, down)) * (area_normalised ? 2 / (edge[i + 2] - edge[i]) : 1);
    }
  return bank;
}

MelBank::MelBank(const std::vector<std::vector<double>>& dense) {
  const int64_t bands = static_cast<int64_t>(dense.size()), bins = static_cast<int64_t>(dense.at(0).size());
  by_band = sparse(bands, bins, [&](size_t r, size_t c) { return dense[r][c]; });
  by_bin = sparse(bins, bands, [&](size_t r, size_t c) { return dense[c][r]; });
}

void multiply_lanes(const SparseRows& a, const float* x, float* y) {
  multiply_rows(a.first.data(), a.column.data(), a.weight.data(), a.rows(), x, y);
}

}  // namespace nacre
