// Products of projections (rvq_products), and the plain kernel that uses them: a warp per row, for any shape.
// nacre/ops/rvq.h gives the formulas; rvq_algebra.cpp is the same on the CPU, rvq_algebra.cu has the fast kernels.
#include "quantizer/rvq_algebra.cuh"

namespace nacre::cuda {
namespace {

constexpr int threads = 256, warps = threads / 32;

/// to [1 + all][all], all = stages dim: row 0 the starts s_i, then row 1 + j dim + d with column d of P_ij for all i. A
/// warp computes `dim` elements of one column: those of stage j, or, for j = stages, the column's number of row 0. A
/// column is a row of W_in: channel column % dim of stage i. Elements with j >= i are zeros. Lane l adds the channels
/// l, l + 32, ... of the latent, then the warp adds its lanes.
__global__ void __launch_bounds__(threads)
    rvq_products_kernel(RvqProjections p, int stages, int dim, int latent, float* to) {
  const int lane = static_cast<int>(threadIdx.x) % 32, all = stages * dim;
  const int64_t task = int64_t{blockIdx.x} * warps + threadIdx.x / 32;
  if (task >= int64_t{all} * (stages + 1)) return;
  const int column = static_cast<int>(task % all), j = static_cast<int>(task / all), i = column / dim;
  const float* w = p.in_weight.data + int64_t{column} * latent;
  // The column's row of W_in times x, whose elements are `step` floats apart: 1 for b_out, dim for a column of W_out.
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

/// A warp takes one row through all stages. `projected` [rows][stages dim] has e of all stages: first W_in_i z + s_i,
/// then each stage subtracts the share of its code from the later stages. Lanes share the row through global
/// memory, so __syncwarp() stands between the writes of a stage and the reads of the next one.
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
    // Lanes have adjacent columns: loads of e and of the products are coalesced. The order over d is that of the
    // contract.
    for (int64_t later = (i + 1) * n.dim + lane; later < all; later += 32) {
      float v = e[later];
      for (int64_t d = 0; d < n.dim; ++d) v = __fmaf_rn(-code[d], p[d * stride + later], v);
      e[later] = v;
    }
  }
  if (lane == 0 && losses != nullptr) losses[row] = loss;
  if (!a.y) return;
  __syncwarp();
  // y of a lane's channels. The barrier before makes the codes, which lane 0 wrote, visible to all lanes.
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

}  // namespace

void rvq_forward_small(Context& ctx, const RvqForward& a, const RvqSizes& n, const RowMask& mask, const float* prepared,
                       float* projected, float* losses) {
  launch(ctx, {.name = "rvq_forward_small", .grid = blocks_for(n.rows, warps), .block = threads}, rvq_small_kernel, a,
         n, mask, prepared, projected, losses);
}

void rvq_products(Context& ctx, const RvqProducts& a) {
  const Shape in = a.projections.in_weight.shape;
  launch(ctx,
         {.name = "rvq_products", .grid = blocks_for(in.batch * in.time * (in.batch + 1), warps), .block = threads},
         rvq_products_kernel, a.projections, static_cast<int>(in.batch), static_cast<int>(in.time),
         static_cast<int>(in.channels), a.y.data);
}

}  // namespace nacre::cuda
