// rvq_forward for factorised codes of 8 channels: all stages of 9 or 18 rows in one block, two barriers per stage.
//
//   per warp: partial sums of e  |  per warp: e, search of a part    |  per warp: best of all candidates,
//   over its latent channels     |  of the codes, a candidate per    |  q of its latent channels, residual -= q,
//                             barrier  row                         barrier  y += q
//
// For 2376 rows, latent 1024, 9 stages of 1024 codes on an H200, 132 blocks read 96 KB of weights and codes each per
// stage: 114 MB from L2 in all, 20 us. The multiply-adds of the formula are 864 instructions per thread and stage. With
// a search of its own the kernel issued 2080 (SASS, sm_90a), 43 us in all; with that of rvq_search_kernel, which is
// shared, they are not counted.
#include "quantizer/rvq_factorised.cuh"

namespace nacre::cuda {
namespace {

/// Offsets in the shared memory of one group, in floats: residuals [9][L] and y [9][L] with L = 256 J (a warp only
/// accesses its own channels), sums of the warps [8][72], candidates [9][8] (two words each); then per warp e [72], and
/// the rows to compare [72], replaced by the chosen codes. J is the number of latent channels per thread. J = 4 takes
/// 79 KiB.
template <int J>
struct SharedLayout {
  static constexpr int y = group_rows * J * group_threads, sums = 2 * y, candidates = sums + group_warps * row_values,
                       warp_values = candidates + group_warps * group_rows * 2,
                       size = warp_values + group_warps * 2 * row_values;
};
template <int J>
inline constexpr size_t group_bytes = SharedLayout<J>::size * sizeof(float);
static_assert(group_bytes<4> <= least_shared_per_block);

/// Sums of e over the channels of the warp, to `sums`, which is [row][8]. Lane 8 p + q adds code channels 2 p and
/// 2 p + 1 over latent channels 4 q to 4 q + 3 of every 32 of the warp's 32 J channels. So the eight lanes of a p cover
/// these channels, and the four lanes of a q read the same 16 bytes of a residual. `residuals`: those of the group. The
/// warp barrier publishes what other lanes of the warp have subtracted from them.
template <int J>
__device__ __forceinline__ void sum_channels(const float* residuals, const float* in_weight, float* sums) {
  constexpr int L = J * group_threads;
  const int tid = static_cast<int>(threadIdx.x) % group_threads, lane = tid % 32, pair = lane / 8,
            channel = tid / 32 * 32 * J + lane % 8 * 4;
  Pack<float> w[J][2];
  const float* in = in_weight + (2 * pair * L + channel);
#pragma unroll
  for (int j = 0; j < J; ++j)
#pragma unroll
    for (int d = 0; d < 2; ++d) w[j][d] = load_pack(in + d * L + j * 32);
  __syncwarp();
#pragma unroll 2
  for (int row = 0; row < group_rows; ++row) {
    float v[2] = {};
#pragma unroll
    for (int j = 0; j < J; ++j) {
      const Pack<float> r = load_pack(residuals + row * L + channel + j * 32);
#pragma unroll
      for (int t = 0; t < 4; ++t)
#pragma unroll
        for (int d = 0; d < 2; ++d) v[d] = __fmaf_rn(r.v[t], w[j][d].v[t], v[d]);
    }
    // Eight lanes hold two sums: the first step gives each half of them one sum, the next two add within it. So value
    // 2 pair + second is in lanes whose number divided by 4 is that value.
    const bool second = (lane & 4) != 0;
    float sum = (second ? v[1] : v[0]) + __shfl_xor_sync(full_warp, second ? v[0] : v[1], 4);
    sum += __shfl_xor_sync(full_warp, sum, 2);
    sum += __shfl_xor_sync(full_warp, sum, 1);
    if (lane % 4 == 0) sums[row * code_dim + lane / 4] = sum;
  }
}

/// e of all rows, and x, what the metric compares. Every warp adds the warps' sums in the same order, so e has the same
/// bits in all warps, and each keeps its own copy. `quantised` receives e of the first `count` rows, if it is not null.
__device__ __forceinline__ void add_warps(const float* sums, float bias, VqMetric metric, float* e, float* x,
                                          float* quantised, int count) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
#pragma unroll
  for (int iteration = 0; iteration < value_iterations; ++iteration) {
    const int v = lane + iteration * 32;
    if (v >= row_values) continue;
    float sum = sums[v];
#pragma unroll
    for (int s = 1; s < group_warps; ++s) sum += sums[s * row_values + v];
    sum += bias;
    e[v] = sum;
    if (quantised != nullptr && v / code_dim < count) quantised[v] = sum;
  }
  __syncwarp();
  float scale = 1;
  if (metric == VqMetric::cosine && lane < group_rows) scale = inverse_norm(e + lane * code_dim, code_dim);
#pragma unroll
  for (int iteration = 0; iteration < value_iterations; ++iteration) {
    const int v = lane + iteration * 32;
    const float s = __shfl_sync(full_warp, scale, (v < row_values ? v : 0) / code_dim);
    if (v < row_values) x[v] = __fmul_rn(e[v], s);
  }
  __syncwarp();
}

/// The projection of a thread's channels back to the latent.
template <int J>
struct OutWeights {
  float w[J][code_dim], offset[J];
  __device__ __forceinline__ OutWeights(const float* weight, const float* bias) {
#pragma unroll
    for (int j = 0; j < J; ++j) {
      load_8(weight + j * 32 * code_dim, w[j]);
      offset[j] = bias[j * 32];
    }
  }
};
/// r -= q, and y = or += q of the rows whose `limit`, of lane `row`, is beyond the stage. The residual continues in
/// unused stages, y does not.
template <int J>
__device__ __forceinline__ void subtract_codes(const float* chosen, const OutWeights<J>& out, int stage, int limit,
                                               float* r, float* y) {
#pragma unroll 1
  for (int row = 0; row < group_rows; ++row) {
    const bool used = stage < __shfl_sync(full_warp, limit, row);
    float code[code_dim];
    load_8(chosen + row * code_dim, code);
#pragma unroll
    for (int j = 0; j < J; ++j) {
      const int element = row * J * group_threads + j * 32;
      const float q = project_out_8(code, out.w[j], out.offset[j]);
      r[element] -= q;
      if (stage == 0)
        y[element] = used ? q : 0.0f;
      else if (used)
        y[element] += q;
    }
  }
}

/// rvq_forward of a block's groups, nine rows each, through all stages; the steps are those of the top of this file.
///
/// The first barrier of a stage publishes the sums; it also ends all reads of the candidates of the stage before. The
/// second one publishes the candidates; it also ends all reads of the sums, which the next stage overwrites. Residuals
/// and y need none, because a warp alone reads and writes its channels of them. Rows beyond the last one are zeros.
/// They pass through all stages, because their group has to reach the barriers; their results are not written.
template <int J>
__global__ void __launch_bounds__(group_threads* max_groups, 1)
    rvq_factorised_kernel(RvqForward a, RvqSizes n, RowMask mask, const float* prepared, Weights weights,
                          float* losses) {
  NACRE_DYNAMIC_SHARED(float, shared);
  using P = SharedLayout<J>;
  constexpr int L = J * group_threads;
  const int tid = static_cast<int>(threadIdx.x) % group_threads, group = static_cast<int>(threadIdx.x) / group_threads;
  const int lane = tid % 32, warp = tid / 32, latent = static_cast<int>(n.latent), stages = static_cast<int>(n.stages);
  // A warp has 32 J adjacent channels, so that residuals are only read by lanes of the warp that wrote them.
  const int channel = warp * 32 * J + lane;
  float* group_shared = shared + group * P::size;
  // Each group works on rows of its own; the barriers are of the whole block, so all groups run the same number of
  // stages.
  float *r = group_shared + channel, *y = r + P::y, *sums = group_shared + P::sums;
  uint32_t* candidates = reinterpret_cast<uint32_t*>(group_shared + P::candidates);
  float* e = group_shared + P::warp_values + warp * 2 * row_values;
  float *x = e + row_values, *chosen = x;
  const int64_t first = (int64_t{blockIdx.x} * (blockDim.x / group_threads) + group) * group_rows;
  const int count = static_cast<int>(n.rows - first < group_rows ? (n.rows > first ? n.rows - first : 0) : group_rows);
  const int padded = static_cast<int>(padded_codes(n.codes));

  // Adjacent lanes have adjacent channels: coalesced, and free of bank conflicts.
  for (int row = 0; row < group_rows; ++row)
#pragma unroll
    for (int j = 0; j < J; ++j) {
      const int c = channel + j * 32;
      r[row * L + j * 32] = row < count && c < latent ? a.z.data[(first + row) * latent + c] : 0.0f;
    }
  // In every warp, lane `row` holds the limits and the loss of that row.
  int limit = stages;
  bool counted = false;
  float loss = 0;
  if (lane < count) {
    if (mask.stages != nullptr) limit = mask.stages[(first + lane) / mask.time];
    counted = mask.valid(first + lane);
  }
  // Outputs that every warp has are written by one warp each: 0 codes, 1 quantised, 2 losses.
#pragma unroll 1
  for (int i = 0; i < stages; ++i) {
    sum_channels<J>(group_shared, weights.in + int64_t{i} * code_dim * L, sums + warp * row_values);
    const float bias = weights.in_bias[i * code_dim + lane % code_dim];
    __syncthreads();
    float* const quantised = warp == 1 && a.quantised ? a.quantised.data + (i * n.rows + first) * code_dim : nullptr;
    add_warps(sums, bias, a.metric, e, x, quantised, count);
    search_rows(x, prepared + int64_t{i} * (code_dim + 1) * padded, padded, candidates);
    // Loaded before the barrier, used after it, so that their latency passes while the warp waits. The registers of the
    // codes are free by now.
    const OutWeights<J> out(weights.out + (i * L + channel) * code_dim, weights.out_bias + (i * L + channel));
    __syncthreads();
    const int32_t my_code = choose_codes(candidates, a.codebooks.data + i * n.codes * code_dim, chosen);
    if (warp == 0 && lane < count) a.codes.data[(first + lane) * stages + i] = my_code;
    __syncwarp();
    if (warp == 2 && counted && i < limit) loss += squared_distance(e + lane * code_dim, chosen + lane * code_dim);
    subtract_codes<J>(chosen, out, i, limit, r, y);
  }
  if (warp == 2 && losses != nullptr && lane < count) losses[first + lane] = loss;
  for (int row = 0; row < count; ++row)
#pragma unroll
    for (int j = 0; j < J; ++j) {
      const int c = channel + j * 32;
      if (c < latent) a.y.data[(first + row) * latent + c] = y[row * L + j * 32];
    }
}

/// One launch for J channels per thread.
template <int J>
void forward(Context& ctx, const RvqForward& a, const RvqSizes& n, const RowMask& mask, const float* prepared,
             const Weights& weights, float* losses) {
  const int groups = groups_for(limits(ctx), n.rows, group_bytes<J>);
  launch(ctx,
         {.name = "rvq_forward_factorised",
          .grid = blocks_for(n.rows, groups * group_rows),
          .block = static_cast<unsigned>(groups * group_threads),
          .shared_bytes = groups * group_bytes<J>},
         rvq_factorised_kernel<J>, a, n, mask, prepared, weights, losses);
}

}  // namespace

