#include "spectral/spectral_cells.cuh"

// All work between the two transforms in one kernel. A block takes whole frames; its threads hold the estimate's bins
// in registers and write the magnitudes of both signals to shared memory, from which the bands read them. Each spectrum
// is read once, and each gradient overwrites a spectrum: 16 bytes per bin, and 8 per requested gradient. With both
// logarithms a bin takes about 90 operations, less time than the memory needs.
namespace nacre::cuda {
namespace {

constexpr int cells_per_thread = 8;

/// Frames of a block of `threads` threads. A thread visits every `threads`-th cell (bin of a frame) of the block; the
/// steps are that distance in rows and bins: threads = row_step bins + bin_step.
struct Rows {
  int rows;                ///< per block
  int row_step, bin_step;  ///< of `threads` cells
};

/// A block has shape.rows frames, at most 8 cells per thread. In order: load the estimate, compare cells with the
/// target, store the gradient of the STFT terms; barrier; compare bands, which read magnitudes of other threads;
/// barrier; gradients of the bins from the slopes of the bands; sums.
/// `general`: any MelKind, and weights. For MelKind::power shared memory has powers in place of magnitudes.
template <int threads, bool general>
__global__ void __launch_bounds__(threads) spectral_rows_kernel(ScaleView s, Rows shape) {
  NACRE_SHARED(double, buffer, 4 * (threads / 32));
  // [rows][bins] magnitudes of the estimate and as many of the target; then [rows][bands] slopes; then, for norms, one
  // float per frame. Empty without mel terms.
  NACRE_DYNAMIC_SHARED(float, magnitudes);
  const int bins = static_cast<int>(s.bins), bands = static_cast<int>(s.bands), tid = static_cast<int>(threadIdx.x);
  const float w0 = s.weights[0], w1 = s.weights[1], w2 = s.weights[2], w3 = s.weights[3];
  const int64_t row0 = int64_t{blockIdx.x} * shape.rows, remaining = s.rows - row0, all_cells = s.rows * s.bins;
  const int rows_of_block = static_cast<int>(remaining < shape.rows ? remaining : shape.rows),
            cells = rows_of_block * bins;
  float* const estimate = s.spectra + 2 * row0 * s.bins;
  const float* const target = estimate + 2 * all_cells;
  float* const target_magnitudes = magnitudes + shape.rows * bins;
  float* const slopes = target_magnitudes + shape.rows * bins;

  // All loads of the estimate are issued first, so that they are in flight together. Threads have adjacent cells:
  // coalesced.
  Complex x[cells_per_thread];
  float m[cells_per_thread];
  float linear = 0, logarithmic = 0;
  double sums[4] = {0, 0, 0, 0};
#pragma unroll
  for (int j = 0; j < cells_per_thread; ++j) {
    const int cell = tid + j * threads;
    x[j] = cell < cells ? load_complex(estimate, cell) : Complex{0, 0};
  }
  // The only division by the number of bins; the loops step on from here.
  const int first_row = tid / bins, first_bin = tid - first_row * bins;
  int bin = first_bin;
#pragma unroll
  for (int j = 0; j < cells_per_thread; ++j) {
    const int cell = tid + j * threads;
    if (cell < cells) {
      const Complex y = load_complex(target, cell);
      m[j] = magnitude(x[j]);
      const float n = magnitude(y);
      if (s.mel) {
        const bool powers = general && s.power;
        magnitudes[cell] = powers ? power(x[j]) : m[j], target_magnitudes[cell] = powers ? power(y) : n;
      }
      if (s.stft) {
        const Compared c = compare(m[j], n, w0, w1, s.floor, s.logs[0]);
        linear += c.difference, logarithmic += c.log_difference;
        if (s.gradient[0]) store_gradient(estimate, cell, x[j], m[j], c.slope, bin > 0 && bin < bins - 1);
      }
    }
    // The bin of the next cell without a division: `threads` cells further are row_step rows and bin_step bins.
    bin += shape.bin_step;
    bin = bin >= bins ? bin - bins : bin;
  }
  sums[0] = static_cast<double>(linear), sums[1] = static_cast<double>(logarithmic);
  if (s.mel) {
    __syncthreads();
    float band_linear = 0, band_logarithmic = 0;
    if (general && s.norms) {
      compare_norms<threads>(s, rows_of_block, magnitudes, target_magnitudes, slopes, slopes + shape.rows * bands, w2,
                             w3, band_linear, band_logarithmic);
    } else {
      for (int i = tid; i < rows_of_block * bands; i += threads) {
        const int row = i / bands, band = i - row * bands;
        const Compared c =
            compare_band<general>(s, row0 + row, band, magnitudes + row * bins, target_magnitudes + row * bins, w2, w3);
        band_linear += c.difference, band_logarithmic += c.log_difference;
        slopes[i] = c.slope;
      }
    }
    sums[2] = static_cast<double>(band_linear), sums[3] = static_cast<double>(band_logarithmic);
    __syncthreads();
    if (s.gradient[1]) {
      // The gradient of stft, if requested, has overwritten the estimate, so that of mel overwrites the target. Other
      // threads' cells are never read: x and m are in registers.
      float* const to = s.gradient[0] ? estimate + 2 * all_cells : estimate;
      int row = first_row;
      bin = first_bin;
#pragma unroll
      for (int j = 0; j < cells_per_thread; ++j) {
        const int cell = tid + j * threads;
        if (cell < cells) {
          const float slope = bin_slope(s, bin, slopes + row * bands);
          const bool inside = bin > 0 && bin < bins - 1;
          if (general && s.power)
            store_scaled(to, cell, x[j], 2 * slope, inside);
          else
            store_gradient(to, cell, x[j], m[j], slope, inside);
        }
        row += shape.row_step, bin += shape.bin_step;
        if (bin >= bins) bin -= bins, ++row;
      }
    }
  }
  store_sums<threads>(s, sums, buffer);
}

// 8 cells per thread: 2048 and 4096 cells. The smaller block where a frame fits into it.
constexpr int64_t few_threads = 256, many_threads = 512;
// Threads, frames and dynamic shared memory (bytes) of a block. The memory must hold what spectral_rows_kernel lays
// out.
int64_t threads_for(const ScaleView& s) {
  return s.bins <= few_threads * cells_per_thread ? few_threads : many_threads;
}
int64_t rows_for(const ScaleView& s) { return threads_for(s) * cells_per_thread / s.bins; }
size_t shared_for(const ScaleView& s) {
  return s.mel ? static_cast<size_t>(rows_for(s) * (2 * s.bins + s.bands + s.norms)) * sizeof(float) : 0;
}

}  // namespace

// A block must hold a whole frame: its bins in registers, and magnitudes and slopes in shared memory.
bool spectral_rows_supports(const DeviceLimits& d, const ScaleView& s) {
  const size_t buffer = 4 * (many_threads / 32) * sizeof(double);
  return s.bins <= many_threads * cells_per_thread && shared_for(s) + buffer <= d.shared_per_block;
}
int64_t spectral_rows_parts(const ScaleView& s) { return blocks_for(s.rows, rows_for(s)); }
void spectral_rows(Context& ctx, const ScaleView& s) {
  const int64_t threads = threads_for(s);
  const Rows shape{static_cast<int>(rows_for(s)), static_cast<int>(threads / s.bins),
                   static_cast<int>(threads % s.bins)};
  const bool few = threads == few_threads;
  const bool general = s.power || s.norms || s.weighted;
  const auto kernel = general ? few ? spectral_rows_kernel<few_threads, true> : spectral_rows_kernel<many_threads, true>
                      : few ? spectral_rows_kernel<few_threads, false>
                              : spectral_rows_kernel<many_threads, false>;
  launch(ctx,
         {.name = few ? "spectral_rows" : "spectral_rows_long",
          .grid = blocks_for(s.rows, shape.rows),
          .block = static_cast<unsigned>(threads),
          .shared_bytes = shared_for(s)},
         kernel, s, shape);
}

}  // namespace nacre::cuda
