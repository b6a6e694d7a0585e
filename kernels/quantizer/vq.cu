#include "nacre/ops/vq.h"

#include "quantizer/vq_products.cuh"

// vq_nearest and vq_gather on CUDA; vq.cpp is the same on the CPU. nacre/ops/vq.h gives the arithmetic, vq_search.cuh
// the layout of a prepared codebook. The search has four ways; nearest_codes() chooses one, and all find the same
// codes:
//
//   vq_nearest            a warp per row; any shape (read this one first)
//   vq_nearest_tile       16 rows of any length that fits into shared memory, by a block
//   vq_nearest_rows       many rows of 4, 8 or 16 channels: four rows per thread, in registers
//   vq_nearest_products   many rows and codes of up to 128 channels: by tensor cores, in vq_products.cu; then
//   vq_nearest_rest       the rows that these leave undecided, in vq_products_rest.cu
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

/// A block searches for 16 rows, whose channels must fit into shared memory: as tile_search() wants them,
/// [channel][row]. Each warp transposes two rows; the first barrier publishes the tile, the second one the candidates
/// of all warps. For 1M rows and 1024 codes of 128 channels: 268 GFLOP, and 62500 blocks read 0.5 MB of codes from L2
/// each; both take about 6 ms.
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
  // The codebook passes through shared memory in chunks [D][chunk], with the norms after them: 20, 36 and 34 KiB for
  // D = 4, 8 and 16. All threads read the same code, by broadcast. Thread t has rows t, t + 256, t + 512 and t + 768 of
  // the block; rows beyond the last one are zeros and not written. padded and chunk are multiples of 128, so a chunk is
  // whole packs.
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

/// vq_nearest_rows_kernel for rows of D channels; x must be aligned to 16 bytes.
template <int D>
void nearest_rows(Context& ctx, const float* x, int64_t rows, const float* prepared, int64_t codes, VqMetric metric,
                  int32_t* out, float* half_distances) {
  launch(ctx, {.name = "vq_nearest_rows", .grid = blocks_for(rows, 4 * threads), .block = threads},
         vq_nearest_rows_kernel<D>, x, rows, prepared, static_cast<int>(padded_codes(codes)), metric, out,
         half_distances);
}

/// Dynamic shared memory of vq_nearest_tile_kernel.
size_t tile_bytes(int64_t dim) { return static_cast<size_t>(tile_floats(dim)) * sizeof(float); }
bool tile_kernel_supports(const DeviceLimits& d, int64_t dim) {
  return dim <= max_tile_dim && tile_bytes(dim) + candidate_words * sizeof(uint32_t) <= d.shared_per_block;
}

constexpr int64_t many_rows = 32768;  ///< with fewer, blocks of 1024 rows leave multiprocessors idle
constexpr int64_t many_codes = 256;   ///< with fewer, reading the rows takes about as long as their sums

}  // namespace

/// All kernels do the same operations in the same order per row and code, so the choice does not change a bit.
void nearest_codes(Context& ctx, const float* x, int64_t rows, int64_t dim, const float* prepared, int64_t codes,
                   VqMetric metric, VqMethod method, float* products, int32_t* out, float* half_distances) {
  const bool use_products = method == VqMethod::by_shape && rows >= many_rows && codes >= many_codes;
  if (dim <= max_products_dim && (use_products || method == VqMethod::products)) {
    nearest_by_products(ctx, x, rows, dim, prepared, codes, metric, products, out, half_distances);
    return search_marked_rows(ctx, x, rows, dim, prepared, codes, metric, out, half_distances);
  }
  // Rows are read in packs, so their address must be aligned; the number of channels is a multiple of four.
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

namespace {

// ---- gather

/// y [row] = the codebook's row of the clamped code, or y += it with add_y. A thread per P channels of a row. Reads of
/// the codebook are coalesced within a row; bound by writing y.
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

}  // namespace

/// The prepared codebook, then the work space of the products. Both are multiples of 16 bytes.
Shape vq_nearest_scratch(Shape, Shape codebook) {
  return {.channels = scratch_slack + prepared_size(codebook.time, codebook.channels) +
                      products_size(codebook.time, codebook.channels)};
}

void vq_nearest(Context& ctx, const VqNearest& a) {
  const int64_t codes = a.codebook.shape.time, dim = a.x.shape.channels, rows = a.x.shape.rows();
  if (rows == 0) return;
  float* prepared = aligned_scratch(a.scratch.data);
  prepare_codebooks(ctx, a.codebook.data, 1, codes, dim, a.metric, prepared);
  nearest_codes(ctx, a.x.data, rows, dim, prepared, codes, a.metric, a.method, prepared + prepared_size(codes, dim),
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

}  // namespace nacre::cuda
