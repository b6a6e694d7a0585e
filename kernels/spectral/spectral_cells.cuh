#pragma once
// Shared by the kernels of spectral_loss: the parameters of a scale, and the comparison of one cell.
#include "nacre/ops/spectral_loss.h"
#include "runtime/partials.cuh"
#include "runtime/vector_math.h"

namespace nacre::cuda {

/// A sparse matrix in compressed rows.
struct DeviceRows {
  const int32_t *first, *column;
  const float* weight;
};
/// One scale. Spectra are [2][rows][bins][2]: the estimate, then the target.
struct ScaleView {
  int64_t rows, bins, bands;
  DeviceRows by_band, by_bin;
  float* spectra;  ///< overwritten by up to two gradients, halved for the inverse transform
  float* slopes;   ///< [rows][bands], slopes of the bands; only for the plain kernels
  float floor;
  bool stft, mel;        ///< whether the terms have a nonzero weight
  bool logs[2];          ///< whether the logarithms of stft and mel have a nonzero weight
  bool gradient[2];      ///< whether the gradients of stft and mel are requested
  bool power;            ///< MelKind::power
  bool norms;            ///< MelKind::norms
  bool weighted;         ///< the logarithms of mel have weights
  float excess;          ///< factor of logarithms whose band exceeds the target's
  const float* frames;   ///< [rows]: weights of the logarithms of a frame; null: all 1
  const float* weights;  ///< [4]: weight of one |difference|: magnitude, log magnitude, mel magnitude, mel log
  float* partials;       ///< [4][parts]: sums of |difference|, as doubles
  int64_t parts;
};

struct Compared {
  float difference, log_difference, slope;
};
/// |m - n|, |log10 max(m, floor) - log10 max(n, floor)| and the slope of their weighted sum in m.
__device__ __forceinline__ Compared compare(float m, float n, float linear, float logarithmic, float floor, bool logs) {
  const float d = m - n, cm = m < floor ? floor : m, cn = n < floor ? floor : n;
  Compared c;
  c.difference = fabsf(d);
  c.log_difference = logs ? fabsf(vec::log10(cm) - vec::log10(cn)) : 0.0f;
  // 0 where the two are equal, of the subgradients the one that moves nothing. Below the floor the logarithm is
  // constant and has no slope.
  c.slope = d > 0 ? linear : d < 0 ? -linear : 0.0f;
  const float log_slope = cm > cn ? logarithmic : cm < cn ? -logarithmic : 0.0f;
  c.slope += (m < floor ? 0.0f : log_slope) / cm;
  return c;
}
/// |m - n|, (log10(floor + m) - log10(floor + n))^2 and the slope of their weighted sum in m.
__device__ __forceinline__ Compared compare_powers(float m, float n, float linear, float logarithmic, float floor,
                                                   bool logs) {
  const float d = m - n, cm = floor + m, e = logs ? vec::log10(cm) - vec::log10(floor + n) : 0.0f;
  return {fabsf(d), e * e, (d > 0 ? linear : d < 0 ? -linear : 0.0f) + 2 * logarithmic * e / cm};
}
/// As compare, with `times` |log10 ...|, and `excess` times more where m is above n.
__device__ __forceinline__ Compared compare_weighted(float m, float n, float linear, float logarithmic, float floor,
                                                     bool logs, float excess, float times) {
  const float d = m - n, cm = m < floor ? floor : m, cn = n < floor ? floor : n;
  times = cm > cn ? times * excess : times;
  const float log_slope = cm > cn ? logarithmic : cm < cn ? -logarithmic : 0.0f;
  return {fabsf(d), logs ? times * fabsf(vec::log10(cm) - vec::log10(cn)) : 0.0f,
          (d > 0   ? linear
           : d < 0 ? -linear
                   : 0.0f) +
              (m < floor ? 0.0f : times * log_slope) / cm};
}
__device__ __forceinline__ float frame_weight(const ScaleView& s, int64_t row) {
  return s.frames == nullptr ? 1.0f : __ldg(s.frames + row);
}
struct Complex {
  float re, im;
};
__device__ __forceinline__ Complex load_complex(const float* spectrum, int64_t cell) {
  const float2 v = reinterpret_cast<const float2*>(spectrum)[cell];
  return {v.x, v.y};
}
__device__ __forceinline__ float power(Complex x) { return x.re * x.re + x.im * x.im; }
__device__ __forceinline__ float magnitude(Complex x) { return sqrtf(x.re * x.re + x.im * x.im); }
/// ratio X, halved for inner bins, which the inverse transform counts twice.
__device__ __forceinline__ void store_scaled(float* spectrum, int64_t cell, Complex x, float ratio, bool inside) {
  ratio = inside ? 0.5f * ratio : ratio;
  reinterpret_cast<float2*>(spectrum)[cell] = make_float2(x.re * ratio, x.im * ratio);
}
/// slope X / |X|, or 0 if |X| = 0, halved as store_scaled does.
__device__ __forceinline__ void store_gradient(float* spectrum, int64_t cell, Complex x, float m, float slope,
                                               bool inside) {
  store_scaled(spectrum, cell, x, m == 0.0f ? 0.0f : slope / m, inside);
}

/// Adds the two sums of a term over the block and stores them as its partials.
template <int threads>
__device__ __forceinline__ void store_term_sums(const ScaleView& s, int term, double linear, double logarithmic,
                                                double* buffer) {
  const double a = block_sum<threads>(linear, buffer), b = block_sum<threads>(logarithmic, buffer);
  if (threadIdx.x == 0) {
    put_partial(s.partials, term * s.parts + blockIdx.x, a);
    put_partial(s.partials, (term + 1) * s.parts + blockIdx.x, b);
  }
}

/// One band of a frame in both signals, given their magnitudes (or powers).
/// Weights and columns are the same for all blocks and stay in the read-only cache; the magnitudes are in shared
/// memory.
struct Band {
  float estimate, target;
};
__device__ __forceinline__ Band band_of(const ScaleView& s, int band, const float* estimate, const float* target) {
  float a = 0, b = 0;
  const int32_t end = __ldg(s.by_band.first + band + 1);
#pragma unroll 4
  for (int32_t k = __ldg(s.by_band.first + band); k < end; ++k) {
    const float w = __ldg(s.by_band.weight + k);
    const int32_t at = __ldg(s.by_band.column + k);
    a += w * estimate[at], b += w * target[at];
  }
  return {a, b};
}
/// Compares one band of frame `row`. Only `general` allows s.power and s.weighted.
template <bool general>
__device__ __forceinline__ Compared compare_band(const ScaleView& s, int64_t row, int band, const float* estimate,
                                                 const float* target, float linear, float logarithmic) {
  const Band v = band_of(s, band, estimate, target);
  if constexpr (general) {
    if (s.power) return compare_powers(v.estimate, v.target, linear, logarithmic, s.floor, s.logs[1]);
    if (s.weighted)
      return compare_weighted(v.estimate, v.target, linear, logarithmic, s.floor, s.logs[1], s.excess,
                              row < s.rows ? frame_weight(s, row) : 1.0f);
  }
  return compare(v.estimate, v.target, linear, logarithmic, s.floor, s.logs[1]);
}
/// MelKind::norms for the frames of a block: slopes [rows][bands] of linear |m - n|_1 + logarithmic |log10(floor + m) -
/// log10(floor + n)|_2, and this thread's part of the two sums. `norms`: shared memory for one float per frame.
/// A barrier must follow before others read the slopes.
template <int threads>
__device__ __forceinline__ void compare_norms(const ScaleView& s, int rows, const float* estimate, const float* target,
                                              float* slopes, float* norms, float linear, float logarithmic,
                                              float& difference, float& log_difference) {
  const int bands = static_cast<int>(s.bands), bins = static_cast<int>(s.bins), cells = rows * bands;
  const int tid = static_cast<int>(threadIdx.x);
  for (int k = tid; k < cells; k += threads) {
    const int r = k / bands;
    const Band v = band_of(s, k - r * bands, estimate + r * bins, target + r * bins);
    difference += fabsf(v.estimate - v.target);
    slopes[k] = s.logs[1] ? vec::log10(s.floor + v.estimate) - vec::log10(s.floor + v.target) : 0.0f;
  }
  // One warp adds the squares of a frame, lane by lane, so their order is fixed by the number of bands.
  __syncthreads();
  for (int r = tid / 32; r < rows; r += threads / 32) {
    float square = 0;
    for (int b = tid % 32; b < bands; b += 32) square += slopes[r * bands + b] * slopes[r * bands + b];
    const float norm = sqrtf(warp_sum(square));
    if (tid % 32 != 0) continue;
    norms[r] = norm > 0 ? logarithmic / norm : 0.0f;
    log_difference += norm;
  }
  // Bands are summed again rather than stored: two values per band would not fit beside the points. Each thread has the
  // cells it had before.
  __syncthreads();
  for (int k = tid; k < cells; k += threads) {
    const int r = k / bands;
    const Band v = band_of(s, k - r * bands, estimate + r * bins, target + r * bins);
    const float d = v.estimate - v.target;
    slopes[k] = (d > 0 ? linear : d < 0 ? -linear : 0.0f) + slopes[k] * norms[r] / (s.floor + v.estimate);
  }
}
/// The slope of a bin's magnitude from the slopes of its bands.
__device__ __forceinline__ float bin_slope(const ScaleView& s, int bin, const float* slopes) {
  float slope = 0;
  const int32_t end = __ldg(s.by_bin.first + bin + 1);
#pragma unroll 1
  for (int32_t k = __ldg(s.by_bin.first + bin); k < end; ++k)  // at most two bands
    slope += __ldg(s.by_bin.weight + k) * slopes[__ldg(s.by_bin.column + k)];
  return slope;
}
/// Adds four values over the block. Threads 0 .. 3 store them as partials.
template <int threads>
__device__ __forceinline__ void store_sums(const ScaleView& s, const double (&value)[4], double* buffer) {
  constexpr int warps = threads / 32;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const double sum = warp_sum(value[i]);
    if (threadIdx.x % 32 == 0) buffer[i * warps + threadIdx.x / 32] = sum;
  }
  // `buffer` has 4 x warps doubles: the four sums share one barrier.
  __syncthreads();
  if (threadIdx.x >= 4) return;
  double total = 0;
  for (int w = 0; w < warps; ++w) total += buffer[threadIdx.x * warps + w];
  put_partial(s.partials, threadIdx.x * s.parts + blockIdx.x, total);
}

/// The fast kernel between cuFFT's transforms (spectral_rows.cu), for scales whose frames fit into a block.
bool spectral_rows_supports(const DeviceLimits&, const ScaleView&);
int64_t spectral_rows_parts(const ScaleView&);
void spectral_rows(Context&, const ScaleView&);

}  // namespace nacre::cuda
