#include "nacre/ops/vq.h"

#include "nacre/random.h"
#include "quantizer/vq_products.cuh"

namespace nacre::cuda {
namespace {

constexpr int threads = 256, warps = threads / 32;

// ---- nearest code

/// The plain kernel, for any shape: a warp per row. `half_distances`, if given, receives the half distance of each row
/// to its code.
__global__ void __launch_bounds__(threads)
    vq_nearest_kernel(const float* x, int64_t rows, int64_t dim, const float* prepared, int64_t codes, VqMetric metric,
                      int32_t* out, float* half_distances) {
  const int64_t row = int64_t{blockIdx.x} * warps + threadIdx.x / 32;
  if (row >= rows) return;
  const Best best = warp_nearest(x + row * dim, dim, prepared, codes, metric);
  if (threadIdx.x % 32 != 0) return;
  out[row] = best.k;
  if (half_distances != nullptr) half_distances[row] = best.h;
}

// Rows of 1536 channels need 120 KiB of shared memory. tile_kernel_supports() excludes them on devices that have less.
constexpr int64_t max_tile_dim = 1536;

/// A block searches for 16 rows, whose channels must fit into shared memory. For 1M rows and 1024 codes of 128
/// channels: 268 GFLOP, and 62500 blocks read 0.5 MB of codes from L2 each; both take about 6 ms.
__global__ void __launch_bounds__(tile_threads, 2)
    vq_nearest_tile_kernel(const float* x, int64_t rows, int dim, const float* prepared, int padded, VqMetric metric,
                           int32_t* out, float* half_distances) {
  NACRE_DYNAMIC_SHARED(float, tile);
  NACRE_SHARED(uint32_t, candidates, candidate_words);
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const int64_t first = int64_t{blockIdx.x} * tile_rows;
  for (int i = 0; i < 2; ++i) {
    const int r = warp * 2 + i;
    tile_row(x + (first + r) * dim, first + r < rows, dim, metric, tile, r);
  }
  __syncthreads();
  tile_search(tile, dim, prepared, padded, candidates);
  __syncthreads();
  const OrderedBest best = tile_results(candidates);
  const int64_t row = first + warp * 2 + lane / 8;
  if (lane % 8 != 0 || lane >= 16 || row >= rows) return;
  out[row] = static_cast<int32_t>(best.k);
  if (half_distances != nullptr) half_distances[row] = half_distance(best);
}

/// For many rows of few channels: a thread holds four rows in registers and loops over all codes, which all threads
/// read from the same address in shared memory. No sum crosses threads. Per code and row: D fused multiply-adds, and
/// 1.3 instructions for the least of four. For 1M rows, 1024 codes, D = 8: 10 G instructions per lane, 0.35 ms.
template <int D>
__global__ void __launch_bounds__(threads)
    vq_nearest_rows_kernel(const float* x, int64_t rows, const float* prepared, int padded, VqMetric metric,
                           int32_t* out, float* half_distances) {
  // The codebook passes through shared memory in chunks [D][chunk], with the norms after them: 32 KiB plus 1/D of that.
  // Thread t has rows t, t + 256, t + 512 and t + 768 of the block.
  constexpr int R = 4, chunk = 8192 / D < 1024 ? 8192 / D : 1024;
  NACRE_SHARED(float, codes, (D + 1) * chunk);
  const int64_t first = int64_t{blockIdx.x} * (R * threads) + threadIdx.x;
  float v[R][D];
  Best best[R];
#pragma unroll
  for (int r = 0; r < R; ++r) {
    const int64_t row = first + r * threads;
#pragma unroll
    for (int d = 0; d < D; d += 4) {
      const Pack<float> p = row < rows ? load_pack(x + row * D + d) : Pack<float>{};
#pragma unroll
      for (int j = 0; j < 4; ++j) v[r][d + j] = p.v[j];
    }
    if (metric == VqMetric::cosine) {
      float sum = 0;
#pragma unroll
      for (int d = 0; d < D; ++d) sum = add_square(sum, v[r][d]);
      const float scale = inverse_norm_of_square(sum);
#pragma unroll
      for (int d = 0; d < D; ++d) v[r][d] = __fmul_rn(v[r][d], scale);
    }
    best[r] = no_code();
  }
  for (int begin = 0; begin < padded; begin += chunk) {
    const int count = padded - begin < chunk ? padded - begin : chunk, pack_count = count / 4;
    // The first barrier waits until all threads have read the previous chunk, the second one publishes this chunk.
    __syncthreads();
    for (int i = static_cast<int>(threadIdx.x); i < (D + 1) * pack_count; i += threads) {
      const int d = i / pack_count, k = i % pack_count * 4;
      store_pack(codes + d * chunk + k, load_pack(prepared + int64_t{d} * padded + begin + k));
    }
    __syncthreads();
#pragma unroll 1
    for (int k = 0; k < count; k += 4) {
      float h[R][4];
      const Pack<float> norms = load_pack(static_cast<const float*>(codes) + D * chunk + k);
#pragma unroll
      for (int r = 0; r < R; ++r)
#pragma unroll
        for (int t = 0; t < 4; ++t) h[r][t] = norms.v[t];
#pragma unroll
      for (int d = 0; d < D; ++d) {
        const Pack<float> c = load_pack(static_cast<const float*>(codes) + d * chunk + k);
#pragma unroll
        for (int r = 0; r < R; ++r)
#pragma unroll
          for (int t = 0; t < 4; ++t) h[r][t] = __fmaf_rn(-v[r][d], c.v[t], h[r][t]);
      }
#pragma unroll
      for (int r = 0; r < R; ++r) {
        // fminf ignores NaN. The index among the four is only found if one of them is better.
        const float least = fminf(fminf(h[r][0], h[r][1]), fminf(h[r][2], h[r][3]));
        if (least < best[r].h) {
          best[r].h = least;
          best[r].k = begin + k + (h[r][0] == least ? 0 : (h[r][1] == least ? 1 : (h[r][2] == least ? 2 : 3)));
        }
      }
    }
  }
#pragma unroll
  for (int r = 0; r < R; ++r) {
    const int64_t row = first + r * threads;
    if (row >= rows) continue;
    out[row] = best[r].k;
    if (half_distances != nullptr) half_distances[row] = best[r].h;
  }
}

template <int D>
void nearest_rows(Context& ctx, const float* x, int64_t rows, const float* prepared, int64_t codes, VqMetric metric,
                  int32_t* out, float* half_distances) {
  launch(ctx, {.name = "vq_nearest_rows", .grid = blocks_for(rows, 4 * threads), .block = threads},
         vq_nearest_rows_kernel<D>, x, rows, prepared, static_cast<int>(padded_codes(codes)), metric, out,
         half_distances);
}

size_t tile_bytes(int64_t dim) { return static_cast<size_t>(tile_floats(dim)) * sizeof(float); }
bool tile_kernel_supports(const DeviceLimits& d, int64_t dim) {
  return dim <= max_tile_dim && tile_bytes(dim) + candidate_words * sizeof(uint32_t) <= d.shared_per_block;
}

constexpr int64_t many_rows = 32768;  ///< with fewer, blocks of 1024 rows leave multiprocessors idle
constexpr int64_t many_codes = 256;   ///< with fewer, reading the rows takes about as long as their sums

/// All kernels do the same operations in the same order per row and code, so the choice does not change a bit.
void nearest(Context& ctx, const float* x, int64_t rows, int64_t dim, const float* prepared, int64_t codes,
             VqMetric metric, VqMethod method, float* products, int32_t* out, float* half_distances) {
  const bool use_products = method == VqMethod::by_shape && rows >= many_rows && codes >= many_codes;
  if (dim <= max_products_dim && (use_products || method == VqMethod::products)) {
    nearest_by_products(ctx, x, rows, dim, prepared, codes, metric, products, out, half_distances);
    return search_marked_rows(ctx, x, rows, dim, prepared, codes, metric, out, half_distances);
  }
  const bool rows_in_registers = rows >= many_rows && aligned16(x);
  if (rows_in_registers && dim == 4) return nearest_rows<4>(ctx, x, rows, prepared, codes, metric, out, half_distances);
  if (rows_in_registers && dim == 8) return nearest_rows<8>(ctx, x, rows, prepared, codes, metric, out, half_distances);
  if (rows_in_registers && dim == 16)
    return nearest_rows<16>(ctx, x, rows, prepared, codes, metric, out, half_distances);
  if (tile_kernel_supports(limits(ctx), dim))
    launch(ctx,
           {.name = "vq_nearest_tile",
            .grid = blocks_for(rows, tile_rows),
            .block = tile_threads,
            .shared_bytes = tile_bytes(dim)},
           vq_nearest_tile_kernel, x, rows, static_cast<int>(dim), prepared, static_cast<int>(padded_codes(codes)),
           metric, out, half_distances);
  else
    launch(ctx, {.name = "vq_nearest", .grid = blocks_for(rows, warps), .block = threads}, vq_nearest_kernel, x, rows,
           dim, prepared, codes, metric, out, half_distances);
}

// ---- gather

/// A thread per P channels of a row. Reads of the codebook are coalesced within a row; bound by writing y.
template <int P>
__global__ void __launch_bounds__(threads) vq_gather_kernel(VqGather g, int64_t rows, int64_t dim, int64_t codes) {
  const int64_t pack_count = dim / P;
  for (int64_t i = grid_thread(); i < rows * pack_count; i += grid_threads()) {
    const int64_t row = i / pack_count, d = i % pack_count * P;
    const float* from = g.codebook.data + clamp_code(g.codes.data[row], codes) * dim + d;
    float* to = g.y.data + row * dim + d;
    if constexpr (P == 1) {
      *to = g.add_y ? *to + *from : *from;
    } else {
      Pack<float> v = load_pack(from);
      if (g.add_y) {
        const Pack<float> y = load_pack(static_cast<const float*>(to));
#pragma unroll
        for (int j = 0; j < P; ++j) v.v[j] = y.v[j] + v.v[j];
      }
      store_pack(to, v);
    }
  }
}

// ---- sums of the rows of each code

constexpr int chunk = 128;  ///< channels that a warp adds at a time: four per lane

/// sum[j] = sum of channel d0 + lane + 32 j over the rows of `code`, in double and in row order. Returns how many
/// rows there are.
__device__ __forceinline__ int64_t sum_rows(const float* x, int64_t rows, int64_t dim, int64_t d0, const int32_t* codes,
                                            int32_t code, double (&sum)[4]) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
#pragma unroll
  for (int j = 0; j < 4; ++j) sum[j] = 0;
  return for_rows_of_code(codes, rows, code, [&](int64_t row) {
    const float* from = x + row * dim + d0 + lane;
#pragma unroll
    for (int j = 0; j < 4; ++j)
      if (d0 + lane + 32 * j < dim) sum[j] += static_cast<double>(from[32 * j]);
  });
}

// ---- exponential moving averages

/// nonfinite = 1 if a valid row of the first stage is not finite.
__global__ void __launch_bounds__(threads)
    vq_finite_kernel(const float* x, int64_t rows, int64_t dim, RowMask mask, int32_t* nonfinite) {
  bool found = false;
  for (int64_t i = grid_thread(); i < rows * dim; i += grid_threads())
    // NaN and infinities have all bits of the exponent set.
    if ((__float_as_uint(x[i]) & 0x7f800000u) == 0x7f800000u && mask.valid(i / dim)) found = true;
  if (found) atomicOr(nonfinite, 1);
}

/// A warp per stage and code: it reads the codes of all rows and adds the rows that chose its code.
__global__ void __launch_bounds__(threads)
    vq_ema_kernel(VqEma a, int64_t rows, int64_t codes, int64_t dim, RowMask mask, const int32_t* by_stage,
                  const int32_t* nonfinite) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int64_t k = int64_t{blockIdx.x} * warps + threadIdx.x / 32, s = blockIdx.y;
  if (k >= codes || *nonfinite != 0) return;
  // A batch that is not finite, or has no valid row, changes nothing. Both conditions are the same for all lanes of a
  // warp, which the warp sums below need.
  const int64_t valid = mask.valid_rows();
  if (valid == 0) return;
  const float* x = a.x.data + s * rows * dim;
  float* code = a.codebooks.data + (s * codes + k) * dim;
  float* sums = a.sums.data + (s * codes + k) * dim;
  const float old = a.counts.data[s * codes + k], rest = 1 - a.decay;
  // All lanes have read the old count before lane 0 writes the new one.
  __syncwarp();
  for (int64_t d0 = 0; d0 < dim; d0 += chunk) {
    double sum[4];
    const int64_t n = sum_rows(x, rows, dim, d0, by_stage + s * rows, static_cast<int32_t>(k), sum);
    // Each product is rounded separately, as on the CPU, so that the same codes are dead on every device.
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

/// One block: the order in which rows start the codes, and the amplitude of the jitter.
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

/// Adds |x|^2 / 2, which half distances omit and which matters between rows.
__global__ void __launch_bounds__(threads)
    vq_kmeans_distance_kernel(const float* x, int64_t rows, int64_t dim, float* distances) {
  for (int64_t r = grid_thread(); r < rows; r += grid_threads()) {
    float energy = 0;
    for (int64_t d = 0; d < dim; ++d) energy = add_square(energy, x[r * dim + d]);
    distances[r] = __fadd_rn(distances[r], 0.5f * energy);
  }
}

/// A warp per code: its mean, and how many rows it has. `codebook` may be null.
__global__ void __launch_bounds__(threads)
    vq_kmeans_mean_kernel(const float* x, int64_t rows, int64_t dim, int64_t codes, const int32_t* chosen,
                          float* codebook, int32_t* counts, float* float_counts) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int64_t k = int64_t{blockIdx.x} * warps + threadIdx.x / 32;
  if (k >= codes) return;
  int64_t n = 0;
  // Only the count is asked for.
  if (codebook == nullptr) n = for_rows_of_code(chosen, rows, static_cast<int32_t>(k), [](int64_t) {});
  for (int64_t d0 = 0; codebook != nullptr && d0 < dim; d0 += chunk) {
    double sum[4];
    n = sum_rows(x, rows, dim, d0, chosen, static_cast<int32_t>(k), sum);
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const int64_t d = d0 + lane + 32 * j;
      if (d < dim && n > 0) codebook[k * dim + d] = static_cast<float>(sum[j]) / static_cast<float>(n);
    }
  }
  if (lane != 0) return;
  if (counts != nullptr) counts[k] = static_cast<int32_t>(n);
  if (float_counts != nullptr) float_counts[k] = static_cast<float>(n);
}

