#include "nacre/ops/weight_norm.h"

#include "optimizer/weight_norm.cuh"

// Weight normalisation on the device (formulas and contract: nacre/ops/weight_norm.h; rows and teams: weight_norm.cuh;
// twin: weight_norm.cpp). One launch for all rows of all layers. Forward moves 8 bytes per weight (6 for bf16) and
// backward 16, if the second read of a row comes from cache (rows of the supported codecs have at most 48 KB).
namespace nacre::cuda {
namespace {

/// w = g v / |v|, or v without a gain (factor 1, which keeps the bits).
template <class T>
__global__ void __launch_bounds__(row_threads) weight_norm_forward_kernel(WeightNormForward<T> a, int per_block) {
  each_row(a.rows, per_block, [&](const auto& team, int64_t, const WeightRow& row) {
    const float* const v = a.v.data + row.offset;
    double factor = 1;
    if (row.gain != WeightRow::no_gain)
      factor = static_cast<double>(a.g.data[row.gain]) * inverse_norm(row_dot(team, v, v, row.length));
    scale_row(team, v, static_cast<float>(factor), row.length, a.w.data + row.offset);
  });
}

/// dv += of_dw dw - of_v v, where of_dw = g / |v| and of_v = g / |v| dg / |v|; dg += dw . v / |v|. Without a gain of_dw
/// = 1 and of_v = 0. row_dot gives all threads of the team the same sums, so they leave together if the row has no
/// direction.
template <class Team>
__device__ __forceinline__ void backward_row(const WeightNormBackward& a, const Team& team, const WeightRow& row) {
  const float *const v = a.v.data + row.offset, *const dw = a.dw.data + row.offset;
  float* const dv = a.dv.data + row.offset;
  const bool has_gain = row.gain != WeightRow::no_gain;
  float of_dw = 1, of_v = 0;
  double dg = 0;
  if (has_gain) {
    const double inverse = inverse_norm(row_dot(team, v, v, row.length));
    const double dot = row_dot(team, dw, v, row.length);
    // A row without a direction: dv and dg do not change.
    if (inverse == 0) return;
    dg = dot * inverse;
    const double factor = static_cast<double>(a.g.data[row.gain]) * inverse;
    of_dw = static_cast<float>(factor), of_v = static_cast<float>(factor * dg * inverse);
  }
  if (row_vectorizable(row.length, v) && row_vectorizable(row.length, dw) && row_vectorizable(row.length, dv)) {
    for (int64_t i = int64_t{team.thread} * 4; i < row.length; i += Team::threads * 4) {
      const Pack<float> x = load_pack(v + i), d = load_pack(dw + i);
      Pack<float> sum = load_pack(dv + i);
#pragma unroll
      for (int k = 0; k < 4; ++k) sum.v[k] += of_dw * d.v[k] - of_v * x.v[k];
      store_pack(dv + i, sum);
    }
  } else {
    for (int64_t i = team.thread; i < row.length; i += Team::threads) dv[i] += of_dw * dw[i] - of_v * v[i];
  }
  if (has_gain && team.thread == 0) a.dg.data[row.gain] += static_cast<float>(dg);
}
__global__ void __launch_bounds__(row_threads) weight_norm_backward_kernel(WeightNormBackward a, int per_block) {
  each_row(a.rows, per_block, [&](const auto& team, int64_t, const WeightRow& row) { backward_row(a, team, row); });
}

}  // namespace

template <class T>
void weight_norm_forward(Context& ctx, const WeightNormForward<T>& a) {
  const int64_t rows = a.rows.elements();
  const int per_block = rows_per_block(ctx, rows);
  launch(ctx, {.name = "weight_norm_forward", .grid = blocks_for(rows, per_block), .block = row_threads},
         weight_norm_forward_kernel<T>, a, per_block);
}
void weight_norm_backward(Context& ctx, const WeightNormBackward& a) {
  const int64_t rows = a.rows.elements();
  const int per_block = rows_per_block(ctx, rows);
  launch(ctx, {.name = "weight_norm_backward", .grid = blocks_for(rows, per_block), .block = row_threads},
         weight_norm_backward_kernel, a, per_block);
}

template void weight_norm_forward<float>(Context&, const WeightNormForward<float>&);
template void weight_norm_forward<bf16>(Context&, const WeightNormForward<bf16>&);

}  // namespace nacre::cuda
