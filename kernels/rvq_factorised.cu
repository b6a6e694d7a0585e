// rvq_forward for factorised codes of 8 channels: all stages of 6, 12 or 18 rows in one block, two barriers a stage.
// For 2376 rows, latent 1024, 9 stages of 1024 codes: 132 blocks, each reads 96 KB of weights and codes a stage (114 MB
// of L2 reads in all, 20 us), and issues about 950 instructions per thread and stage: 3.3 us a stage, 30 us in all,
// with the waits for L2 and barriers about 40.
#include "rvq_factorised.cuh"

namespace nacre::cuda {
namespace {

constexpr int code_turn = group_threads * 4;  ///< codes that a group scores at once

/// Shared memory of one group, in floats: y, sums of the warps, candidates (two words each), and per warp e, the rows
/// to compare, and the chosen codes.
struct Place {
  int y, sums, candidates, own, size;
};
__host__ __device__ inline Place place_of(int64_t latent) {
  Place p;
  p.y = 0;
  p.sums = group_rows * static_cast<int>(ceil_div(latent, int64_t{4}) * 4);
  p.candidates = p.sums + group_warps * row_values;
  p.own = p.candidates + group_warps * group_rows * 2;
  p.size = p.own + group_warps * 3 * row_values;
  return p;
}

template <int J>
__global__ void __launch_bounds__(group_threads* max_groups, 1)
    rvq_factorised_kernel(RvqForward a, RvqSizes n, RowMask mask, const float* prepared, bool aligned, float* losses) {
  NACRE_DYNAMIC_SHARED(float, shared);
  const Place place = place_of(n.latent);
  const int tid = static_cast<int>(threadIdx.x) % group_threads, group = static_cast<int>(threadIdx.x) / group_threads;
  const int lane = tid % 32, warp = tid / 32, latent = static_cast<int>(n.latent);
  float* mine = shared + group * place.size;
  float *y = mine + place.y, *sums = mine + place.sums;
  uint32_t* candidates = reinterpret_cast<uint32_t*>(mine + place.candidates);
  float* e = mine + place.own + warp * 3 * row_values;
  float *x = e + row_values, *chosen = x + row_values;
  const int64_t first = (int64_t{blockIdx.x} * (blockDim.x / group_threads) + group) * group_rows;
  const int count = static_cast<int>(n.rows - first < group_rows ? (n.rows > first ? n.rows - first : 0) : group_rows);
  const int64_t padded = padded_codes(n.codes), book = prepared_size(n.codes, code_dim);

  float r[group_rows][J];
#pragma unroll
  for (int row = 0; row < group_rows; ++row)
#pragma unroll
    for (int j = 0; j < J; ++j) {
      const int c = tid + j * group_threads;
      r[row][j] = row < count && c < latent ? a.z.data[(first + row) * latent + c] : 0.0f;
    }
  // Lane `row` of every warp knows its row's item.
  const int my_row = lane < count ? lane : 0;
  int limit = static_cast<int>(n.stages);
  float counted = 0, loss = 0;
  if (count > 0) {
    if (mask.stages != nullptr) limit = mask.stages[(first + my_row) / mask.time];
    counted = mask.valid(first + my_row) ? 1.0f : 0.0f;
  }

  for (int i = 0; i < static_cast<int>(n.stages); ++i) {
    {  // sums over the latent of e
      float w[J][code_dim];
      const float* weight = a.projections.in_weight.data + int64_t{i} * code_dim * latent;
#pragma unroll
      for (int j = 0; j < J; ++j)
#pragma unroll
        for (int d = 0; d < code_dim; ++d) {
          const int c = tid + j * group_threads;
          w[j][d] = c < latent ? weight[d * latent + c] : 0.0f;
        }
#pragma unroll
      for (int row = 0; row < group_rows; ++row) {
        float v[code_dim];
#pragma unroll
        for (int d = 0; d < code_dim; ++d) {
          v[d] = r[row][0] * w[0][d];
#pragma unroll
          for (int j = 1; j < J; ++j) v[d] = __fmaf_rn(r[row][j], w[j][d], v[d]);
        }
        const float sum = warp_sum_8(v);
        if (lane % 4 == 0) sums[warp * row_values + row * code_dim + lane / 4] = sum;
      }
    }
    float codes[code_dim][4], norms[4];
    const float* stage = prepared + i * book;
    const auto load_codes = [&](int64_t k) {
#pragma unroll
      for (int d = 0; d <= code_dim; ++d) {
        const Pack<float> v = load_pack(stage + d * padded + k);
#pragma unroll
        for (int t = 0; t < 4; ++t) (d < code_dim ? codes[d < code_dim ? d : 0][t] : norms[t]) = v.v[t];
      }
    };
    if (tid * 4 < padded) load_codes(tid * 4);  // on their way while the group meets
    __syncthreads();
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int v = lane + half * 32;
      if (v >= row_values) continue;
      float sum = sums[v];
#pragma unroll
      for (int s = 1; s < group_warps; ++s) sum += sums[s * row_values + v];
      sum += a.projections.in_bias.data[i * code_dim + v % code_dim];
      e[v] = sum;
      if (warp == 1 && a.quantised && v / code_dim < count)
        a.quantised.data[(i * n.rows + first + v / code_dim) * code_dim + v % code_dim] = sum;
    }
    __syncwarp();
    const float scale = a.metric == VqMetric::cosine && lane < group_rows ? inverse_norm(e + lane * code_dim, code_dim) : 1.0f;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int v = lane + half * 32;
      const float s = __shfl_sync(full_warp, scale, (v < row_values ? v : 0) / code_dim);
      if (v < row_values) x[v] = __fmul_rn(e[v], s);
    }
    __syncwarp();
    for (int64_t turn = 0; turn == 0 || turn < padded; turn += code_turn) {
      const int64_t k = turn + tid * 4;
      if (turn > 0 && k < padded) load_codes(k);
#pragma unroll 2
      for (int row = 0; row < group_rows; ++row) {
        Best best = no_code();
        if (k < padded) {
          float v[code_dim], h[4];
          load_8(x + row * code_dim, true, v);
#pragma unroll
          for (int t = 0; t < 4; ++t) {
            h[t] = norms[t];
#pragma unroll
            for (int d = 0; d < code_dim; ++d) h[t] = __fmaf_rn(-v[d], codes[d][t], h[t]);
            if (h[t] < best.h) best.h = h[t], best.k = static_cast<int32_t>(k) + t;
          }
        }
        const OrderedBest warps_best = warp_ordered_best(best);
        uint32_t* slot = candidates + (row * group_warps + warp) * 2;
        // Codes of a later turn have higher indices: they must be nearer.
        if (lane == 0 && (turn == 0 || warps_best.h < slot[0])) slot[0] = warps_best.h, slot[1] = warps_best.k;
      }
    }
    float w[J][code_dim], bias[J];
#pragma unroll
    for (int j = 0; j < J; ++j) {
      const int c = tid + j * group_threads;
      bias[j] = 0;
#pragma unroll
      for (int d = 0; d < code_dim; ++d) w[j][d] = 0;
      if (c < latent) {
        load_8(a.projections.out_weight.data + (int64_t{i} * latent + c) * code_dim, aligned, w[j]);
        bias[j] = a.projections.out_bias.data[i * latent + c];
      }
    }
    __syncthreads();
    // Eight lanes per row look through the warps' candidates, four rows at once.
    int32_t my_code = 0;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int v = lane + half * 32, slot = v < row_values ? v : 0;
      OrderedBest best{candidates[2 * slot], candidates[2 * slot + 1]};
#pragma unroll
      for (int lanes = 4; lanes > 0; lanes /= 2) {
        const uint32_t h = __shfl_xor_sync(full_warp, best.h, lanes), k = __shfl_xor_sync(full_warp, best.k, lanes);
        if (h < best.h || (h == best.h && k < best.k)) best.h = h, best.k = k;
      }
      const int from = lane - half * 4;  // the row that lane wants, of these four
      const uint32_t k = __shfl_sync(full_warp, best.k, from >= 0 && from < 4 ? from * 8 : 0);
      if (from >= 0 && from < 4) my_code = static_cast<int32_t>(k);
      if (v < row_values)
        chosen[v] = a.codebooks.data[(i * n.codes + static_cast<int32_t>(best.k)) * code_dim + v % code_dim];
    }
    if (warp == 0 && lane < count) a.codes.data[(first + lane) * n.stages + i] = my_code;
    __syncwarp();
    if (warp == 2 && losses != nullptr && lane < count && i < limit) {
      float distance = 0;
#pragma unroll
      for (int d = 0; d < code_dim; ++d) {
        const float difference = e[lane * code_dim + d] - chosen[lane * code_dim + d];
        distance = __fmaf_rn(difference, difference, distance);
      }
      if (counted != 0) loss += distance;
    }
#pragma unroll
    for (int row = 0; row < group_rows; ++row) {
      const bool used = i < __shfl_sync(full_warp, limit, row);
      float code[code_dim];
      load_8(chosen + row * code_dim, true, code);
#pragma unroll
      for (int j = 0; j < J; ++j) {
        const int c = tid + j * group_threads;
        const float q = project_out_8(code, w[j], bias[j]);
        r[row][j] -= q;
        if (c < latent) {
          float* to = y + row * latent + c;
          if (i == 0)
            *to = used ? q : 0.0f;
          else if (used)
            *to += q;
        }
      }
    }
  }
  if (warp == 2 && losses != nullptr && lane < count) losses[first + lane] = loss;