/// One block: each empty code in turn takes the row that is farthest from its centre, the lowest row among equals.
__global__ void __launch_bounds__(wide_threads)
    vq_kmeans_empty_kernel(VqKmeans a, int64_t rows, int64_t dim, int64_t codes, const int32_t* counts,
                           float* distances) {
  NACRE_SHARED(float, values, wide_threads / 32);
  NACRE_SHARED(int32_t, indices, wide_threads / 32);
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  for (int64_t k = 0; k < codes; ++k) {
    if (counts[k] > 0) continue;
    // Every thread starts with row 0, so that ties go to the lowest row whatever threads find.
    float farthest = distances[0];
    int32_t index = 0;
    for (int64_t r = threadIdx.x; r < rows; r += wide_threads)
      if (distances[r] > farthest) farthest = distances[r], index = static_cast<int32_t>(r);
    const auto update = [&](float v, int32_t i) {
      if (v > farthest || (v == farthest && i < index)) farthest = v, index = i;
    };
    for (int lanes = 16; lanes > 0; lanes /= 2) {
      const float v = __shfl_xor_sync(full_warp, farthest, lanes);
      const int32_t i = __shfl_xor_sync(full_warp, index, lanes);
      update(v, i);
    }
    // Reduction over the block: lanes by shuffles, warps through shared memory; each thread then reduces the 32
    // candidates itself.
    if (lane == 0) values[warp] = farthest, indices[warp] = index;
    __syncthreads();
    farthest = values[0], index = indices[0];
    for (int w = 1; w < wide_threads / 32; ++w) update(values[w], indices[w]);
    __syncthreads();
    // All threads have the same `farthest`, so all break together. The barrier above ends the reads of `values`; the
    // one at the end publishes the zero distance before the next search.
    if (!(farthest > 0)) break;
    if (threadIdx.x == 0) distances[index] = 0;
    for (int64_t d = threadIdx.x; d < dim; d += wide_threads) a.codebook.data[k * dim + d] = a.x.data[index * dim + d];
    __syncthreads();
  }
}

}  // namespace

