// The training of codebooks on CUDA: moving averages and k-means; vq.cpp is the same on the CPU, and nacre/ops/vq.h
// gives the formulas. Sums of the rows of each code are those of rows_of_codes.cuh. docs/decisions/vq-means.md compares
// other ways to add them.
//
//   vq_ema     vq_ema_prepare: flags of numbers that are not finite, codes by stage;  vq_ema: everything else
//   vq_kmeans  vq_kmeans_draw, vq_kmeans_start: the first codebook;  vq_kmeans_energy: |x|^2 / 2;  per iteration the
//              nearest codes, vq_kmeans_mean, vq_kmeans_empty;  vq_kmeans_count, if counts are wanted
#include "nacre/ops/vq.h"
#include "nacre/random.h"
#include "quantizer/rows_of_codes.cuh"
#include "quantizer/vq_products.cuh"

namespace nacre::cuda {
namespace {

constexpr int threads = RowsOfCodes::threads, warps = RowsOfCodes::warps;

// ---- sums of the rows of each code

constexpr int chunk = 128;  ///< channels that a warp adds at a time: four per lane
struct Channels {
  float v[4];
};

/// sum[j] = sum of channel d0 + lane + 32 j over the rows of the warp's code, in double and in row order. Returns how
/// many rows there are.
__device__ __forceinline__ int64_t sum_rows(const RowsOfCodes& rows, const float* x, int64_t dim, int64_t d0,
                                            double (&sum)[4]) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
#pragma unroll
  for (int j = 0; j < 4; ++j) sum[j] = 0;
  return rows.for_each<Channels>(
      [&](int64_t row, Channels& c) {
        const float* from = x + row * dim + d0 + lane;
#pragma unroll
        for (int j = 0; j < 4; ++j) c.v[j] = d0 + lane + 32 * j < dim ? from[32 * j] : 0.0f;
      },
      [&](const Channels& c) {
#pragma unroll
        for (int j = 0; j < 4; ++j) sum[j] += static_cast<double>(c.v[j]);
      });
}

// ---- exponential moving averages

/// The first `checks` blocks look for numbers that are not finite in valid rows of the first stage: nonfinite[block] is
/// 1 if there is one. The others transpose the codes to by_stage [stages][rows], -1 for rows that do not count. A flag
/// per block needs neither a memset nor an atomic.
__global__ void __launch_bounds__(threads)
    vq_ema_prepare_kernel(VqEma a, int64_t rows, int64_t stages, int64_t codes, int64_t dim, RowMask mask,
                          unsigned checks, int32_t* nonfinite, int32_t* by_stage) {
  NACRE_SHARED(int32_t, found_by, warps);
  const int64_t block = blockIdx.x < checks ? blockIdx.x : blockIdx.x - checks;
  const int64_t begin = block * threads + threadIdx.x;
  const int64_t step = int64_t{blockIdx.x < checks ? checks : gridDim.x - checks} * threads;
  if (blockIdx.x >= checks) {
    for (int64_t i = begin; i < rows * stages; i += step)
      transpose_code(a.codes.data, i, rows, stages, codes, mask, by_stage);
    return;
  }
  bool found = false;
#pragma unroll 4
  for (int64_t i = begin; i < rows * dim; i += step)
    // NaN and infinities have all bits of the exponent set.
    if ((__float_as_uint(a.x.data[i]) & 0x7f800000u) == 0x7f800000u && mask.valid(i / dim)) found = true;
  found = __any_sync(full_warp, found);
  if (threadIdx.x % 32 == 0) found_by[threadIdx.x / 32] = found;
  __syncthreads();
  if (threadIdx.x != 0) return;
  int32_t any = 0;
  for (int w = 0; w < warps; ++w) any |= found_by[w];
  nonfinite[block] = any;
}

/// A warp per stage and code: it adds the rows that chose its code, 128 channels at a time, and updates sums, code and
/// count. A batch that is not finite, or has no valid row, changes nothing. Warps beyond the last code add nothing, but
/// take part in the barriers of sum_rows().
__global__ void __launch_bounds__(threads, 2)
    vq_ema_kernel(VqEma a, int64_t rows, int64_t codes, int64_t dim, RowMask mask, const int32_t* by_stage,
                  unsigned checks, const int32_t* nonfinite) {
  NACRE_SHARED(RowsOfCodes::Shared, shared, 1);
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int64_t first = int64_t{blockIdx.x} * warps, k = first + threadIdx.x / 32, s = blockIdx.y;
  bool found = false;
  for (unsigned i = threadIdx.x % 32; i < checks; i += 32) found |= nonfinite[i] != 0;
  const int64_t valid = mask.valid_rows();
  // Both conditions are the same for all threads of the grid.
  if (__any_sync(full_warp, found) || valid == 0) return;
  const bool exists = k < codes;
  const RowsOfCodes own(by_stage + s * rows, rows, first, *shared);
  const float* x = a.x.data + s * rows * dim;
  float* code = a.codebooks.data + (s * codes + k) * dim;
  float* sums = a.sums.data + (s * codes + k) * dim;
  // All lanes read the old count before the barriers of sum_rows(), and lane 0 writes the new one after them.
  const float old = exists ? a.counts.data[s * codes + k] : 0.0f, rest = 1 - a.decay;
  for (int64_t d0 = 0; d0 < dim; d0 += chunk) {
    double sum[4];
    const int64_t n = sum_rows(own, x, dim, d0, sum);
    if (!exists) continue;
    // Each product is rounded separately, as on the CPU, so that the same codes are dead on every device.
    // The same in every turn of d0, because n and `old` are.
    float count = __fadd_rn(__fmul_rn(a.decay, old), __fmul_rn(rest, static_cast<float>(n)));
    const float scale = 1 / (count + a.eps);
    const bool dead = count < a.dead_below;
    const float* row = nullptr;
    if (dead) {
      // As on the CPU: the draw is numbered by step and code. All lanes compute the same row.
      const Philox draw{a.seed, static_cast<uint64_t>(s)};
      const uint64_t counter =
          static_cast<uint64_t>(a.step.data[0]) * static_cast<uint64_t>(codes) + static_cast<uint64_t>(k);
      row = x + mask.row_of_valid(static_cast<int64_t>(draw.below(counter, static_cast<uint64_t>(valid)))) * dim;
      count = 1;
    }
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const int64_t d = d0 + lane + 32 * j;
      if (d >= dim) continue;
      const float blended = __fadd_rn(__fmul_rn(a.decay, sums[d]), __fmul_rn(rest, static_cast<float>(sum[j])));
      sums[d] = dead ? row[d] : blended;
      code[d] = dead ? row[d] : __fmul_rn(blended, scale);
    }
    if (lane == 0) a.counts.data[s * codes + k] = count;
  }
}

