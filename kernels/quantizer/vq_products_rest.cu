// The rows that the search by tensor cores leaves (vq_products.cu): too many near codes, or no error bound.
#include "quantizer/vq_products.cuh"

namespace nacre::cuda {
namespace {

constexpr int marked_span = 4 * tile_threads;  ///< rows in which a block looks for marked ones

/// Searches for marked rows, sixteen at a time, as vq_nearest_tile_kernel. A block looks at the codes of 1024 rows; if
/// none is marked, it only reads these codes.
///
/// Shared memory: a tile of rows [channel][row], the candidates of the warps, the marked rows as offsets from the
/// block's first row in ascending order, and the number of marked rows of each warp in each of the four turns.
__global__ void __launch_bounds__(tile_threads, 2)
    vq_nearest_rest_kernel(const float* x, int64_t rows, int dim, const float* prepared, int padded, VqMetric metric,
                           int32_t* out, float* half_distances) {
  NACRE_DYNAMIC_SHARED(float, tile);
  NACRE_SHARED(uint32_t, candidates, candidate_words);
  NACRE_SHARED(int32_t, marked_rows, marked_span);
  NACRE_SHARED(int32_t, counts, 4 * tile_warps);
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const int64_t first = int64_t{blockIdx.x} * marked_span;
  // Marked rows are compacted in row order: a ballot gives each warp its count, then every thread adds the counts
  // before its own.
  uint32_t marked[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int64_t row = first + i * tile_threads + threadIdx.x;
    marked[i] = __ballot_sync(full_warp, row < rows && out[row] < 0);
    if (lane == 0) counts[i * tile_warps + warp] = __popc(marked[i]);
  }
  __syncthreads();
  // offset: marked rows in turns and warps before this one. The order is turn, warp, lane, which is that of the rows.
  int offset = 0, total = 0;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
#pragma unroll 1
    for (int w = 0; w < tile_warps; ++w) {
      if (w == warp) offset = total;
      total += counts[i * tile_warps + w];
    }
    if ((marked[i] >> lane & 1u) != 0)
      marked_rows[offset + __popc(marked[i] & ((1u << lane) - 1))] = i * tile_threads + static_cast<int>(threadIdx.x);
  }
  __syncthreads();
  // `total` is the same for all threads, so all reach the barriers. The barrier that publishes a tile also separates
  // the readers of `candidates` from the next search.
#pragma unroll 1
  for (int begin = 0; begin < total; begin += tile_rows) {
    for (int i = 0; i < 2; ++i) {
      const int r = warp * 2 + i;
      const bool exists = begin + r < total;
      tile_row(x + (first + (exists ? marked_rows[begin + r] : 0)) * dim, exists, dim, metric, tile, r);
    }
    __syncthreads();
    tile_search(tile, dim, prepared, padded, candidates);
    __syncthreads();
    const OrderedBest best = tile_results(candidates);
    const int r = begin + warp * 2 + lane / 8;
    if (lane % 8 == 0 && lane < 16 && r < total) {
      const int64_t row = first + marked_rows[r];
      out[row] = static_cast<int32_t>(best.k);
      if (half_distances != nullptr) half_distances[row] = half_distance(best);
    }
  }
}

}  // namespace

void search_marked_rows(Context& ctx, const float* x, int64_t rows, int64_t dim, const float* prepared, int64_t codes,
                        VqMetric metric, int32_t* out, float* half_distances) {
  constexpr int static_words = candidate_words + marked_span + 4 * tile_warps;
  static_assert((tile_floats(max_products_dim) + static_words) * sizeof(float) <= least_shared_per_block);
  launch(ctx,
         {.name = "vq_nearest_rest",
          .grid = blocks_for(rows, marked_span),
          .block = tile_threads,
          .shared_bytes = static_cast<size_t>(tile_floats(dim)) * sizeof(float)},
         vq_nearest_rest_kernel, x, rows, static_cast<int>(dim), prepared, static_cast<int>(padded_codes(codes)),
         metric, out, half_distances);
}

}  // namespace nacre::cuda
