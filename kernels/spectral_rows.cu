#include "spectral_cells.cuh"

// Everything between the two transforms in one kernel: a block takes whole frames, its threads keep the estimate's bins
// in registers and put the magnitudes of both signals into shared memory, where the bands find them. Reads each
// spectrum once and writes each gradient once, over the spectra: 16 bytes per bin, and 8 per wanted gradient. About 90
// operations per bin with both logarithms: below the memory's time.
namespace nacre::cuda {
namespace {

constexpr int cells_per_thread = 8;

/// How a block of `threads` threads is filled with frames, and the steps of its threads from cell to cell.
struct Rows {
  int rows;                ///< per block
  int row_step, bin_step;  ///< of `threads` cells
};

/// The sums of four values over the block, by the threads 0 .. 3.
template <int threads>
__device__ __forceinline__ void put_four(const ScaleView& s, const double (&value)[4], double* buffer) {
  constexpr int warps = threads / 32;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const double sum = warp_sum(value[i]);
    if (threadIdx.x % 32 == 0) buffer[i * warps + threadIdx.x / 32] = sum;
  }
  __syncthreads();
  if (threadIdx.x >= 4) return;
  double total = 0;
  for (int w = 0; w < warps; ++w) total += buffer[threadIdx.x * warps + w];
  put_partial(s.partials, threadIdx.x * s.parts + blockIdx.x, total);
}

template <int threads>
__global__ void __launch_bounds__(threads) spectral_rows_kernel(ScaleView s, Rows shape) {
  NACRE_SHARED(double, buffer, 4 * (threads / 32));
  NACRE_DYNAMIC_SHARED(float, magnitudes);  // the estimate's, the target's, the slopes of the bands
  const int bins = static_cast<int>(s.bins), bands = static_cast<int>(s.bands), tid = static_cast<int>(threadIdx.x);
  const int64_t row0 = int64_t{blockIdx.x} * shape.rows, left = s.rows - row0, cells_of_all = s.rows * s.bins;
  const int here = static_cast<int>(left < shape.rows ? left : shape.rows), cells = here * bins;
  float* const estimate = s.spectra + 2 * row0 * s.bins;
  const float* const target = estimate + 2 * cells_of_all;
  float* const target_magnitudes = magnitudes + shape.rows * bins;
  float* const slopes = target_magnitudes + shape.rows * bins;

  Complex x[cells_per_thread];
  float m[cells_per_thread];
  float linear = 0, logarithmic = 0;
  double sums[4] = {0, 0, 0, 0};
#pragma unroll
  for (int j = 0; j < cells_per_thread; ++j) {
    const int cell = tid + j * threads;
    x[j] = cell < cells ? load_complex(estimate, cell) : Complex{0, 0};
  }
  const int first_row = tid / bins, first_bin = tid - first_row * bins;
  int bin = first_bin;
#pragma unroll
  for (int j = 0; j < cells_per_thread; ++j) {
    const int cell = tid + j * threads;
    if (cell < cells) {
      m[j] = magnitude(x[j]);
      const float n = magnitude(load_complex(target, cell));
      if (s.mel) magnitudes[cell] = m[j], target_magnitudes[cell] = n;
      if (s.stft) {
        const Compared c = compare(m[j], n, s.weights[0], s.weights[1], s.floor, s.logs[0]);
        linear += c.difference, logarithmic += c.log_difference;
        if (s.gradient[0]) store_gradient(estimate, cell, x[j], m[j], c.slope, bin > 0 && bin < bins - 1);
      }
    }
    bin += shape.bin_step;
    bin = bin >= bins ? bin - bins : bin;
  }
  sums[0] = static_cast<double>(linear), sums[1] = static_cast<double>(logarithmic);
  if (s.mel) {
    __syncthreads();
    float band_linear = 0, band_logarithmic = 0;
    for (int i = tid; i < here * bands; i += threads) {
      const int row = i / bands, band = i - row * bands;
      const float *const of_estimate = magnitudes + row * bins, *const of_target = target_magnitudes + row * bins;
      float a = 0, b = 0;
      const int32_t end = s.by_band.first[band + 1];
      for (int32_t k = s.by_band.first[band]; k < end; ++k) {
        const float w = s.by_band.weight[k];
        const int32_t at = s.by_band.column[k];
        a += w * of_estimate[at], b += w * of_target[at];
      }
      const Compared c = compare(a, b, s.weights[2], s.weights[3], s.floor, s.logs[1]);
      band_linear += c.difference, band_logarithmic += c.log_difference;
      slopes[i] = c.slope;
    }
    sums[2] = static_cast<double>(band_linear), sums[3] = static_cast<double>(band_logarithmic);
    __syncthreads();
    if (s.gradient[1]) {
      float* const to = s.gradient[0] ? estimate + 2 * cells_of_all : estimate;
      int row = first_row;
      bin = first_bin;
#pragma unroll
      for (int j = 0; j < cells_per_thread; ++j) {
        const int cell = tid + j * threads;
        if (cell < cells) {
          float slope = 0;
          const int32_t end = s.by_bin.first[bin + 1];
          for (int32_t k = s.by_bin.first[bin]; k < end; ++k)
            slope += s.by_bin.weight[k] * slopes[row * bands + s.by_bin.column[k]];
          store_gradient(to, cell, x[j], m[j], slope, bin > 0 && bin < bins - 1);
        }
        row += shape.row_step, bin += shape.bin_step;
        if (bin >= bins) bin -= bins, ++row;
      }
    }
  }
  put_four<threads>(s, sums, buffer);
}

constexpr int64_t few = 256, many = 512;
int64_t threads_for(const ScaleView& s) { return s.bins <= few * cells_per_thread ? few : many; }
int64_t rows_for(const ScaleView& s) { return threads_for(s) * cells_per_thread / s.bins; }
size_t shared_for(const ScaleView& s) {
  return s.mel ? static_cast<size_t>(rows_for(s) * (2 * s.bins + s.bands)) * sizeof(float) : 0;
}

}  // namespace

bool spectral_rows_fit(const ScaleView& s) { return s.bins <= many * cells_per_thread && shared_for(s) <= (96 << 10); }
int64_t spectral_rows_parts(const ScaleView& s) { return blocks_for(s.rows, rows_for(s)); }
void spectral_rows(Context& ctx, const ScaleView& s) {
  const int64_t threads = threads_for(s);
  const Rows shape{static_cast<int>(rows_for(s)), static_cast<int>(threads / s.bins), static_cast<int>(threads % s.bins)};
  launch(ctx,
         {.name = threads == few ? "spectral_rows" : "spectral_rows_long",
          .grid = blocks_for(s.rows, shape.rows),
          .block = static_cast<unsigned>(threads),
          .shared_bytes = shared_for(s)},
         threads == few ? spectral_rows_kernel<few> : spectral_rows_kernel<many>, s, shape);
}

}  // namespace nacre::cuda