// ---- k-means

constexpr int wide_threads = 1024;
constexpr float jitter = 1e-3f;

/// One block: the order in which rows start the codes, and the amplitude of the jitter. Only a codebook larger than x
/// needs the energy of x.
__global__ void __launch_bounds__(wide_threads)
    vq_kmeans_draw_kernel(VqKmeans a, int64_t rows, int64_t dim, int64_t codes, int32_t* order, float* amplitude) {
  NACRE_SHARED(double, buffer, wide_threads / 32);
  for (int64_t r = threadIdx.x; r < rows; r += wide_threads) order[r] = static_cast<int32_t>(r);
  double energy = 0;
  if (codes > rows)
    for (int64_t i = threadIdx.x; i < rows * dim; i += wide_threads) {
      const double v = static_cast<double>(a.x.data[i]);
      energy += v * v;
    }
  energy = block_sum<wide_threads>(energy, buffer);
  if (threadIdx.x != 0) return;
  // A Fisher-Yates shuffle is sequential. It runs once per training, so one thread suffices.
  *amplitude = static_cast<float>(static_cast<double>(jitter) * sqrt(energy / static_cast<double>(rows * dim)));
  const Philox draw{a.seed, 0};
  for (int64_t k = 0; k < (rows < codes ? rows : codes); ++k) {
    const int64_t other =
        k + static_cast<int64_t>(draw.below(static_cast<uint64_t>(k), static_cast<uint64_t>(rows - k)));
    const int32_t previous = order[k];
    order[k] = order[other];
    order[other] = previous;
  }
}

/// A thread per element: code k starts as row order[k]; repetitions beyond the rows get noise.
__global__ void __launch_bounds__(threads) vq_kmeans_start_kernel(VqKmeans a, int64_t rows, int64_t dim, int64_t codes,
                                                                  const int32_t* order, const float* amplitude) {
  const Philox noise{a.seed, 1};
  for (int64_t i = grid_thread(); i < codes * dim; i += grid_threads()) {
    const int64_t k = i / dim;
    const float from = a.x.data[order[k % rows] * dim + i % dim];
    a.codebook.data[i] = k < rows ? from
                                  : from + static_cast<float>(static_cast<double>(*amplitude) *
                                                              (2 * noise.uniform(static_cast<uint64_t>(i)) - 1));
  }
}