Shape vq_nearest_scratch(Shape, Shape codebook) {
  return {.channels = scratch_slack + prepared_size(codebook.time, codebook.channels) +
                      products_size(codebook.time, codebook.channels)};
}

void vq_nearest(Context& ctx, const VqNearest& a) {
  const int64_t codes = a.codebook.shape.time, dim = a.x.shape.channels, rows = a.x.shape.rows();
  if (rows == 0) return;
  float* prepared = aligned_scratch(a.scratch.data);
  prepare_codebooks(ctx, a.codebook.data, 1, codes, dim, a.metric, prepared);
  nearest(ctx, a.x.data, rows, dim, prepared, codes, a.metric, a.method, prepared + prepared_size(codes, dim),
          a.codes.data, nullptr);
}

/// For tests: the codes found by tensor cores, -1 for rows that they leave to the sums. Half distances if not null.
void vq_nearest_products_alone(Context& ctx, const VqNearest& a, float* half_distances) {
  const int64_t codes = a.codebook.shape.time, dim = a.x.shape.channels;
  float* prepared = aligned_scratch(a.scratch.data);
  prepare_codebooks(ctx, a.codebook.data, 1, codes, dim, a.metric, prepared);
  nearest_by_products(ctx, a.x.data, a.x.shape.rows(), dim, prepared, codes, a.metric,
                      prepared + prepared_size(codes, dim), a.codes.data, half_distances);
}

