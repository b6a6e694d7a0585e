// rvq_forward with products of the projections: all stages in numbers of stages x dim.
//
//   rvq_project    e of all stages from z, as if no code had been subtracted: a product of z, which is read once per
//                  four stages
//   rvq_search     per stage: search, then the code's share of the later stages is subtracted
//   rvq_sum        y, if it is wanted: a product of the chosen codes
//
// For 2376 rows, latent 1024, 9 stages of 1024 codes on an H200, in the unit of rvq_factorised.cu (instructions of one of
// the 8 warps of 9 rows, per stage; 2080 there): counts in docs/decisions/rvq-by-algebra.md.
#include "quantizer/rvq_algebra.cuh"

namespace nacre::cuda {
namespace {

constexpr int threads = 256, warps = threads / 32;

// ---- products

/// A warp per column of stage i and per stage j, or, for j = stages, the column's number of row 0.
__global__ void __launch_bounds__(threads)
    rvq_products_kernel(RvqProjections p, int stages, int dim, int latent, float* to) {
  const int lane = static_cast<int>(threadIdx.x) % 32, all = stages * dim;
  const int64_t task = int64_t{blockIdx.x} * warps + threadIdx.x / 32;
  if (task >= int64_t{all} * (stages + 1)) return;
  const int column = static_cast<int>(task % all), j = static_cast<int>(task / all), i = column / dim;
  const float* w = p.in_weight.data + int64_t{column} * latent;
  const auto dot = [&](const float* x, int64_t step) {
    float sum = 0;
    for (int c = lane; c < latent; c += 32) sum = __fmaf_rn(w[c], x[c * step], sum);
    return warp_sum(sum);
  };
  if (j == stages) {
    float start = p.in_bias.data[column];
    for (int s = 0; s < i; ++s) start -= dot(p.out_bias.data + int64_t{s} * latent, 1);
    if (lane == 0) to[column] = start;
    return;
  }
  for (int d = 0; d < dim; ++d) {
    const float sum = j < i ? dot(p.out_weight.data + int64_t{j} * latent * dim + d, dim) : 0.0f;
    if (lane == 0) to[int64_t{1 + j * dim + d} * all + column] = sum;
  }
}

// ---- any shape

/// A warp takes one row through all stages; e of all stages is in scratch.
__global__ void __launch_bounds__(threads)
    rvq_small_kernel(RvqForward a, RvqSizes n, RowMask mask, const float* prepared, float* projected, float* losses) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int64_t row = int64_t{blockIdx.x} * warps + threadIdx.x / 32;
  if (row >= n.rows) return;
  const float *z = a.z.data + row * n.latent, *products = a.projections.products.data;
  const int64_t all = n.stages * n.dim, stride = a.projections.products.shape.channels;
  float* e = projected + row * all;
  for (int64_t k = 0; k < all; ++k) {
    const float* w = a.projections.in_weight.data + k * n.latent;
    float sum = 0;
    for (int64_t c = lane; c < n.latent; c += 32) sum = __fmaf_rn(w[c], z[c], sum);
    sum = warp_sum(sum);
    if (lane == 0) e[k] = sum + products[k];
  }
  const int64_t limit = mask.stages_used(row, n.stages);
  float loss = 0;
  for (int64_t i = 0; i < n.stages; ++i) {
    __syncwarp();
    const float* x = e + i * n.dim;
    const int64_t k = warp_nearest(x, n.dim, prepared + i * prepared_size(n.codes, n.dim), n.codes, a.metric).k;
    if (lane == 0) a.codes.data[row * n.stages + i] = static_cast<int32_t>(k);
    const float* code = a.codebooks.data + (i * n.codes + k) * n.dim;
    float distance = 0;
    for (int64_t d = lane; d < n.dim; d += 32) {
      const float difference = x[d] - code[d];
      if (a.quantised) a.quantised.data[(i * n.rows + row) * n.dim + d] = x[d];
      distance = __fmaf_rn(difference, difference, distance);
    }
    distance = warp_sum(distance);
    if (i < limit && mask.valid(row)) loss += distance;
    const float* p = products + (1 + i * n.dim) * stride;
    for (int64_t later = (i + 1) * n.dim + lane; later < all; later += 32) {
      float v = e[later];
      for (int64_t d = 0; d < n.dim; ++d) v = __fmaf_rn(-code[d], p[d * stride + later], v);
      e[later] = v;
    }
  }
  if (lane == 0 && losses != nullptr) losses[row] = loss;
  if (!a.y) return;
  __syncwarp();
  for (int64_t c = lane; c < n.latent; c += 32) {
    float y = 0;
    for (int64_t i = 0; i < limit; ++i) {
      const float* code = a.codebooks.data + (i * n.codes + a.codes.data[row * n.stages + i]) * n.dim;
      const float q = project_out(code, a.projections.out_weight.data + (i * n.latent + c) * n.dim,
                                  a.projections.out_bias.data[i * n.latent + c], n.dim);
      y = i == 0 ? q : y + q;
    }
    a.y.data[row * n.latent + c] = y;
  }
}

// ---- codes of 8 channels

constexpr int project_groups = 2, project_stages = warps / project_groups;

template <bool packed>
__device__ __forceinline__ Pack<float> load_four(const float* p) {
  if constexpr (packed)
    return load_pack(p);
  else
    return load_some(p, 4);
}
/// Two floats, in one access if `packed`; the second one is 0 if it is beyond the row.
template <bool packed>
__device__ __forceinline__ float2 load_two(const float* p, bool both) {
  if constexpr (packed) return *reinterpret_cast<const float2*>(p);
  return {p[0], both ? p[1] : 0.0f};
}

/// A warp computes e of 9 rows and one stage: 72 sums per lane over every 32nd pair of channels, then over the lanes. A block has 2 groups of rows and 4 stages, so that its loads of z and of weights are shared in the first-level
/// cache. `packed`: rows and weights are aligned. The sums are the same.
/// Pairs, because sixteen weights and the rows in flight leave room for 72 sums in 128 registers.
template <bool packed>
__global__ void __launch_bounds__(threads, 2)
    rvq_project_kernel(View<const float> z, const float* in_weight, const float* start, RvqSizes n, float* projected) {
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const int latent = static_cast<int>(n.latent);
  const int64_t stage = int64_t{blockIdx.y} * project_stages + warp % project_stages;
  const int64_t first = (int64_t{blockIdx.x} * project_groups + warp / project_stages) * group_rows;
  if (stage >= n.stages || first >= n.rows) return;
  const float* weights = in_weight + stage * code_dim * latent;
  // Rows beyond the last one repeat it; their sums are dropped.
  const int last = static_cast<int>(n.rows - first < group_rows ? n.rows - first : group_rows) - 1;
  const float* rows = z.data + first * latent;
  float sum[group_rows][code_dim] = {};
#pragma unroll 1
  for (int c = lane * 2; c < latent; c += 64) {
    const bool both = c + 1 < latent;
    float2 w[code_dim];
#pragma unroll
    for (int d = 0; d < code_dim; ++d) w[d] = load_two<packed>(weights + d * latent + c, both);
#pragma unroll
    for (int row = 0, at = c; row < group_rows; ++row) {
      const float2 x = load_two<packed>(rows + at, both);
      at += row < last ? latent : 0;
#pragma unroll
      for (int d = 0; d < code_dim; ++d) sum[row][d] = __fmaf_rn(x.y, w[d].y, __fmaf_rn(x.x, w[d].x, sum[row][d]));
    }
  }
  const int64_t column = stage * code_dim + lane / 4;
#pragma unroll
  for (int row = 0; row < group_rows; ++row) {
    const float total = warp_sum_8(sum[row]);
    if (lane % 4 == 0 && row <= last) projected[(first + row) * n.stages * code_dim + column] = total + start[column];
  }
}

constexpr int codes_at_once = group_threads * 4;

/// Each warp writes its best code of every row to `candidates` [warp][row][2]. A thread has four adjacent codes in
/// registers and compares them with all rows; `x` has the rows, read by broadcast.
__device__ __forceinline__ void search_rows(const float* x, const float* prepared, int padded, uint32_t* candidates) {
  const int tid = static_cast<int>(threadIdx.x), lane = tid % 32, warp = tid / 32;
#pragma unroll 1
  for (int begin = 0; begin < padded; begin += codes_at_once) {
    const int k = begin + tid * 4;
    float codes[code_dim][4];
    Pack<float> norms{};
    if (k < padded) {
#pragma unroll
      for (int d = 0; d < code_dim; ++d) {
        const Pack<float> v = load_pack(prepared + int64_t{d} * padded + k);
#pragma unroll
        for (int t = 0; t < 4; ++t) codes[d][t] = v.v[t];
      }
      norms = load_pack(prepared + int64_t{code_dim} * padded + k);
    }
#pragma unroll 1
    for (int row = 0; row < group_rows; ++row) {
      Best best = no_code();
      if (k < padded) {
        float v[code_dim];
        load_8(x + row * code_dim, v);
#pragma unroll
        for (int t = 0; t < 4; ++t) {
          float h = norms.v[t];
#pragma unroll
          for (int d = 0; d < code_dim; ++d) h = __fmaf_rn(-v[d], codes[d][t], h);
          if (h < best.h) best.h = h, best.k = k + t;
        }
      }
      const OrderedBest best_of_warp = warp_ordered_best(best);
      uint32_t* slot = candidates + (row * group_warps + warp) * 2;
      // Later codes have higher indices, so they win only if they are strictly nearer.
      if (lane == 0 && (begin == 0 || best_of_warp.h < slot[0])) slot[0] = best_of_warp.h, slot[1] = best_of_warp.k;
    }
  }
}

/// Eight lanes per row find the best of the warps' candidates, four rows at once. `chosen` gets the codes' channels; lane
/// `row` returns that row's code.
__device__ __forceinline__ int32_t choose(const uint32_t* candidates, const float* codebook, float* chosen) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  int32_t my_code = 0;
#pragma unroll
  for (int iteration = 0; iteration < value_iterations; ++iteration) {
    const int v = lane + iteration * 32, slot = v < row_values ? v : 0;
    OrderedBest best{candidates[2 * slot], candidates[2 * slot + 1]};
#pragma unroll
    for (int lanes = 4; lanes > 0; lanes /= 2) {
      const uint32_t h = __shfl_xor_sync(full_warp, best.h, lanes), k = __shfl_xor_sync(full_warp, best.k, lanes);
      if (h < best.h || (h == best.h && k < best.k)) best.h = h, best.k = k;
    }
    const int row_of_four = lane - iteration * 4;  // this lane's row among the four rows of the iteration
    const bool mine = row_of_four >= 0 && row_of_four < 4;
    const uint32_t k = __shfl_sync(full_warp, best.k, mine ? row_of_four * 8 : 0);
    if (mine) my_code = static_cast<int32_t>(k);
    if (v < row_values) chosen[v] = codebook[int64_t{best.k} * code_dim + v % code_dim];
  }
  return my_code;
}

