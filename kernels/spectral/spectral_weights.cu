#include "spectral/spectral_fused.cuh"

// What only some scales need: the weights of frames, and the norms of frames that no block holds.
namespace nacre::cuda {
namespace {

constexpr int threads = 256, warps = threads / 32;

/// The level of frame f in dB, valid in every lane of its warp. Lane l adds samples l, l + 32, ... in float.
__device__ __forceinline__ float level(const Framing& g, const CountedPart& c, const float* x, int f) {
  const int begin = f * g.hop - g.lead, lane = static_cast<int>(threadIdx.x % 32);
  float energy = 0;
  for (int n = lane; n < g.window; n += 32) {
    const float v = g.hann[n] * sample<true>(g, c, x, begin + n);
    energy += v * v;
  }
  const double sum = warp_sum(static_cast<double>(energy));
  return 10 * vec::log10(quiet_power + static_cast<float>(sum / (0.375 * g.window)));
}

/// weights [batch][frames] = 1 + transient x the rise of the target's level over the frame before, in units of `rise`
/// and within [0, 1]. A warp per frame: it reads two frames, which is cheaper than a second launch. Frames that do not
/// count get 1.
__global__ void __launch_bounds__(threads)
    spectral_transients_kernel(Framing g, const float* target, const int32_t* lengths, float transient, float rise,
                               float* weights) {
  const int64_t row = int64_t{blockIdx.x} * warps + threadIdx.x / 32;
  if (row >= g.batch * g.frames) return;
  const int64_t b = row / g.frames;
  const int f = static_cast<int>(row - b * g.frames);
  const CountedPart c = counted_part(g, lengths, b);
  const float* const x = target + b * g.time;
  float weight = 1;
  if (f > 0 && f < c.frames) {
    const float units = (level(g, c, x, f) - level(g, c, x, f - 1)) / rise;
    weight += transient * (units < 0 ? 0.0f : units > 1 ? 1.0f : units);
  }
  if (threadIdx.x % 32 == 0) weights[row] = weight;
}

/// MelKind::norms of one frame per block: losses, and the slope of each band. As compare_norms of spectral_cells.cuh,
/// with magnitudes computed from the spectra in global memory. A thread has every 256th band. `slopes` first holds the
/// differences of the logarithms; the second loop, after the norm is known, turns them into slopes. A thread reads only
/// what it wrote itself, so the barriers of block_sum are the only ones.
__global__ void __launch_bounds__(threads, 4) spectral_norms_kernel(ScaleView s) {
  NACRE_SHARED(double, buffer, warps);
  const int64_t row = blockIdx.x;
  const int bands = static_cast<int>(s.bands);
  float* const slopes = s.slopes + row * bands;
  // Both signals' values of a band, summed anew in both loops rather than stored.
  const auto band_of_row = [&](int band) {
    Band v{0, 0};
    for (int32_t k = s.by_band.first[band]; k < s.by_band.first[band + 1]; ++k) {
      const int64_t bin = s.by_band.column[k];
      v.estimate += s.by_band.weight[k] * magnitude(load_complex(s.spectra, row * s.bins + bin));
      v.target += s.by_band.weight[k] * magnitude(load_complex(s.spectra, (s.rows + row) * s.bins + bin));
    }
    return v;
  };
  float difference = 0, square = 0;
  for (int band = static_cast<int>(threadIdx.x); band < bands; band += threads) {
    const Band v = band_of_row(band);
    const float e = s.logs[1] ? vec::log10(s.floor + v.estimate) - vec::log10(s.floor + v.target) : 0.0f;
    difference += fabsf(v.estimate - v.target), square += e * e;
    slopes[band] = e;
  }
  const float norm = sqrtf(static_cast<float>(block_sum<threads>(static_cast<double>(square), buffer)));
  const float scale = norm > 0 ? s.weights[3] / norm : 0.0f;
  for (int band = static_cast<int>(threadIdx.x); band < bands; band += threads) {
    const Band v = band_of_row(band);
    const float d = v.estimate - v.target, linear = s.weights[2];
    slopes[band] = (d > 0 ? linear : d < 0 ? -linear : 0.0f) + slopes[band] * scale / (s.floor + v.estimate);
  }
  store_term_sums<threads>(s, 2, static_cast<double>(difference), threadIdx.x == 0 ? static_cast<double>(norm) : 0.0,
                           buffer);
}

}  // namespace

void spectral_transients(Context& ctx, const Framing& g, const float* target, const int32_t* lengths, float transient,
                         float rise, float* weights) {
  launch(ctx, {.name = "spectral_transients", .grid = blocks_for(g.batch * g.frames, warps), .block = threads},
         spectral_transients_kernel, g, target, lengths, transient, rise, weights);
}
void spectral_norms(Context& ctx, const ScaleView& s) {
  launch(ctx, {.name = "spectral_norms", .grid = static_cast<unsigned>(s.rows), .block = threads},
         spectral_norms_kernel, s);
}

}  // namespace nacre::cuda
