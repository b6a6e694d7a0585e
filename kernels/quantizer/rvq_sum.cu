// y = the sum over stages of W_out E[c] + b_out for codes of 8 channels: the end of rvq_forward with products, and
// rvq_decode. rvq_algebra.cuh declares it. The order of every sum is that of project_out() in rvq.cuh, then that of the
// stages, so y has the bits of the other kernels.
#include "quantizer/rvq_algebra.cuh"

namespace nacre::cuda {
namespace {

/// Four floats, in one access if `packed`: the address is then a multiple of 16 bytes.
template <bool packed>
__device__ __forceinline__ Pack<float> load_four(const float* p) {
  if constexpr (packed)
    return load_pack(p);
  else
    return load_some(p, 4);
}
constexpr int sum_rows = 16, sum_threads = 128, sum_channels = 2;  // channels: per thread

/// A block adds all stages of 16 rows and 256 channels; thread t has the channels t and t + 128 of them, and 32 sums in
/// registers. It loads the weights of its two channels once per stage and uses them for all rows. The chosen codes are
/// in shared memory, [stage][row][8], 512 bytes per stage; all threads read the same code at a time, by broadcast. They
/// are written before the only barrier and not changed after it. `masked`: rows use the first limits[row] stages. Rows
/// beyond the last one have zeros as codes, channels beyond the latent use the weights of the last one; neither is
/// written.
template <bool packed, bool masked>
__global__ void __launch_bounds__(sum_threads)
    rvq_sum_kernel(const int32_t* codes, const float* codebooks, RvqProjections p, RvqSizes n, RowMask mask, float* y) {
  NACRE_DYNAMIC_SHARED(float, chosen);
  NACRE_SHARED(int, limits, sum_rows);
  const int tid = static_cast<int>(threadIdx.x), stages = static_cast<int>(n.stages), all = stages * code_dim;
  const int64_t first = int64_t{blockIdx.x} * sum_rows;
  const int count = static_cast<int>(n.rows - first < sum_rows ? n.rows - first : sum_rows);
  for (int v = tid; v < sum_rows * all; v += sum_threads) {
    const int d = v % code_dim, row = v / code_dim % sum_rows, i = v / (code_dim * sum_rows);
    float value = 0;
    if (row < count)
      value = codebooks[(i * n.codes + clamp_code(codes[(first + row) * stages + i], n.codes)) * code_dim + d];
    chosen[v] = value;
  }
  if (masked && tid < sum_rows)
    limits[tid] = tid < count ? static_cast<int>(mask.stages_used(first + tid, n.stages)) : 0;
  __syncthreads();
  const int64_t channel = int64_t{blockIdx.y} * sum_threads * sum_channels + tid;
  // -0 + q is q for every q, also for -0, so the first stage needs no case of its own. A row without stages would keep
  // -0; it is written as 0 below.
  float sum[sum_channels][sum_rows];
#pragma unroll
  for (int j = 0; j < sum_channels; ++j)
#pragma unroll
    for (int row = 0; row < sum_rows; ++row) sum[j][row] = -0.0f;
#pragma unroll 1
  for (int i = 0; i < stages; ++i) {
    Pack<float> w[sum_channels][2];
    float bias[sum_channels];
#pragma unroll
    for (int j = 0; j < sum_channels; ++j) {
      const int64_t c = channel + j * sum_threads < n.latent ? channel + j * sum_threads : n.latent - 1;
      const float* from = p.out_weight.data + (i * n.latent + c) * code_dim;
      w[j][0] = load_four<packed>(from), w[j][1] = load_four<packed>(from + 4);
      bias[j] = p.out_bias.data[i * n.latent + c];
    }
#pragma unroll
    for (int row = 0; row < sum_rows; ++row) {
      float code[code_dim];
      load_8(chosen + (i * sum_rows + row) * code_dim, code);
#pragma unroll
      for (int j = 0; j < sum_channels; ++j) {
        float q = bias[j];
#pragma unroll
        for (int d = 0; d < code_dim; ++d) q = __fmaf_rn(code[d], w[j][d / 4].v[d % 4], q);
        if (!masked || i < limits[row]) sum[j][row] += q;
      }
    }
  }
#pragma unroll
  for (int j = 0; j < sum_channels; ++j) {
    const int64_t c = channel + j * sum_threads;
    if (c >= n.latent) continue;
#pragma unroll
    for (int row = 0; row < sum_rows; ++row)
      if (row < count) y[(first + row) * n.latent + c] = masked && limits[row] == 0 ? 0.0f : sum[j][row];
  }
}
/// Bytes of the chosen codes of a block.
size_t sum_bytes(int64_t stages) { return static_cast<size_t>(sum_rows * stages * code_dim) * sizeof(float); }

}  // namespace

bool sum_codes_supports(int64_t stages, int64_t dim) {
  return dim == code_dim && sum_bytes(stages) + sum_rows * sizeof(int) <= least_shared_per_block;
}
void sum_codes(Context& ctx, const int32_t* codes, const float* codebooks, const RvqProjections& p, const RvqSizes& n,
               const RowMask& mask, float* y) {
  const bool packed = aligned16(p.out_weight.data), masked = mask.stages != nullptr;
  launch(ctx,
         {.name = "rvq_sum",
          .grid = {blocks_for(n.rows, sum_rows), blocks_for(n.latent, sum_threads * sum_channels)},
          .block = sum_threads,
          .shared_bytes = sum_bytes(n.stages)},
         packed ? (masked ? rvq_sum_kernel<true, true> : rvq_sum_kernel<true, false>)
                : (masked ? rvq_sum_kernel<false, true> : rvq_sum_kernel<false, false>),
         codes, codebooks, p, n, mask, y);
}

}  // namespace nacre::cuda