void vq_gather(Context& ctx, const VqGather& a) {
  const int64_t rows = a.codes.shape.rows(), codes = a.codebook.shape.time, dim = a.codebook.shape.channels;
  constexpr int pack = pack_size<float>;
  if (dim % pack == 0 && aligned16(a.codebook.data) && aligned16(a.y.data))
    launch(ctx,
           {.name = "vq_gather_packs", .grid = blocks_for(rows * (dim / pack), threads, 1 << 16), .block = threads},
           vq_gather_kernel<pack>, a, rows, dim, codes);
  else
    launch(ctx, {.name = "vq_gather", .grid = blocks_for(rows * dim, threads, 1 << 16), .block = threads},
           vq_gather_kernel<1>, a, rows, dim, codes);
}

void vq_ema(Context& ctx, const VqEma& a) {
  const int64_t stages = a.codebooks.shape.batch, codes = a.codebooks.shape.time, dim = a.codebooks.shape.channels;
  const int64_t rows = a.x.shape.time;
  if (rows == 0) return;
  const RowMask mask{a.frames.data, nullptr, rows / a.batch, a.batch};
  // Scratch: one flag, then the codes by stage.
  int32_t* nonfinite = reinterpret_cast<int32_t*>(a.scratch.data);
  int32_t* by_stage = nonfinite + 1;
  runtime(ctx).zero(nonfinite, sizeof *nonfinite);
  launch(ctx, {.name = "vq_finite", .grid = blocks_for(rows * dim, threads * 8), .block = threads}, vq_finite_kernel,
         a.x.data, rows, dim, mask, nonfinite);
  transpose_codes(ctx, a.codes.data, rows, stages, codes, mask, by_stage);
  launch(ctx,
         {.name = "vq_ema", .grid = {blocks_for(codes, warps), static_cast<unsigned>(stages), 1}, .block = threads},
         vq_ema_kernel, a, rows, codes, dim, mask, by_stage, nonfinite);
}

