#include "quantizer/rows_of_codes.cuh"
#include "quantizer/rvq_factorised.cuh"
#include "runtime/partials.cuh"

// rvq_backward on CUDA; rvq.cpp is the same on the CPU, and nacre/ops/rvq.h gives the formulas.
//
//   latent codes   rvq_error_sums (orthogonal only): the two sums of b;  rvq_latent_backward: dz
//   factorised     rvq_chain: de, residuals and dq of all stages, and dz;  rvq_parameters: gradients of the
//                  projections. Codes of 8 channels have faster kernels, in rvq_factorised_backward.cu
//   both           vq_codes and rvq_codebook_backward: dcodebooks
namespace nacre::cuda {
namespace {

constexpr int threads = RowsOfCodes::threads, warps = RowsOfCodes::warps;

// ---- latent codes

static_assert(threads == sum_threads);

/// z - y of one channel after `used` >= 1 stages: the last stage's residual minus its code.
__device__ __forceinline__ float residual_after(const RvqBackward& a, const RvqSizes& n, int64_t row, int64_t c,
                                                int64_t used) {
  const int64_t s = used - 1, k = clamp_code(a.codes.data[row * n.stages + s], n.codes);
  return a.quantised.data[(s * n.rows + row) * n.dim + c] - a.codebooks.data[(s * n.codes + k) * n.dim + c];
}

/// A block per part of the elements, 4096 of [rows][latent]: sums of e.e and of dy.e, with e = y - z, over valid rows
/// that use a stage. `sums` has the first for all parts, then the second, as doubles. In double, because the products
/// may cancel and the quotient of the two sums scales a gradient.
__global__ void __launch_bounds__(threads)
    rvq_error_sums_kernel(RvqBackward a, RvqSizes n, RowMask mask, int64_t parts, float* sums) {
  NACRE_SHARED(double, buffer, threads / 32);
  const int64_t elements = n.rows * n.latent, begin = int64_t{blockIdx.x} * sum_part;
  const int64_t end = begin + sum_part < elements ? begin + sum_part : elements;
  double squares = 0, products = 0;
  for (int64_t i = begin + threadIdx.x; i < end; i += threads) {
    const int64_t row = i / n.latent, used = mask.stages_used(row, n.stages);
    if (used == 0 || !mask.valid(row)) continue;
    // The contract's e is y - z.
    const double error = -static_cast<double>(residual_after(a, n, row, i % n.latent, used));
    squares += error * error;
    products += error * static_cast<double>(a.dy.data[i]);
  }
  squares = block_sum<threads>(squares, buffer);
  products = block_sum<threads>(products, buffer);
  if (threadIdx.x != 0) return;
  put_partial(sums, blockIdx.x, squares);
  put_partial(sums, parts + blockIdx.x, products);
}

/// dz of latent codes. A thread per element and turn. Bound by memory: dy, and per used stage the row of `quantised`;
/// codes come from cache. With `orthogonal` every block adds the partial sums again, so there are at most max_blocks.
/// Rows beyond an item's frames pass dy through unchanged.
constexpr int64_t max_blocks = 1024;
constexpr double max_float = 0x1.fffffep127;
__global__ void __launch_bounds__(threads)
    rvq_latent_backward_kernel(RvqBackward a, RvqSizes n, RowMask mask, int64_t parts, const float* sums) {
  const float scale = loss_slope(mask, n.dim, a.commitment_weight);
  float factor = 0;
  if (a.orthogonal) {
    NACRE_SHARED(double, buffer, threads / 32);
    const double squares = sum_partials(sums, parts, buffer), products = sum_partials(sums + 2 * parts, parts, buffer);
    // As error_factor() in rvq.cpp: b = 0 without an error, and if b is no float.
    const double b = products / squares;
    factor = squares == 0 || fabs(b) > max_float ? 0.0f : static_cast<float>(b);
  }
  for (int64_t i = grid_thread(); i < n.rows * n.latent; i += grid_threads()) {
    const int64_t row = i / n.latent, c = i % n.latent;
    float dz = a.add_dz ? a.dz.data[i] + a.dy.data[i] : a.dy.data[i];
    const int64_t used = mask.valid(row) ? mask.stages_used(row, n.stages) : 0;
    if (factor != 0 && used > 0) dz = __fmaf_rn(factor, residual_after(a, n, row, c, used), dz);
    if (scale != 0)
      for (int64_t s = 0; s < used; ++s) {
        const int64_t k = clamp_code(a.codes.data[row * n.stages + s], n.codes);
        const float difference =
            a.quantised.data[(s * n.rows + row) * n.dim + c] - a.codebooks.data[(s * n.codes + k) * n.dim + c];
        dz = __fmaf_rn(scale, difference, dz);
      }
    a.dz.data[i] = dz;
  }
}

// ---- codebooks

constexpr int chunk = 128;  ///< channels that a warp handles at a time: four per lane

struct Channels {
  float v[4];
};

/// dcodebooks += scale (E[c] - e) of the rows that chose c: a warp per stage and code adds its rows in order.
/// `by_stage` [stages][rows] has the codes, negative for rows that do not count. Lane l has channels l, l + 32, l + 64
/// and l + 96 of a chunk. Warps beyond the last code have no rows, but take part in the barriers of for_each().
__global__ void __launch_bounds__(threads)
    rvq_codebook_backward_kernel(RvqBackward a, RvqSizes n, RowMask mask, const int32_t* by_stage) {
  NACRE_SHARED(RowsOfCodes::Shared, shared, 1);
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int64_t first = int64_t{blockIdx.x} * warps, k = first + threadIdx.x / 32, s = blockIdx.y;
  const RowsOfCodes own(by_stage + s * n.rows, n.rows, first, *shared);
  const float scale = loss_slope(mask, n.dim, a.codebook_weight);
  const float* code = a.codebooks.data + (s * n.codes + k) * n.dim;
  float* out = a.dcodebooks.data + (s * n.codes + k) * n.dim;
  for (int64_t d0 = 0; d0 < n.dim; d0 += chunk) {
    // Gradients continue from what is there (+=), in the order of rows; a code without rows is not written.
    float c[4], sum[4];
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const int64_t d = d0 + lane + 32 * j;
      const bool exists = k < n.codes && d < n.dim;
      c[j] = exists ? code[d] : 0.0f;
      sum[j] = exists ? out[d] : 0.0f;
    }
    const int64_t found = own.for_each<Channels>(
        [&](int64_t row, Channels& q) {
          const float* from = a.quantised.data + (s * n.rows + row) * n.dim + d0 + lane;
#pragma unroll
          for (int j = 0; j < 4; ++j) q.v[j] = d0 + lane + 32 * j < n.dim ? from[32 * j] : 0.0f;
        },
        [&](const Channels& q) {
#pragma unroll
          for (int j = 0; j < 4; ++j) sum[j] = __fmaf_rn(scale, c[j] - q.v[j], sum[j]);
        });
    if (found == 0) continue;
#pragma unroll
    for (int j = 0; j < 4; ++j)
      if (d0 + lane + 32 * j < n.dim) out[d0 + lane + 32 * j] = sum[j];
  }
}

// ---- factorised codes, any shape

/// A warp takes one row back through all stages. It stores de [stages][rows][dim], and residuals and dq
/// [stages][rows][latent], for rvq_parameters_kernel. `gradient` [rows][latent] is work space for g.
__global__ void __launch_bounds__(threads)
    rvq_chain_kernel(RvqBackward a, RvqSizes n, RowMask mask, float* de, float* residuals, float* dq, float* gradient) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int64_t row = int64_t{blockIdx.x} * warps + threadIdx.x / 32;
  if (row >= n.rows) return;
  const float scale = loss_slope(mask, n.dim, a.commitment_weight);
  // As factorised_backward in rvq.cpp, with all residuals stored. Lane l owns channels l, l + 32, ... of residuals, dq
  // and g; de goes through memory from lane 0 to all, hence the warp barrier. Each stage has a de of its own, so one
  // barrier per stage is enough.
  const auto code_of = [&](int64_t i) {
    return a.codebooks.data + (i * n.codes + clamp_code(a.codes.data[row * n.stages + i], n.codes)) * n.dim;
  };
  float* g = gradient + row * n.latent;
  for (int64_t c = lane; c < n.latent; c += 32) {
    float r = a.z.data[row * n.latent + c];
    for (int64_t i = 0; i < n.stages; ++i) {
      residuals[(i * n.rows + row) * n.latent + c] = r;
      r -= project_out(code_of(i), a.projections.out_weight.data + (i * n.latent + c) * n.dim,
                       a.projections.out_bias.data[i * n.latent + c], n.dim);
    }
    g[c] = 0;
  }
  for (int64_t i = n.stages - 1; i >= 0; --i) {
    const bool used = mask.used(row, i), counted = used && mask.valid(row);
    const float* code = code_of(i);
    float* dq_row = dq + (i * n.rows + row) * n.latent;
    float* de_row = de + (i * n.rows + row) * n.dim;
    for (int64_t c = lane; c < n.latent; c += 32) dq_row[c] = used ? a.dy.data[row * n.latent + c] - g[c] : -g[c];
    for (int64_t d = 0; d < n.dim; ++d) {
      float sum = 0;
      for (int64_t c = lane; c < n.latent; c += 32)
        sum = __fmaf_rn(dq_row[c], a.projections.out_weight.data[(i * n.latent + c) * n.dim + d], sum);
      sum = warp_sum(sum);
      if (counted) sum = __fmaf_rn(scale, a.quantised.data[(i * n.rows + row) * n.dim + d] - code[d], sum);
      if (lane == 0) de_row[d] = sum;
    }
    __syncwarp();
    for (int64_t c = lane; c < n.latent; c += 32) {
      float sum = g[c];
      for (int64_t d = 0; d < n.dim; ++d)
        sum = __fmaf_rn(de_row[d], a.projections.in_weight.data[(i * n.dim + d) * n.latent + c], sum);
      g[c] = sum;
    }
  }
  if (!a.dz) return;
  float* dz = a.dz.data + row * n.latent;
  for (int64_t c = lane; c < n.latent; c += 32) dz[c] = a.add_dz ? dz[c] + g[c] : g[c];
}

