#include "quantizer/vq_search.cuh"

// What all searches on CUDA share: prepare_codebooks() and transpose_codes(), declared in vq_search.cuh.
namespace nacre::cuda {
namespace {

constexpr int threads = 256;
constexpr int edge = 32;  ///< codes and channels of a tile

/// prepared = the codebook as [dim][padded codes], scaled for the metric, then half norms. One block per stage and 32
/// codes: tiles of 32 channels are transposed in shared memory, and one warp, one code per lane, adds the squares in
/// channel order for the norms. Cosine needs the norm before the first code is written, so it takes two passes: pass 0
/// finds the scales, pass 1 writes codes and half norms. Bytes: the codebooks once (cosine: twice, the second time from
/// cache), the prepared ones once.
__global__ void __launch_bounds__(threads)
    vq_prepare_kernel(const float* codebooks, int64_t codes, int64_t dim, bool cosine, float* prepared) {
  NACRE_SHARED(float, tile, edge*(edge + 1));
  NACRE_SHARED(float, scales, edge);
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const int64_t padded = padded_codes(codes), first = int64_t{blockIdx.x} * edge;
  const float* codebook = codebooks + int64_t{blockIdx.y} * codes * dim;
  float* out = prepared + int64_t{blockIdx.y} * prepared_size(codes, dim);
#pragma unroll 1
  for (int pass = cosine ? 0 : 1; pass < 2; ++pass) {
    float sum = 0;
#pragma unroll 1
    for (int64_t d0 = 0; d0 < dim; d0 += edge) {
      // A warp reads 32 adjacent channels of one code. The pitch of 33 then lets it read one channel of 32 codes
      // without bank conflicts. The first barrier publishes the tile; the second keeps the next tile from overwriting
      // it.
      for (int t = warp; t < edge; t += threads / 32) {
        const bool in_range = first + t < codes && d0 + lane < dim;
        float v = in_range ? codebook[(first + t) * dim + d0 + lane] : 0.0f;
        if (cosine && pass == 1) v = __fmul_rn(v, scales[t]);
        tile[t * (edge + 1) + lane] = v;
      }
      __syncthreads();
      const int width = static_cast<int>(dim - d0 < edge ? dim - d0 : edge);
      // The sum of a code is sequential by definition, so one warp suffices. The others write the tile meanwhile.
      if (warp == 0)
        for (int d = 0; d < width; ++d) {
          const float v = tile[lane * (edge + 1) + d];
          sum = pass == 0 ? add_square(sum, v) : __fmaf_rn(v, v, sum);
        }
      if (pass == 1)
        for (int d = warp; d < width; d += threads / 32)
          out[(d0 + d) * padded + first + lane] = tile[lane * (edge + 1) + d];
      __syncthreads();
    }
    if (warp == 0) {
      if (pass == 0)
        scales[lane] = inverse_norm_of_square(sum);
      else
        out[padded * dim + first + lane] = first + lane < codes ? 0.5f * sum : no_code().h;
    }
    __syncthreads();
  }
}

/// A thread per code: reads are coalesced, writes are `rows` apart where stages differ.
__global__ void __launch_bounds__(threads) vq_codes_kernel(const int32_t* codes, int64_t rows, int64_t stages,
                                                           int64_t code_count, RowMask mask, int32_t* by_stage) {
  for (int64_t i = grid_thread(); i < rows * stages; i += grid_threads())
    transpose_code(codes, i, rows, stages, code_count, mask, by_stage);
}

}  // namespace

void prepare_codebooks(Context& ctx, const float* codebooks, int64_t stages, int64_t codes, int64_t dim,
                       VqMetric metric, float* prepared) {
  launch(ctx,
         {.name = "vq_prepare",
          .grid = {static_cast<unsigned>(padded_codes(codes) / edge), static_cast<unsigned>(stages), 1},
          .block = threads},
         vq_prepare_kernel, codebooks, codes, dim, metric == VqMetric::cosine, prepared);
}

void transpose_codes(Context& ctx, const int32_t* codes, int64_t rows, int64_t stages, int64_t code_count, RowMask mask,
                     int32_t* by_stage) {
  launch(ctx, {.name = "vq_codes", .grid = blocks_for(rows * stages, threads, 4096), .block = threads}, vq_codes_kernel,
         codes, rows, stages, code_count, mask, by_stage);
}

}  // namespace nacre::cuda