#pragma unroll
  for (int row = 0; row < group_rows; ++row)
#pragma unroll
    for (int j = 0; j < J; ++j) {
      const int c = tid + j * group_threads;
      if (row < count && c < latent) a.y.data[(first + row) * latent + c] = y[row * latent + c];
    }
}

template <int J>
void forward(Context& ctx, const RvqForward& a, const RvqSizes& n, const RowMask& mask, const float* prepared,
             float* losses) {
  const int groups = groups_for(n.rows);
  const bool aligned = aligned16(a.projections.out_weight.data);
  launch(ctx,
         {.name = "rvq_forward_factorised",
          .grid = blocks_for(n.rows, groups * group_rows),
          .block = static_cast<unsigned>(groups * group_threads),
          .shared_bytes = static_cast<size_t>(groups * place_of(n.latent).size) * sizeof(float)},
         rvq_factorised_kernel<J>, a, n, mask, prepared, aligned, losses);
}

}  // namespace

void rvq_forward_factorised(Context& ctx, const RvqForward& a, const RvqSizes& n, const RowMask& mask,
                            const float* prepared, float* losses) {
  if (n.latent <= group_threads)
    forward<1>(ctx, a, n, mask, prepared, losses);
  else if (n.latent <= 2 * group_threads)
    forward<2>(ctx, a, n, mask, prepared, losses);
  else
    forward<4>(ctx, a, n, mask, prepared, losses);
}

}  // namespace nacre::cuda