/// A block takes 9 rows through all stages, with two barriers per stage. e of all stages is in shared memory. Every warp
/// has its own copies of what is compared and of the chosen codes, which saves barriers.
__global__ void __launch_bounds__(group_threads, 2)
    rvq_search_kernel(RvqForward a, RvqSizes n, RowMask mask, const float* prepared, const float* projected,
                      float* losses) {
  NACRE_DYNAMIC_SHARED(float, e);
  NACRE_SHARED(uint32_t, candidates, group_warps * group_rows * 2);
  NACRE_SHARED(float, warp_values, group_warps * 2 * row_values);
  const int tid = static_cast<int>(threadIdx.x), lane = tid % 32, warp = tid / 32;
  const int stages = static_cast<int>(n.stages), all = stages * code_dim,
            padded = static_cast<int>(padded_codes(n.codes));
  const int64_t first = int64_t{blockIdx.x} * group_rows, stride = a.projections.products.shape.channels;
  const int count = static_cast<int>(n.rows - first < group_rows ? n.rows - first : group_rows);
  float *x = warp_values + warp * 2 * row_values, *chosen = x + row_values;
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
    const int32_t my_code = choose(candidates, a.codebooks.data + i * n.codes * code_dim, chosen);
    if (warp == 0 && lane < count) a.codes.data[(first + lane) * stages + i] = my_code;
    __syncwarp();
    if (warp == 2 && counted && i < limit) {
      float distance = 0;
#pragma unroll
      for (int d = 0; d < code_dim; ++d) {
        const float difference = e[lane * all + i * code_dim + d] - chosen[lane * code_dim + d];
        distance = __fmaf_rn(difference, difference, distance);
      }
      loss += distance;
    }
    // 64 columns of the later stages at once; a thread has every fourth row of its column.
    for (int later = (i + 1) * code_dim + tid % 64; later < all; later += 64) {
      float p[code_dim];
#pragma unroll
      for (int d = 0; d < code_dim; ++d) p[d] = a.projections.products.data[(1 + i * code_dim + d) * stride + later];
#pragma unroll
      for (int row = tid / 64; row < group_rows; row += 4) {
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
size_t search_bytes(int64_t stages) { return static_cast<size_t>(group_rows * stages * code_dim) * sizeof(float); }
constexpr size_t search_static_bytes = group_warps * (group_rows + row_values) * 8;

constexpr int sum_rows = 16, sum_threads = 128, sum_channels = 2;  // channels: per thread

/// A block adds all stages of 16 rows and 256 channels. The chosen codes are in shared memory, [stage][row][8]; a thread
/// has the weights of its two channels for one stage in registers.
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
  // -0 + q is q for every q, so the first stage needs no case of its own.
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

void rvq_forward_products(Context& ctx, const RvqForward& a, const RvqSizes& n, const RowMask& mask,
                          const float* prepared, float* projected, float* losses) {
  // By the shape alone: the codes of a row must not depend on other rows.
  if (!sum_codes_supports(n.stages, n.dim) || search_bytes(n.stages) + search_static_bytes > least_shared_per_block) {
    launch(ctx, {.name = "rvq_forward_small", .grid = blocks_for(n.rows, warps), .block = threads}, rvq_small_kernel, a,
           n, mask, prepared, projected, losses);
    return;
  }
  const bool packed = n.latent % 2 == 0 && aligned16(a.z.data) && aligned16(a.projections.in_weight.data);
  launch(ctx,
         {.name = "rvq_project",
          .grid = {blocks_for(n.rows, project_groups * group_rows), blocks_for(n.stages, project_stages)},
          .block = threads},
         packed ? rvq_project_kernel<true> : rvq_project_kernel<false>, a.z, a.projections.in_weight.data,
         a.projections.products.data, n, projected);
  launch(ctx,
         {.name = "rvq_search",
          .grid = blocks_for(n.rows, group_rows),
          .block = group_threads,
          .shared_bytes = search_bytes(n.stages)},
         rvq_search_kernel, a, n, mask, prepared, projected, losses);
  if (a.y) sum_codes(ctx, a.codes.data, a.codebooks.data, a.projections, n, mask, a.y.data);
}

void rvq_products(Context& ctx, const RvqProducts& a) {
  const Shape in = a.projections.in_weight.shape;
  launch(ctx,
         {.name = "rvq_products", .grid = blocks_for(in.batch * in.time * (in.batch + 1), warps), .block = threads},
         rvq_products_kernel, a.projections, static_cast<int>(in.batch), static_cast<int>(in.time),
         static_cast<int>(in.channels), a.y.data);
}

}  // namespace nacre::cuda
