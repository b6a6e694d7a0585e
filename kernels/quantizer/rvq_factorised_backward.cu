// rvq_backward for factorised codes of 8 channels, in three steps; factorised_backward() in rvq.cpp has the formulas.
//
// 1. Chain: a group of threads takes its rows back through all stages, as in the forward, and stores de, 8 floats per
//    row and stage, and dz.
// 2. Sums: given de, latent channels are independent. A block of 32 channels and a run of rows recomputes r and g in
//    shared memory and sums the gradients of the weights in registers.
// 3. The partial sums of the runs are added. The gradient of in_bias is a sum of de alone, in a kernel of its own.
//
// For 2376 rows, latent 1024, 9 stages: the chain issues about 1650 instructions per thread and stage (SASS, sm_90a),
// about 34 us; the sums do 40 fused multiply-adds per row, channel and stage, about 40 us; the partials of 19 runs are
// 12 MB, written and read in 6 us.
#include "quantizer/rvq_factorised.cuh"

namespace nacre::cuda {
namespace {

/// Offsets in the shared memory of one group, in floats: g [9][L] and dy [9][L] with L = 256 J, two buffers of the
/// warps' sums (for stages in turn) [8][72], and per warp de [72].
template <int J>
struct SharedLayout {
  static constexpr int dy = group_rows * J * group_threads, sums = 2 * dy,
                       warp_values = sums + 2 * group_warps * row_values, size = warp_values + group_warps * row_values;
};
template <int J>
inline constexpr size_t group_bytes = SharedLayout<J>::size * sizeof(float);
static_assert(group_bytes<4> <= least_shared_per_block);

/// The chain of a block's groups, nine rows each, from the last stage to the first: de_out [stages][rows][8], and dz.
/// Per stage: dq = m dy - g, de = W_out^T dq over all channels, plus the slope of the commitment loss; g += W_in^T de.
/// It needs neither residuals nor the codes' projections.
template <int J>
__global__ void __launch_bounds__(group_threads* max_groups, 1)
    rvq_factorised_chain_kernel(RvqBackward a, RvqSizes n, RowMask mask, Weights weights, float* de_out) {
  NACRE_DYNAMIC_SHARED(float, shared);
  using P = SharedLayout<J>;
  constexpr int L = J * group_threads;
  const int tid = static_cast<int>(threadIdx.x) % group_threads, group = static_cast<int>(threadIdx.x) / group_threads;
  const int lane = tid % 32, warp = tid / 32, latent = static_cast<int>(n.latent), stages = static_cast<int>(n.stages);
  float* group_shared = shared + group * P::size;
  // A thread's channels are 256 apart, unlike in the forward: loads of dy and of the weights are coalesced, and no
  // other thread reads its g and dy.
  float *g = group_shared + tid, *dy = g + P::dy, *de = group_shared + P::warp_values + warp * row_values;
  const int64_t first = (int64_t{blockIdx.x} * (blockDim.x / group_threads) + group) * group_rows;
  const int count = static_cast<int>(n.rows - first < group_rows ? (n.rows > first ? n.rows - first : 0) : group_rows);
  const float scale = loss_slope(mask, n.dim, a.commitment_weight);
  int limit = stages;
  bool counted = false;
  if (lane < count) {
    if (mask.stages != nullptr) limit = mask.stages[(first + lane) / mask.time];
    counted = mask.valid(first + lane);
  }
  // Of the row of lane `row`: the stages whose commitment loss counts.
  const int counted_limit = counted ? limit : 0;
  for (int row = 0; row < group_rows; ++row)
#pragma unroll
    for (int j = 0; j < J; ++j) {
      const int c = tid + j * group_threads;
      dy[row * L + j * group_threads] = row < count && c < latent ? a.dy.data[(first + row) * latent + c] : 0.0f;
      g[row * L + j * group_threads] = 0;
    }
#pragma unroll 1
  for (int i = stages - 1; i >= 0; --i) {
    // Two buffers in turn: a warp that is ahead writes the sums of the next stage while others still read those of this
    // one. So a stage has one barrier.
    float* sums = group_shared + P::sums + i % 2 * (group_warps * row_values);
    {
      float w[J][code_dim];
#pragma unroll
      for (int j = 0; j < J; ++j) load_8(weights.out + (i * L + j * group_threads + tid) * code_dim, w[j]);
#pragma unroll 1
      for (int row = 0; row < group_rows; ++row) {
        const bool used = i < __shfl_sync(full_warp, limit, row);
        // v: this thread's part of de = W_out^T dq; the warp adds it over its 32 J channels.
        float v[code_dim] = {};
#pragma unroll
        for (int j = 0; j < J; ++j) {
          const int element = row * L + j * group_threads;
          // As on the CPU. Each thread owns its channels of g and dy, so these need no barrier.
          const float dq = used ? dy[element] - g[element] : -g[element];
#pragma unroll
          for (int d = 0; d < code_dim; ++d) v[d] = __fmaf_rn(dq, w[j][d], v[d]);
        }
        const float sum = warp_sum_8(v);
        if (lane % 4 == 0) sums[warp * row_values + row * code_dim + lane / 4] = sum;
      }
    }
    float w[J][code_dim];  // in flight during the barrier
    const float* in = weights.in + (i * code_dim * L + tid);
#pragma unroll
    for (int j = 0; j < J; ++j)
#pragma unroll
      for (int d = 0; d < code_dim; ++d) w[j][d] = in[d * L + j * group_threads];
    __syncthreads();
#pragma unroll
    for (int iteration = 0; iteration < value_iterations; ++iteration) {
      const int v = lane + iteration * 32, row = v < row_values ? v / code_dim : 0;
      // All lanes take part in the shuffle, before some skip the rest. Every warp computes the same de from the sums of
      // all warps; warp 0 stores it for the second step.
      const int row_limit = __shfl_sync(full_warp, counted_limit, row);
      if (v >= row_values) continue;
      float sum = sums[v];
#pragma unroll
      for (int s = 1; s < group_warps; ++s) sum += sums[s * row_values + v];
      if (row < count) {
        if (i < row_limit) {
          const int64_t k = clamp_code(a.codes.data[(first + row) * stages + i], n.codes);
          const float difference = a.quantised.data[(i * n.rows + first) * code_dim + v] -
                                   a.codebooks.data[(i * n.codes + k) * code_dim + v % code_dim];
          sum = __fmaf_rn(scale, difference, sum);
        }
        if (warp == 0) de_out[(i * n.rows + first) * code_dim + v] = sum;
      }
      de[v] = sum;
    }
    __syncwarp();
#pragma unroll 1
    for (int row = 0; row < group_rows; ++row) {
      // g += W_in^T de, for this thread's channels.
      float e[code_dim];
      load_8(de + row * code_dim, e);
#pragma unroll
      for (int j = 0; j < J; ++j)
        g[row * L + j * group_threads] = project_out_8(e, w[j], g[row * L + j * group_threads]);
    }
  }
  if (!a.dz) return;
  for (int row = 0; row < count; ++row)
#pragma unroll
    for (int j = 0; j < J; ++j) {
      const int c = tid + j * group_threads;
      if (c >= latent) continue;
      float* dz = a.dz.data + (first + row) * latent + c;
      const float gradient = g[row * L + j * group_threads];
      *dz = a.add_dz ? *dz + gradient : gradient;
    }
}

// ---- gradients of the weights

constexpr int threads = 256, warps = threads / 32;
constexpr int chunk = 128;                 ///< rows whose r and g are in shared memory at once
constexpr int columns = 2 * code_dim + 1;  ///< sums per latent channel: dW_in, dW_out, db_out
constexpr int64_t max_runs = 32;
int64_t runs_of(int64_t rows) {
  const int64_t chunks = ceil_div(rows, int64_t{chunk});
  return chunks < max_runs ? chunks : max_runs;
}
constexpr int sums_floats = 2 * chunk * 32 + 2 * chunk * code_dim + warps * columns * 32 + chunk;
static_assert(sums_floats * sizeof(float) <= least_shared_per_block);

/// A block handles 32 channels (one per lane) and a run of rows, chunk by chunk; a warp takes every eighth row of a
/// chunk. partial [runs][stages][columns][latent], with the columns dW_in (8), dW_out (8) and db_out. A run is a number
/// of whole chunks, and a chunk passes through all stages twice: forward to its last residual, then back.
///
/// Barriers of a stage on the way back: the first one ends the reads of the codes and de of the stage before, the
/// second one publishes those of this stage, the third one publishes the warps' sums. The reads of `sums` end before
/// the first barrier of the next stage, which writes `sums` after its second one. A stage on the way forward has only
/// the first two. 57.5 KiB of shared memory.
__global__ void __launch_bounds__(threads)
    rvq_factorised_sums_kernel(RvqBackward a, RvqSizes n, RowMask mask, Weights weights, int L, const float* de,
                               float* partial) {
  NACRE_DYNAMIC_SHARED(float, residual);
  // Shared memory: residual and g [chunk][32 channels], codes and de of the chunk's rows [chunk][8], the warps' sums
  // [warps][columns][32], used stages per row. A row of residual and of g belongs to one warp, which takes the same
  // rows in all stages; the barriers are for `codes`, `de_rows` and `sums` alone. Lanes have adjacent channels: no bank
  // conflicts, coalesced loads.
  float *g = residual + chunk * 32, *codes = g + chunk * 32, *de_rows = codes + chunk * code_dim,
        *sums = de_rows + chunk * code_dim;
  int* row_stages = reinterpret_cast<int*>(sums + warps * columns * 32);
  const int tid = static_cast<int>(threadIdx.x), lane = tid % 32, warp = tid / 32;
  const int stages = static_cast<int>(n.stages), c = static_cast<int>(blockIdx.x) * 32 + lane;
  const bool in_range = c < n.latent;
  const int64_t chunks = ceil_div(n.rows, int64_t{chunk}), runs = gridDim.y;
  const int64_t begin = chunks * blockIdx.y / runs, end = chunks * (blockIdx.y + 1) / runs;
  for (int64_t chunk_index = begin; chunk_index < end; ++chunk_index) {
    const int64_t first = chunk_index * chunk;
    const int count = static_cast<int>(n.rows - first < chunk ? n.rows - first : chunk);
    for (int row = warp; row < count; row += warps) {
      residual[row * 32 + lane] = in_range ? a.z.data[(first + row) * n.latent + c] : 0.0f;
      g[row * 32 + lane] = 0;
    }
    for (int row = tid; row < count; row += threads)
      row_stages[row] = mask.stages != nullptr ? mask.stages[(first + row) / mask.time] : stages;
    // The chosen codes of the chunk's rows, and their de, for one stage. Rows of eight floats: adjacent threads read
    // adjacent floats.
    const auto fetch = [&](int i, bool with_de) {
      for (int v = tid; v < count * code_dim; v += threads) {
        const int64_t row = first + v / code_dim;
        const int64_t k = clamp_code(a.codes.data[row * stages + i], n.codes);
        codes[v] = a.codebooks.data[(i * n.codes + k) * code_dim + v % code_dim];
        if (with_de) de_rows[v] = de[(i * n.rows + first) * code_dim + v];
      }
    };
    // Forward to the residual after the last stage; the loop after it goes back, as the chain does.
#pragma unroll 1
    for (int i = 0; i < stages; ++i) {
      __syncthreads();
      fetch(i, false);
      float w[code_dim];
      load_8(weights.out + (i * L + c) * code_dim, w);
      const float bias = weights.out_bias[i * L + c];
      __syncthreads();
#pragma unroll 4
      for (int row = warp; row < count; row += warps) {
        float code[code_dim];
        load_8(codes + row * code_dim, code);
        residual[row * 32 + lane] -= project_out_8(code, w, bias);
      }
    }
#pragma unroll 1
    for (int i = stages - 1; i >= 0; --i) {
      __syncthreads();
      fetch(i, true);
      // Sums of this warp's rows stay in registers for the whole chunk: 17 per lane, that is per channel.
      float out[code_dim], in[code_dim], d_in[code_dim] = {}, d_out[code_dim] = {}, d_bias = 0;
      load_8(weights.out + (i * L + c) * code_dim, out);
#pragma unroll
      for (int d = 0; d < code_dim; ++d) in[d] = weights.in[(i * code_dim + d) * L + c];
      const float bias = weights.out_bias[i * L + c];
      __syncthreads();
#pragma unroll 2
      for (int row = warp; row < count; row += warps) {
        float code[code_dim], e[code_dim];
        load_8(codes + row * code_dim, code);
        load_8(de_rows + row * code_dim, e);
        const float dy = in_range ? a.dy.data[(first + row) * n.latent + c] : 0.0f;
        const float r = residual[row * 32 + lane] + project_out_8(code, out, bias);
        residual[row * 32 + lane] = r;
        const float after = g[row * 32 + lane], dq = i < row_stages[row] ? dy - after : -after;
#pragma unroll
        for (int d = 0; d < code_dim; ++d) {
          d_in[d] = __fmaf_rn(e[d], r, d_in[d]);
          d_out[d] = __fmaf_rn(code[d], dq, d_out[d]);
        }
        d_bias += dq;
        g[row * 32 + lane] = project_out_8(e, in, after);
      }
      float* warp_sums = sums + warp * (columns * 32) + lane;
#pragma unroll
      for (int d = 0; d < code_dim; ++d) warp_sums[d * 32] = d_in[d], warp_sums[(code_dim + d) * 32] = d_out[d];
      warp_sums[2 * code_dim * 32] = d_bias;
      __syncthreads();
      // Warps in order, then chunks in order: the sum is fixed by the shape. The partial is written by the first chunk
      // of the run and read back by later ones; one thread has the same element each time.
      float* to = partial + (int64_t{blockIdx.y} * stages + i) * columns * n.latent;
      for (int v = tid; v < columns * 32; v += threads) {
        const int channel = static_cast<int>(blockIdx.x) * 32 + v % 32;
        float sum = sums[v];
#pragma unroll
        for (int w = 1; w < warps; ++w) sum += sums[w * (columns * 32) + v];
        if (channel >= n.latent) continue;
        float& total = to[v / 32 * n.latent + channel];
        total = chunk_index == begin ? sum : total + sum;
      }
    }
    __syncthreads();
  }
}

/// The gradients += the partials. A thread adds the runs of one element in order.
__global__ void __launch_bounds__(threads)
    rvq_factorised_add_kernel(RvqBackward a, RvqSizes n, int64_t runs, const float* partial) {
  const int64_t all = n.stages * columns * n.latent;
  for (int64_t v = grid_thread(); v < all; v += grid_threads()) {
    float sum = partial[v];
    for (int64_t run = 1; run < runs; ++run) sum += partial[run * all + v];
    const int64_t c = v % n.latent, stage = v / (columns * n.latent);
    const int column = static_cast<int>(v / n.latent % columns), d = column % code_dim;
    if (column == 2 * code_dim) {
      if (a.dout_bias) a.dout_bias.data[stage * n.latent + c] += sum;
    } else if (column < code_dim) {
      if (a.din_weight) a.din_weight.data[(stage * code_dim + d) * n.latent + c] += sum;
    } else if (a.dout_weight) {
      a.dout_weight.data[(stage * n.latent + c) * code_dim + d] += sum;
    }
  }
}

/// A block per stage: db_in. Thread t adds channel t % 8 of every 32nd row, because 256 is a multiple of 8; then thread
/// d < 8 adds the 32 threads of its channel in order.
__global__ void __launch_bounds__(threads) rvq_in_bias_kernel(RvqBackward a, RvqSizes n, const float* de) {
  NACRE_SHARED(float, sums, threads);
  const int tid = static_cast<int>(threadIdx.x);
  const float* from = de + int64_t{blockIdx.x} * n.rows * code_dim;
  float sum = 0;
#pragma unroll 8
  for (int64_t v = tid; v < n.rows * code_dim; v += threads) sum += from[v];
  sums[tid] = sum;
  __syncthreads();
  if (tid >= code_dim) return;
  for (int t = tid + code_dim; t < threads; t += code_dim) sum += sums[t];
  a.din_bias.data[blockIdx.x * code_dim + tid] += sum;
}

template <int J>
void chain(Context& ctx, const RvqBackward& a, const RvqSizes& n, const RowMask& mask, const Weights& weights,
           float* de) {
  const int groups = groups_for(limits(ctx), n.rows, group_bytes<J>);
  launch(ctx,
         {.name = "rvq_chain_factorised",
          .grid = blocks_for(n.rows, groups * group_rows),
          .block = static_cast<unsigned>(groups * group_threads),
          .shared_bytes = groups * group_bytes<J>},
         rvq_factorised_chain_kernel<J>, a, n, mask, weights, de);
}

}  // namespace

/// Padded weights, de of all stages, the partials of all runs.
int64_t rvq_backward_factorised_size(const RvqSizes& n) {
  return scratch_slack + padded_weights_size(n) + n.rows * n.stages * code_dim +
         runs_of(n.rows) * n.stages * columns * n.latent;
}

void rvq_backward_factorised(Context& ctx, const RvqBackward& a, const RvqSizes& n, const RowMask& mask,
                             float* scratch) {
  float* padded = aligned_scratch(scratch);
  float* de = padded + padded_weights_size(n);
  float* partial = de + n.rows * n.stages * code_dim;
  const Weights weights = pad_weights(ctx, a.projections, n, padded);
  const int64_t L = group_latent(n.latent), runs = runs_of(n.rows);
  switch (L / group_threads) {
    case 1:
      chain<1>(ctx, a, n, mask, weights, de);
      break;
    case 2:
      chain<2>(ctx, a, n, mask, weights, de);
      break;
    default:
      chain<4>(ctx, a, n, mask, weights, de);
      break;
  }
  if (a.din_weight || a.dout_weight || a.dout_bias) {
    launch(ctx,
           {.name = "rvq_sums_factorised",
            .grid = {blocks_for(n.latent, 32), static_cast<unsigned>(runs), 1},
            .block = threads,
            .shared_bytes = sums_floats * sizeof(float)},
           rvq_factorised_sums_kernel, a, n, mask, weights, static_cast<int>(L), de, partial);
    launch(ctx, {.name = "rvq_add_runs", .grid = blocks_for(n.stages * columns * n.latent, threads), .block = threads},
           rvq_factorised_add_kernel, a, n, runs, partial);
  }
  if (a.din_bias)
    launch(ctx, {.name = "rvq_in_bias", .grid = static_cast<unsigned>(n.stages), .block = threads}, rvq_in_bias_kernel,
           a, n, de);
}

}  // namespace nacre::cuda
