#include "quantizer/rvq_algebra.cuh"

// rvq_forward, rvq_decode and the choice among the kernels of the forward pass; rvq.cpp is the same on the CPU, and
// nacre/ops/rvq.h gives the formulas.
//
//   rvq_forward              a warp per row; any shape (read this one first)
//   rvq_forward_given        the same with given codes: the end of a beam search, whose codes rvq_beam.cu finds
//   rvq_forward_latent       latent codes of up to 1024 channels, euclidean: 16 rows per block
//   rvq_forward_factorised   codes of 8 channels, a latent of up to 1024: rvq_factorised.cu
//   with products            rvq_algebra.cu; any shape: rvq_products.cu
//   rvq_losses               adds the losses of the rows, which each of these kernels writes
//   rvq_decode               any shape; codes of 8 channels of 8 rows or more: rvq_sum.cu
//
// All searches take the codebooks that prepare_codebooks() has prepared.
namespace nacre::cuda {
namespace {

constexpr int threads = 256, warps = threads / 32;

// ---- forward, any shape

/// A warp takes one row through all stages; the residual and e are in scratch, `residuals` [rows][latent] and
/// `projected` [rows][dim]. Latent codes have no e of their own: the residual is searched. With `searches`, the warp
/// searches for the nearest codes; without, it reads given codes from a.codes. losses [rows] = the sum of |e - E[c]|^2
/// over the stages that count.
template <bool searches>
__global__ void __launch_bounds__(threads)
    rvq_forward_kernel(RvqForward a, RvqSizes n, RowMask mask, const float* prepared, float* residuals,
                       float* projected, float* losses) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int64_t row = int64_t{blockIdx.x} * warps + threadIdx.x / 32;
  if (row >= n.rows) return;
  const float* z = a.z.data + row * n.latent;
  float *r = residuals + row * n.latent, *y = a.y.data + row * n.latent;
  float* e = n.factorised ? projected + row * n.dim : r;
  // Lane l owns channels l, l + 32, ... of r and y, so these need no barrier between stages; e is written by lane 0 and
  // read by all, hence the warp barriers.
  for (int64_t c = lane; c < n.latent; c += 32) r[c] = z[c], y[c] = 0;
  float loss = 0;
  // Stage i: e = W_in r + b_in (latent codes: e = r), the code of e, its loss, then y += q and r -= q with q of the
  // code.
  for (int64_t i = 0; i < n.stages; ++i) {
    if (n.factorised) {
      for (int64_t d = 0; d < n.dim; ++d) {
        const float* w = a.projections.in_weight.data + (i * n.dim + d) * n.latent;
        float sum = 0;
        for (int64_t c = lane; c < n.latent; c += 32) sum = __fmaf_rn(w[c], r[c], sum);
        sum = warp_sum(sum);
        if (lane == 0) e[d] = sum + a.projections.in_bias.data[i * n.dim + d];
      }
    }
    __syncwarp();
    int32_t k;
    if constexpr (searches) {
      k = warp_nearest(e, n.dim, prepared + i * prepared_size(n.codes, n.dim), n.codes, a.metric).k;
      if (lane == 0) a.codes.data[row * n.stages + i] = k;
    } else {
      k = a.codes.data[row * n.stages + i];
    }
    const float* code = a.codebooks.data + (i * n.codes + k) * n.dim;
    const bool used = mask.used(row, i);
    float distance = 0;
    for (int64_t d = lane; d < n.dim; d += 32) {
      const float v = e[d], difference = v - code[d];
      if (a.quantised) a.quantised.data[(i * n.rows + row) * n.dim + d] = v;
      distance = __fmaf_rn(difference, difference, distance);
    }
    distance = warp_sum(distance);
    if (used && mask.valid(row)) loss += distance;
    __syncwarp();
    for (int64_t c = lane; c < n.latent; c += 32) {
      const float q = n.factorised ? project_out(code, a.projections.out_weight.data + (i * n.latent + c) * n.dim,
                                                 a.projections.out_bias.data[i * n.latent + c], n.dim)
                                   : code[c];
      // The first q is stored, not added to 0, so that a decoder finds the same bits, also of -0.
      if (used) y[c] = i == 0 ? q : y[c] + q;
      r[c] -= q;
    }
    __syncwarp();
  }
  if (lane == 0 && losses != nullptr) losses[row] = loss;
}

// ---- forward, latent codes

constexpr int64_t max_tile_latent = 1024;

/// A block takes 16 rows through all stages, two rows per warp, with two barriers per stage. Shared memory: the
/// residuals [latent, padded to fours][tile_pitch], a loss per row, then y [16][latent] if that fits, else y is in
/// device memory. The sums are the same. For 2376 rows, 8 stages of 1024 codes of 128 channels: 5 GFLOP, 0.1 ms; 149
/// blocks read 0.6 GB of codes from L2, 0.11 ms.
template <bool y_in_shared>
__global__ void __launch_bounds__(tile_threads, 2)
    rvq_latent_tile_kernel(RvqForward a, RvqSizes n, RowMask mask, const float* prepared, float* losses) {
  NACRE_DYNAMIC_SHARED(float, residual);
  NACRE_SHARED(uint32_t, candidates, candidate_words);
  NACRE_SHARED(int, row_stages, tile_rows);
  NACRE_SHARED(int, valid_rows, tile_rows);
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const int latent = static_cast<int>(n.latent), stages = static_cast<int>(n.stages);
  const int64_t first = int64_t{blockIdx.x} * tile_rows, padded = padded_codes(n.codes);
  float* sums = residual + tile_floats(latent);  // losses, then (y_in_shared) y [tile_rows][latent]
  // State of a row between searches is in shared memory, because the search uses all registers.
#pragma unroll 1
  for (int i = 0; i < 2; ++i) {
    const int r = warp * 2 + i;
    const bool in_range = first + r < n.rows;
    if (lane == 0) {
      row_stages[r] = in_range && mask.stages != nullptr ? mask.stages[(first + r) / mask.time] : stages;
      valid_rows[r] = in_range && mask.valid(first + r) ? 1 : 0;
      sums[r] = 0;
    }
    for (int c = lane; c < (latent + 3) / 4 * 4; c += 32)
      residual[c * tile_pitch + r] = in_range && c < latent ? a.z.data[(first + r) * latent + c] : 0.0f;
  }
#pragma unroll 1
  for (int s = 0; s < stages; ++s) {
    __syncthreads();
    tile_search(residual, latent, prepared + s * prepared_size(n.codes, latent), static_cast<int>(padded), candidates);
    __syncthreads();
    // The first barrier publishes the residuals, the second the candidates. tile_results() gives a warp the codes of
    // its two rows, and the warp alone updates these rows.
    const OrderedBest best = tile_results(candidates);
#pragma unroll 1
    for (int i = 0; i < 2; ++i) {
      const int r = warp * 2 + i;
      const int64_t k = __shfl_sync(full_warp, best.k, 8 * i);
      const int64_t row = first + r;
      if (row >= n.rows) continue;
      const bool used = s < row_stages[r];
      if (lane == 0) a.codes.data[row * stages + s] = static_cast<int32_t>(k);
      const float* code = a.codebooks.data + (s * n.codes + k) * latent;
      // Lanes have adjacent channels: codes, quantised and y are coalesced. The residuals are [channel][row] for the
      // search, so here lanes are tile_pitch floats apart, which costs four-way bank conflicts, once per stage.
      float *x = residual + r, *y = y_in_shared ? sums + tile_rows + r * latent : a.y.data + row * latent, loss = 0;
#pragma unroll 2
      for (int c = lane; c < latent; c += 32) {
        // The loss of stage s is |r - q|^2, that is the energy of the new residual.
        const float q = code[c], before = x[c * tile_pitch], after = before - q;
        if (a.quantised) a.quantised.data[(s * n.rows + row) * latent + c] = before;
        x[c * tile_pitch] = after;
        loss = __fmaf_rn(after, after, loss);
        if (s == 0)
          y[c] = used ? q : 0.0f;
        else if (used)
          y[c] += q;
      }
      loss = warp_sum(loss);
      if (lane == 0 && used && valid_rows[r] != 0) sums[r] += loss;
    }
  }
  for (int i = 0; i < 2; ++i) {
    const int r = warp * 2 + i;
    if (first + r >= n.rows) continue;
    if (lane == 0 && losses != nullptr) losses[first + r] = sums[r];
    if constexpr (y_in_shared)
      for (int c = lane; c < latent; c += 32) a.y.data[(first + r) * latent + c] = sums[tile_rows + r * latent + c];
  }
}

/// Bytes of dynamic shared memory; the static ones are the candidates, the stages and the flags of the rows.
size_t latent_tile_bytes(int64_t latent, bool y_in_shared) {
  return static_cast<size_t>(tile_floats(latent) + tile_rows * (y_in_shared ? latent + 1 : 1)) * sizeof(float);
}
constexpr size_t latent_tile_static_bytes = (candidate_words + 2 * tile_rows) * 4;
static_assert((tile_floats(max_tile_latent) + tile_rows) * 4 + latent_tile_static_bytes <= least_shared_per_block);

/// Not for the cosine: it compares scaled rows, and the residuals in shared memory are not scaled.
bool tile_kernel_supports(const RvqSizes& n, VqMetric metric) {
  return !n.factorised && n.latent <= max_tile_latent && metric == VqMetric::euclidean;
}
void latent_tile(Context& ctx, const RvqForward& a, const RvqSizes& n, const RowMask& mask, const float* prepared,
                 float* losses) {
  const bool y_in_shared = latent_tile_bytes(n.latent, true) + latent_tile_static_bytes <= limits(ctx).shared_per_block;
  launch(ctx,
         {.name = y_in_shared ? "rvq_forward_latent" : "rvq_forward_latent_long",
          .grid = blocks_for(n.rows, tile_rows),
          .block = tile_threads,
          .shared_bytes = latent_tile_bytes(n.latent, y_in_shared)},
         y_in_shared ? rvq_latent_tile_kernel<true> : rvq_latent_tile_kernel<false>, a, n, mask, prepared, losses);
}

/// One block adds the losses of all rows in double. The two losses have the same value; only their gradients differ.
__global__ void __launch_bounds__(1024)
    rvq_losses_kernel(const float* losses, int64_t rows, int64_t dim, RowMask mask, float* out) {
  NACRE_SHARED(double, buffer, 32);
  double sum = 0;
  for (int64_t r = threadIdx.x; r < rows; r += 1024) sum += static_cast<double>(losses[r]);
  sum = block_sum<1024>(sum, buffer);
  const int64_t elements = mask.loss_elements(dim);
  if (threadIdx.x == 0) out[0] = out[1] = elements > 0 ? static_cast<float>(sum / static_cast<double>(elements)) : 0.0f;
}

// ---- decode

/// y = sum of q over the first `stages` stages; a.codes has `stages` codes per row. A thread per element. The threads
/// of a row read its codes from cache; y is written once. Bound by memory.
__global__ void __launch_bounds__(threads) rvq_decode_kernel(RvqDecode a, RvqSizes n, int64_t stages) {
  for (int64_t i = grid_thread(); i < n.rows * n.latent; i += grid_threads()) {
    const int64_t row = i / n.latent, c = i % n.latent;
    float y = 0;
    for (int64_t s = 0; s < stages; ++s) {
      const float* code =
          a.codebooks.data + (s * n.codes + clamp_code(a.codes.data[row * stages + s], n.codes)) * n.dim;
      const float q = n.factorised ? project_out(code, a.projections.out_weight.data + (s * n.latent + c) * n.dim,
                                                 a.projections.out_bias.data[s * n.latent + c], n.dim)
                                   : code[c];
      y = s == 0 ? q : y + q;
    }
    a.y.data[i] = y;
  }
}

}  // namespace