/// A thread per row: |x|^2 / 2, which half distances omit and which matters between rows.
__global__ void __launch_bounds__(threads)
    vq_kmeans_energy_kernel(const float* x, int64_t rows, int64_t dim, float* half_energies) {
  for (int64_t r = grid_thread(); r < rows; r += grid_threads()) {
    float energy = 0;
    for (int64_t d = 0; d < dim; ++d) energy = add_square(energy, x[r * dim + d]);
    half_energies[r] = 0.5f * energy;
  }
}

/// A warp per code: its mean, and how many rows it has. A code without rows keeps its value. `chosen` [rows]: the code
/// of each row.
__global__ void __launch_bounds__(threads)
    vq_kmeans_mean_kernel(const float* x, int64_t rows, int64_t dim, int64_t codes, const int32_t* chosen,
                          float* codebook, int32_t* counts) {
  NACRE_SHARED(RowsOfCodes::Shared, shared, 1);
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int64_t first = int64_t{blockIdx.x} * warps, k = first + threadIdx.x / 32;
  const RowsOfCodes own(chosen, rows, first, *shared);
  int64_t n = 0;
  for (int64_t d0 = 0; d0 < dim; d0 += chunk) {
    double sum[4];
    n = sum_rows(own, x, dim, d0, sum);
    if (k >= codes || n == 0) continue;
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const int64_t d = d0 + lane + 32 * j;
      if (d < dim) codebook[k * dim + d] = static_cast<float>(sum[j]) / static_cast<float>(n);
    }
  }
  if (k < codes && lane == 0) counts[k] = static_cast<int32_t>(n);
}

/// A warp per code: how many rows it has.
__global__ void __launch_bounds__(threads)
    vq_kmeans_count_kernel(int64_t rows, int64_t codes, const int32_t* chosen, float* counts) {
  NACRE_SHARED(RowsOfCodes::Shared, shared, 1);
  struct Nothing {};
  const int64_t first = int64_t{blockIdx.x} * warps, k = first + threadIdx.x / 32;
  const int64_t n =
      RowsOfCodes(chosen, rows, first, *shared).for_each<Nothing>([](int64_t, Nothing&) {}, [](const Nothing&) {});
  if (k < codes && threadIdx.x % 32 == 0) counts[k] = static_cast<float>(n);
}

/// A row and its distance from its centre. take() keeps the farther one, the lower row among equals.
struct Farthest {
  float distance;
  int32_t row;
  __device__ void take(float d, int32_t r) {
    if (d > distance || (d == distance && r < row)) distance = d, row = r;
  }
};
/// The row that is farthest from its centre, the lowest among equals; in all threads of the block.
__device__ __forceinline__ Farthest farthest_row(const float* distances, int64_t rows, Farthest* of_warps) {
  // Every thread starts with row 0, so that ties go to the lowest row whatever threads find.
  Farthest best{distances[0], 0};
  for (int64_t r = threadIdx.x; r < rows; r += wide_threads)
    if (distances[r] > best.distance) best = {distances[r], static_cast<int32_t>(r)};
  for (int lanes = 16; lanes > 0; lanes /= 2) {
    const float d = __shfl_xor_sync(full_warp, best.distance, lanes);
    const int32_t r = __shfl_xor_sync(full_warp, best.row, lanes);
    best.take(d, r);
  }
  if (threadIdx.x % 32 == 0) of_warps[threadIdx.x / 32] = best;
  __syncthreads();
  for (int w = 0; w < wide_threads / 32; ++w) best.take(of_warps[w].distance, of_warps[w].row);
  __syncthreads();
  return best;
}

/// One block: each empty code in turn takes the row that is farthest from its centre. That row's distance becomes 0, so
/// the next empty code takes another one. A warp looks at 32 counts at a time, and all warps see the same bits.
__global__ void __launch_bounds__(wide_threads)
    vq_kmeans_empty_kernel(VqKmeans a, int64_t rows, int64_t dim, int64_t codes, const int32_t* counts,
                           const float* half_energies, float* distances) {
  NACRE_SHARED(Farthest, of_warps, wide_threads / 32);
  bool complete = false;
  for (int64_t first = 0; first < codes; first += 32) {
    const int64_t code = first + threadIdx.x % 32;
    for (unsigned empty = __ballot_sync(full_warp, code < codes && counts[code] == 0); empty != 0; empty &= empty - 1) {
      const int64_t k = first + __ffs(static_cast<int>(empty)) - 1;
      // Only here rows are compared with each other, so only now their distances are completed.
      if (!complete) {
        for (int64_t r = threadIdx.x; r < rows; r += wide_threads)
          distances[r] = __fadd_rn(distances[r], half_energies[r]);
        __syncthreads();
        complete = true;
      }
      const Farthest farthest = farthest_row(distances, rows, of_warps);
      // The same for all threads, so all end together.
      if (!(farthest.distance > 0)) return;
      if (threadIdx.x == 0) distances[farthest.row] = 0;
      for (int64_t d = threadIdx.x; d < dim; d += wide_threads)
        a.codebook.data[k * dim + d] = a.x.data[farthest.row * dim + d];
      // Publishes the zero distance before the next search.
      __syncthreads();
    }
  }
}

}  // namespace

