// rvq_forward with products of the projections: all stages in numbers of stages x dim.
//
//   rvq_project    e of all stages from z, as if no code had been subtracted: a product of z, which is read once per
//                  four stages
//   rvq_search     per stage: search, then the code's share of the later stages is subtracted
//   rvq_sum        y, if it is wanted: a product of the chosen codes
//
// For 2376 rows, latent 1024, 9 stages of 1024 codes on an H200, a warp issues 416, 997 and 437 instructions per 9 rows
// and stage (SASS, sm_90a): 38 us, or 29 us for codes alone, where rvq_factorised.cu takes 43 us. Not measured.
#include "quantizer/rvq_algebra.cuh"

namespace nacre::cuda {
namespace {

constexpr int threads = 256, warps = threads / 32;

constexpr int usual_latent = 1024;  ///< DAC's
constexpr int project_groups = 2, project_stages = warps / project_groups;

/// Two floats, in one access if `packed`; else the second one is 0 if it is beyond the row (`both` is false).
template <bool packed>
__device__ __forceinline__ float2 load_two(const float* p, bool both) {
  if constexpr (packed) return *reinterpret_cast<const float2*>(p);
  return {p[0], both ? p[1] : 0.0f};
}

/// e of all stages from z alone: projected [rows][stages 8] = W_in z + s. A warp computes e of 9 rows and one stage: 72
/// sums per lane over every 32nd pair of channels, then over the lanes. Pairs, because sixteen weights and the rows in
/// flight leave room for 72 sums in 128 registers. A block has 2 groups of rows and 4 stages, so that its loads of z
/// and of weights are shared in the first-level cache. `packed`: rows and weights are aligned and the latent is even.
/// L: the latent, if it is the usual one, there are at least 9 rows, and `packed`; else 0. With L, the offsets of
/// addresses are constants. The sums are the same.
template <int L, bool packed>
__global__ void __launch_bounds__(threads, 2)
    rvq_project_kernel(View<const float> z, const float* in_weight, const float* start, RvqSizes n, float* projected) {
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const int latent = L > 0 ? L : static_cast<int>(n.latent);
  const int64_t stage = int64_t{blockIdx.y} * project_stages + warp % project_stages;
  const int64_t wanted = (int64_t{blockIdx.x} * project_groups + warp / project_stages) * group_rows;
  if (stage >= n.stages || wanted >= n.rows) return;
  // The last group computes rows that another one writes (L > 0), or its last row several times.
  const int64_t first = L > 0 && wanted > n.rows - group_rows ? n.rows - group_rows : wanted;
  const int last = static_cast<int>(n.rows - first < group_rows ? n.rows - first : group_rows) - 1;
  const float *rows = z.data + first * latent, *weights = in_weight + stage * code_dim * latent;
  float sum[group_rows][code_dim] = {};
#pragma unroll 1
  for (int c = lane * 2; c < latent; c += 64) {
    const bool both = c + 1 < latent;
    // One pointer and constant offsets, or, for want of registers, offsets that include c.
    const float *x_at = rows + (L > 0 ? c : 0), *w_at = weights + (L > 0 ? c : 0);
    const int start_at = L > 0 ? 0 : c;
    float2 w[code_dim];
#pragma unroll
    for (int d = 0; d < code_dim; ++d) w[d] = load_two<packed>(w_at + d * latent + start_at, both);
#pragma unroll
    for (int row = 0, at = start_at; row < group_rows; ++row) {
      const float2 x = load_two<packed>(x_at + at, both);
      at += L > 0 || row < last ? latent : 0;
#pragma unroll
      for (int d = 0; d < code_dim; ++d) sum[row][d] = __fmaf_rn(x.y, w[d].y, __fmaf_rn(x.x, w[d].x, sum[row][d]));
    }
  }
  const int64_t column = stage * code_dim + lane / 4;
#pragma unroll
  for (int row = 0; row < group_rows; ++row) {
    const float total = warp_sum_8(sum[row]);
    if (lane % 4 == 0 && row <= last && first + row >= wanted)
      projected[(first + row) * n.stages * code_dim + column] = total + start[column];
  }
}

/// A group of 256 threads takes 9 rows through all stages, with two barriers per stage. e of all stages is in shared
/// memory, [row][stages 8]. Every warp has its own copies of what is compared and of the chosen codes, which saves
/// barriers. The barriers are of the whole block, so that its groups read the same codes at the same time.
///
/// The first barrier of a stage publishes what the threads have subtracted from e, and ends the reads of the candidates
/// of the stage before; the second one publishes the candidates. After the second one, a warp may read e of this stage
/// (for the loss) while others write e of later stages; these are other columns.
__global__ void __launch_bounds__(group_threads* max_groups, 1)
    rvq_search_kernel(RvqForward a, RvqSizes n, RowMask mask, const float* prepared, const float* projected,
                      float* losses) {
  NACRE_DYNAMIC_SHARED(float, shared);
  NACRE_SHARED(uint32_t, all_candidates, max_groups * group_warps * group_rows * 2);
  NACRE_SHARED(float, warp_values, max_groups* group_warps * 2 * row_values);
  const int tid = static_cast<int>(threadIdx.x) % group_threads, group = static_cast<int>(threadIdx.x) / group_threads;
  const int lane = tid % 32, warp = tid / 32, stages = static_cast<int>(n.stages), all = stages * code_dim;
  const int padded = static_cast<int>(padded_codes(n.codes));
  const int64_t first = (int64_t{blockIdx.x} * (blockDim.x / group_threads) + group) * group_rows,
                stride = a.projections.products.shape.channels;
  const int count = static_cast<int>(n.rows - first < group_rows ? (n.rows > first ? n.rows - first : 0) : group_rows);
  float *e = shared + group * group_rows * all, *x = warp_values + (group * group_warps + warp) * 2 * row_values,
        *chosen = x + row_values;
  uint32_t* candidates = all_candidates + group * group_warps * group_rows * 2;
  for (int v = tid; v < group_rows * all; v += group_threads)
    e[v] = v < count * all ? projected[first * all + v] : 0.0f;
  // In every warp, lane `row` holds the limits and the loss of that row.
  int limit = stages;
  bool counted = false;
  float loss = 0;
  if (lane < count) {
    if (mask.stages != nullptr) limit = mask.stages[(first + lane) / mask.time];
    counted = mask.valid(first + lane);
  }
#pragma unroll 1
  for (int i = 0; i < stages; ++i) {
    __syncthreads();  // e has all codes before this stage
    float scale = 1;
    if (a.metric == VqMetric::cosine && lane < group_rows)
      scale = inverse_norm(e + lane * all + i * code_dim, code_dim);
#pragma unroll
    for (int iteration = 0; iteration < value_iterations; ++iteration) {
      const int v = lane + iteration * 32, row = (v < row_values ? v : 0) / code_dim;
      const float s = __shfl_sync(full_warp, scale, row), value = e[row * all + i * code_dim + v % code_dim];
      if (v >= row_values) continue;
      x[v] = __fmul_rn(value, s);
      if (warp == 1 && a.quantised && row < count) a.quantised.data[(i * n.rows + first) * code_dim + v] = value;
    }
    __syncwarp();
    search_rows(x, prepared + int64_t{i} * (code_dim + 1) * padded, padded, candidates);
    __syncthreads();
    const int32_t my_code = choose_codes(candidates, a.codebooks.data + i * n.codes * code_dim, chosen);
    if (warp == 0 && lane < count) a.codes.data[(first + lane) * stages + i] = my_code;
    __syncwarp();
    if (warp == 2 && counted && i < limit)
      loss += squared_distance(e + lane * all + i * code_dim, chosen + lane * code_dim);
    // The code's share of the later stages: 64 of their columns at once; a thread has every fourth row of its column.
#pragma unroll 1
    for (int later = (i + 1) * code_dim + tid % 64; later < all; later += 64) {
      float p[code_dim];
#pragma unroll
      for (int d = 0; d < code_dim; ++d) p[d] = a.projections.products.data[(1 + i * code_dim + d) * stride + later];
#pragma unroll
      for (int j = 0; j < 3; ++j) {
        const int row = tid / 64 + 4 * j;
        if (row >= group_rows) continue;
        float code[code_dim], v = e[row * all + later];
        load_8(chosen + row * code_dim, code);
#pragma unroll
        for (int d = 0; d < code_dim; ++d) v = __fmaf_rn(-code[d], p[d], v);
        e[row * all + later] = v;
      }
    }
  }
  if (warp == 2 && losses != nullptr && lane < count) losses[first + lane] = loss;
}
/// Bytes of dynamic shared memory of a group: e of all stages. Below, the bytes of static shared memory of a block:
/// candidates, values to compare and chosen codes.
size_t search_bytes(int64_t stages) { return static_cast<size_t>(group_rows * stages * code_dim) * sizeof(float); }
constexpr size_t search_static_bytes = max_groups * group_warps * (group_rows + row_values) * 8;

}  // namespace

void rvq_forward_products(Context& ctx, const RvqForward& a, const RvqSizes& n, const RowMask& mask,
                          const float* prepared, float* projected, float* losses) {
  // By the shape alone: the codes of a row must not depend on other rows.
  if (!sum_codes_supports(n.stages, n.dim) ||
      max_groups * search_bytes(n.stages) + search_static_bytes > least_shared_per_block) {
    rvq_forward_small(ctx, a, n, mask, prepared, projected, losses);
    return;
  }
  const bool packed = n.latent % 2 == 0 && aligned16(a.z.data) && aligned16(a.projections.in_weight.data);
  launch(ctx,
         {.name = "rvq_project",
          .grid = {blocks_for(n.rows, project_groups * group_rows), blocks_for(n.stages, project_stages)},
          .block = threads},
         packed && n.latent == usual_latent && n.rows >= group_rows ? rvq_project_kernel<usual_latent, true>
         : packed                                                   ? rvq_project_kernel<0, true>
                                                                    : rvq_project_kernel<0, false>,
         a.z, a.projections.in_weight.data, a.projections.products.data, n, projected);
  // Two groups per block only if blocks of one group would outnumber the multiprocessors.
  const int groups = n.rows > int64_t{group_rows} * limits(ctx).multiprocessors ? max_groups : 1;
  launch(ctx,
         {.name = "rvq_search",
          .grid = blocks_for(n.rows, groups * group_rows),
          .block = static_cast<unsigned>(groups * group_threads),
          .shared_bytes = groups * search_bytes(n.stages)},
         rvq_search_kernel, a, n, mask, prepared, projected, losses);
  if (a.y) sum_codes(ctx, a.codes.data, a.codebooks.data, a.projections, n, mask, a.y.data);
}

}  // namespace nacre::cuda