Shape rvq_forward_scratch(Context& ctx, Shape z, Shape codebooks, bool factorised, int64_t beam, bool products) {
  const RvqSizes n = rvq_sizes(z, codebooks, factorised);
  // Prepared codebooks, a loss per row; then e of all stages, or the padded weights, or, for rvq_forward_kernel, the
  // residual and e.
  int64_t size = scratch_slack + n.stages * prepared_size(n.codes, n.dim) + n.rows;
  if (products)
    size += projected_size(n);
  else if (group_kernel_supports(n))
    size += padded_weights_size(n);
  else
    size += n.rows * n.latent + (factorised ? n.rows * n.dim : 0);
  if (beam > 1) size += rvq_beam_size(ctx, n, beam);
  return {.channels = size};
}

void rvq_forward(Context& ctx, const RvqForward& a) {
  const RvqSizes n = rvq_sizes(a.z.shape, a.codebooks.shape, static_cast<bool>(a.projections.in_weight));
  const RowMask mask{a.frames.data, a.stages.data, a.z.shape.time, a.z.shape.batch, a.mean ? n.stages : 0};
  float* prepared = aligned_scratch(a.scratch.data);
  // `residuals` is also the place of e of all stages and of the padded weights: only one of the three is used.
  float* residuals = prepared + n.stages * prepared_size(n.codes, n.dim);
  float* projected = residuals + n.rows * n.latent;
  const bool products = static_cast<bool>(a.projections.products);
  float* losses = products                   ? residuals + projected_size(n)
                  : group_kernel_supports(n) ? residuals + padded_weights_size(n)
                                             : projected + (n.factorised ? n.rows * n.dim : 0);
  if (n.rows > 0) {
    // Products decide first, as in the layout of the scratch. A beam has neither products nor projections.
    prepare_codebooks(ctx, a.codebooks.data, n.stages, n.codes, n.dim, a.metric, prepared);
    if (products) {
      rvq_forward_products(ctx, a, n, mask, prepared, residuals, losses);
    } else if (a.beam > 1) {
      rvq_beam_codes(ctx, a, n, prepared, losses + n.rows);
      launch(ctx, {.name = "rvq_forward_given", .grid = blocks_for(n.rows, warps), .block = threads},
             rvq_forward_kernel<false>, a, n, mask, prepared, residuals, projected, losses);
    } else if (group_kernel_supports(n))
      rvq_forward_factorised(ctx, a, n, mask, prepared, residuals, losses);
    else if (tile_kernel_supports(n, a.metric))
      latent_tile(ctx, a, n, mask, prepared, losses);
    else
      launch(ctx, {.name = "rvq_forward", .grid = blocks_for(n.rows, warps), .block = threads},
             rvq_forward_kernel<true>, a, n, mask, prepared, residuals, projected, losses);
  }
  if (a.losses)
    launch(ctx, {.name = "rvq_losses", .block = 1024}, rvq_losses_kernel, losses, n.rows, n.dim, mask, a.losses.data);
}

void rvq_decode(Context& ctx, const RvqDecode& a) {
  RvqSizes n = rvq_sizes(a.y.shape, a.codebooks.shape, static_cast<bool>(a.projections.in_weight));
  // Both kernels add in the same order. The second one takes few rows faster.
  if (n.factorised && n.rows >= least_sum_rows && sum_codes_supports(a.codes.shape.channels, n.dim)) {
    n.stages = a.codes.shape.channels;
    return sum_codes(ctx, a.codes.data, a.codebooks.data, a.projections, n,
                     RowMask{nullptr, nullptr, a.y.shape.time, a.y.shape.batch}, a.y.data);
  }
  launch(ctx, {.name = "rvq_decode", .grid = blocks_for(n.rows * n.latent, threads, 1 << 16), .block = threads},
         rvq_decode_kernel, a, n, a.codes.shape.channels);
}

}  // namespace nacre::cuda