void vq_ema(Context& ctx, const VqEma& a) {
  const int64_t stages = a.codebooks.shape.batch, codes = a.codebooks.shape.time, dim = a.codebooks.shape.channels;
  const int64_t rows = a.x.shape.time;
  if (rows == 0) return;
  const RowMask mask{a.frames.data, nullptr, rows / a.batch, a.batch};
  // vq_ema_scratch() counts the CPU's lists: stages * (rows + codes + 1). The codes by stage leave stages * (codes + 1)
  // of it for the flags.
  int32_t* by_stage = reinterpret_cast<int32_t*>(a.scratch.data);
  int32_t* nonfinite = by_stage + stages * rows;
  const unsigned checks = std::min(blocks_for(rows * dim, threads * 4, 256),
                                   static_cast<unsigned>(std::min<int64_t>(stages * (codes + 1), 256)));
  launch(ctx, {.name = "vq_ema_prepare", .grid = checks + blocks_for(rows * stages, threads, 4096), .block = threads},
         vq_ema_prepare_kernel, a, rows, stages, codes, dim, mask, checks, nonfinite, by_stage);
  launch(ctx,
         {.name = "vq_ema", .grid = {blocks_for(codes, warps), static_cast<unsigned>(stages), 1}, .block = threads},
         vq_ema_kernel, a, rows, codes, dim, mask, by_stage, checks, nonfinite);
}

/// The sizes of the arrays that vq_kmeans() lays out.
Shape vq_kmeans_scratch(Shape x, Shape codebook) {
  return {.channels = scratch_slack + prepared_size(codebook.time, codebook.channels) +
                      products_size(codebook.time, codebook.channels) + 4 * x.rows() + codebook.time + 1};
}

void vq_kmeans(Context& ctx, const VqKmeans& a) {
  const int64_t rows = a.x.shape.rows(), dim = a.x.shape.channels, codes = a.codebook.shape.time;
  float* prepared = aligned_scratch(a.scratch.data);
  float* products = prepared + prepared_size(codes, dim);
  // Scratch: the prepared codebook, the work space of the products; then per row a distance, half its energy, a code
  // and a place in the order; the amplitude of the noise; the number of rows of each code.
  float* distances = products + products_size(codes, dim);
  float* half_energies = distances + rows;
  float* amplitude = half_energies + rows;
  int32_t* chosen = reinterpret_cast<int32_t*>(amplitude + 1);
  int32_t* order = chosen + rows;
  int32_t* counts = order + rows;
  // The same steps as on the CPU, without a copy to the host: the number of launches depends on the iterations alone.
  const auto assign = [&] {
    prepare_codebooks(ctx, a.codebook.data, 1, codes, dim, VqMetric::euclidean, prepared);
    nearest_codes(ctx, a.x.data, rows, dim, prepared, codes, VqMetric::euclidean, VqMethod::by_shape, products, chosen,
                  distances);
  };
  launch(ctx, {.name = "vq_kmeans_draw", .block = wide_threads}, vq_kmeans_draw_kernel, a, rows, dim, codes, order,
         amplitude);
  launch(ctx, {.name = "vq_kmeans_start", .grid = blocks_for(codes * dim, threads), .block = threads},
         vq_kmeans_start_kernel, a, rows, dim, codes, order, amplitude);
  if (a.iterations > 0)
    launch(ctx, {.name = "vq_kmeans_energy", .grid = blocks_for(rows, threads), .block = threads},
           vq_kmeans_energy_kernel, a.x.data, rows, dim, half_energies);
  for (int i = 0; i < a.iterations; ++i) {
    assign();
    launch(ctx, {.name = "vq_kmeans_mean", .grid = blocks_for(codes, warps), .block = threads}, vq_kmeans_mean_kernel,
           a.x.data, rows, dim, codes, chosen, a.codebook.data, counts);
    launch(ctx, {.name = "vq_kmeans_empty", .block = wide_threads}, vq_kmeans_empty_kernel, a, rows, dim, codes, counts,
           half_energies, distances);
  }
  if (!a.counts) return;
  assign();
  launch(ctx, {.name = "vq_kmeans_count", .grid = blocks_for(codes, warps), .block = threads}, vq_kmeans_count_kernel,
         rows, codes, chosen, a.counts.data);
}

}  // namespace nacre::cuda