constexpr int64_t max_runs = 8;

/// Sum over all rows, in at most max_runs runs: term(row, sum) adds a row to the sum of its run; run sums are added in
/// order.
template <class Term>
__device__ __forceinline__ float sum_of_runs(int64_t rows, Term&& term) {
  // Runs of at least 64 rows: rounding errors grow with the length of a run, not with all rows. Fixed by the shape
  // alone.
  const int64_t runs = rows / 64 < 1 ? 1 : (rows / 64 < max_runs ? rows / 64 : max_runs);
  float total = 0;
  for (int64_t run = 0; run < runs; ++run) {
    float sum = 0;
    for (int64_t row = rows * run / runs; row < rows * (run + 1) / runs; ++row) sum = term(row, sum);
    total += sum;
  }
  return total;
}

/// A thread per stage, code channel d and latent channel c: one element of both weight gradients. Threads of c = 0 and
/// of d = 0 also compute the bias gradients.
__global__ void __launch_bounds__(threads)
    rvq_parameters_kernel(RvqBackward a, RvqSizes n, const float* de, const float* residuals, const float* dq) {
  // Lanes have adjacent latent channels: residuals and dq are coalesced; de and codes are the same for all lanes.
  const int64_t c = grid_thread(), d = blockIdx.y, i = blockIdx.z;
  if (c >= n.latent) return;
  const float* de_column = de + i * n.rows * n.dim + d;
  const float *residual_column = residuals + i * n.rows * n.latent + c, *dq_column = dq + i * n.rows * n.latent + c;
  if (a.din_weight)
    a.din_weight.data[(i * n.dim + d) * n.latent + c] += sum_of_runs(n.rows, [&](int64_t row, float sum) {
      return __fmaf_rn(de_column[row * n.dim], residual_column[row * n.latent], sum);
    });
  if (a.dout_weight)
    a.dout_weight.data[(i * n.latent + c) * n.dim + d] += sum_of_runs(n.rows, [&](int64_t row, float sum) {
      const int64_t k = clamp_code(a.codes.data[row * n.stages + i], n.codes);
      return __fmaf_rn(a.codebooks.data[(i * n.codes + k) * n.dim + d], dq_column[row * n.latent], sum);
    });
  if (a.din_bias && c == 0)
    a.din_bias.data[i * n.dim + d] +=
        sum_of_runs(n.rows, [&](int64_t row, float sum) { return sum + de_column[row * n.dim]; });
  if (a.dout_bias && d == 0)
    a.dout_bias.data[i * n.latent + c] +=
        sum_of_runs(n.rows, [&](int64_t row, float sum) { return sum + dq_column[row * n.latent]; });
}

}  // namespace