/// A thread per element of the padded weights: [stages][8][L], [stages][L][8], [stages][L]. The bias of e has no latent
/// channel and is not padded.
__global__ void __launch_bounds__(256) rvq_pad_kernel(RvqProjections p, int stages, int latent, int L, float* to) {
  const int64_t matrix = int64_t{stages} * code_dim * L;
  for (int64_t i = grid_thread(); i < matrix; i += grid_threads()) {
    const int in_channel = static_cast<int>(i % L), out_channel = static_cast<int>(i / code_dim % L);
    const int64_t in_row = i / L, stage = i / (int64_t{code_dim} * L);
    to[i] = in_channel < latent ? p.in_weight.data[in_row * latent + in_channel] : 0.0f;
    to[matrix + i] =
        out_channel < latent ? p.out_weight.data[(stage * latent + out_channel) * code_dim + i % code_dim] : 0.0f;
    if (i % code_dim == 0)
      to[2 * matrix + i / code_dim] = out_channel < latent ? p.out_bias.data[stage * latent + out_channel] : 0.0f;
  }
}

/// The kernels use L as their stride and load packs without a check, so the copy is needed for any other latent or
/// address.
Weights pad_weights(Context& ctx, const RvqProjections& p, const RvqSizes& n, float* to) {
  const int64_t L = group_latent(n.latent), matrix = n.stages * code_dim * L;
  if (n.latent == L && aligned16(p.in_weight.data) && aligned16(p.out_weight.data))
    return {p.in_weight.data, p.in_bias.data, p.out_weight.data, p.out_bias.data};
  launch(ctx, {.name = "rvq_pad", .grid = blocks_for(matrix, 256), .block = 256}, rvq_pad_kernel, p,
         static_cast<int>(n.stages), static_cast<int>(n.latent), static_cast<int>(L), to);
  return {to, p.in_bias.data, to + matrix, to + 2 * matrix};
}

void rvq_forward_factorised(Context& ctx, const RvqForward& a, const RvqSizes& n, const RowMask& mask,
                            const float* prepared, float* padded_weights, float* losses) {
  const Weights weights = pad_weights(ctx, a.projections, n, padded_weights);
  // Channels per thread: 1, 2 or 4.
  switch (group_latent(n.latent) / group_threads) {
    case 1:
      return forward<1>(ctx, a, n, mask, prepared, weights, losses);
    case 2:
      return forward<2>(ctx, a, n, mask, prepared, weights, losses);
    default:
      return forward<4>(ctx, a, n, mask, prepared, weights, losses);
  }
}

}  // namespace nacre::cuda