Shape vq_kmeans_scratch(Shape x, Shape codebook) {
  return {.channels = scratch_slack + prepared_size(codebook.time, codebook.channels) +
                      products_size(codebook.time, codebook.channels) + 3 * x.rows() + codebook.time + 1};
}

void vq_kmeans(Context& ctx, const VqKmeans& a) {
  const int64_t rows = a.x.shape.rows(), dim = a.x.shape.channels, codes = a.codebook.shape.time;
  float* prepared = aligned_scratch(a.scratch.data);
  float* products = prepared + prepared_size(codes, dim);
  // Scratch: the prepared codebook, the work space of the products; then per row a distance, a code and a place in the
  // order; the amplitude of the noise; the number of rows of each code.
  float* distances = products + products_size(codes, dim);
  float* amplitude = distances + rows;
  int32_t* chosen = reinterpret_cast<int32_t*>(amplitude + 1);
  int32_t* order = chosen + rows;
  int32_t* counts = order + rows;
  // The same steps as on the CPU, without a copy to the host: the number of launches depends on the iterations alone.
  const auto assign = [&] {
    prepare_codebooks(ctx, a.codebook.data, 1, codes, dim, VqMetric::euclidean, prepared);
    nearest(ctx, a.x.data, rows, dim, prepared, codes, VqMetric::euclidean, VqMethod::by_shape, products, chosen,
            distances);
  };
  const auto means = [&](float* codebook, float* float_counts) {
    launch(ctx, {.name = "vq_kmeans_mean", .grid = blocks_for(codes, warps), .block = threads}, vq_kmeans_mean_kernel,
           a.x.data, rows, dim, codes, chosen, codebook, counts, float_counts);
  };
  launch(ctx, {.name = "vq_kmeans_draw", .block = wide_threads}, vq_kmeans_draw_kernel, a, rows, dim, codes, order,
         amplitude);
  launch(ctx, {.name = "vq_kmeans_start", .grid = blocks_for(codes * dim, threads), .block = threads},
         vq_kmeans_start_kernel, a, rows, dim, codes, order, amplitude);
  for (int i = 0; i < a.iterations; ++i) {
    assign();
    launch(ctx, {.name = "vq_kmeans_distance", .grid = blocks_for(rows, threads), .block = threads},
           vq_kmeans_distance_kernel, a.x.data, rows, dim, distances);
    means(a.codebook.data, nullptr);
    launch(ctx, {.name = "vq_kmeans_empty", .block = wide_threads}, vq_kmeans_empty_kernel, a, rows, dim, codes, counts,
           distances);
  }
  if (!a.counts) return;
  assign();
  means(nullptr, a.counts.data);
}

}  // namespace nacre::cuda