Shape rvq_backward_scratch(Shape z, Shape codebooks, bool factorised) {
  const RvqSizes n = rvq_sizes(z, codebooks, factorised);
  // The codes by stage; then two partial sums per part (latent codes), the space of the fast kernels, or de, residuals
  // and dq of all stages and g of one.
  const int64_t by_stage = n.rows * n.stages;
  if (!factorised) return {.channels = by_stage + 4 * sum_parts(n.rows * n.latent)};
  if (group_kernel_supports(n)) return {.channels = by_stage + rvq_backward_factorised_size(n)};
  return {.channels = by_stage + n.rows * (n.stages * (n.dim + 2 * n.latent) + n.latent)};
}

void rvq_backward(Context& ctx, const RvqBackward& a) {
  const RvqSizes n = rvq_sizes(a.dy.shape, a.codebooks.shape, static_cast<bool>(a.projections.in_weight));
  if (n.rows == 0) return;
  const RowMask mask{a.frames.data, a.stages.data, a.dy.shape.time, a.dy.shape.batch, a.mean ? n.stages : 0};
  const int64_t rows = n.rows * n.stages;
  int32_t* by_stage = reinterpret_cast<int32_t*>(a.scratch.data);
  if (group_kernel_supports(n)) {
    rvq_backward_factorised(ctx, a, n, mask, a.scratch.data + rows);
  } else if (n.factorised) {
    float* de = a.scratch.data + rows;
    float* residuals = de + rows * n.dim;
    float* dq = residuals + rows * n.latent;
    float* g = dq + rows * n.latent;
    launch(ctx, {.name = "rvq_chain", .grid = blocks_for(n.rows, warps), .block = threads}, rvq_chain_kernel, a, n,
           mask, de, residuals, dq, g);
    if (a.din_weight || a.din_bias || a.dout_weight || a.dout_bias)
      launch(ctx,
             {.name = "rvq_parameters",
              .grid = {blocks_for(n.latent, threads), static_cast<unsigned>(n.dim), static_cast<unsigned>(n.stages)},
              .block = threads},
             rvq_parameters_kernel, a, n, de, residuals, dq);
  } else if (a.dz) {
    const int64_t parts = sum_parts(n.rows * n.latent);
    float* sums = a.scratch.data + rows;
    if (a.orthogonal)
      launch(ctx, {.name = "rvq_error_sums", .grid = static_cast<unsigned>(parts), .block = threads},
             rvq_error_sums_kernel, a, n, mask, parts, sums);
    launch(ctx,
           {.name = "rvq_latent_backward",
            .grid = blocks_for(n.rows * n.latent, threads, a.orthogonal ? max_blocks : 1 << 16),
            .block = threads},
           rvq_latent_backward_kernel, a, n, mask, parts, static_cast<const float*>(sums));
  }
  // By code instead of by row, so that no two warps add to the same code. The masks become negative codes here.
  if (!a.dcodebooks) return;
  transpose_codes(ctx, a.codes.data, n.rows, n.stages, n.codes, mask, by_stage);
  launch(ctx,
         {.name = "rvq_codebook_backward",
          .grid = {blocks_for(n.codes, warps), static_cast<unsigned>(n.stages), 1},
          .block = threads},
         rvq_codebook_backward_kernel, a, n, mask, by_stage);
}

}  // namespace nacre::cuda
