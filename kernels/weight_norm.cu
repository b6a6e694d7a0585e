#include "nacre/ops/weight_norm.h"

#include "weight_norm.cuh"

// One launch for all rows of all layers, a block per row: forward 8 bytes per weight (6 for bf16) and backward 16, when
// the second reading of a row comes from the cache (a row is 43 KB at most in the codecs at hand).
namespace nacre::cuda {
namespace {

template <class T>
__global__ void __launch_bounds__(row_threads) weight_norm_forward_kernel(WeightNormForward<T> a) {
  NACRE_SHARED(double, buffer, row_threads / 32);
  const WeightRow row = a.rows.data[blockIdx.x];
  const float* const v = a.v.data + row.offset;
  const double inverse = inverse_norm(row_dot(v, v, row.length, buffer));
  scale_row(v, static_cast<float>(static_cast<double>(a.g.data[row.gain]) * inverse), row.length,
            a.w.data + row.offset);
}

__global__ void __launch_bounds__(row_threads) weight_norm_backward_kernel(WeightNormBackward a) {
  NACRE_SHARED(double, buffer, row_threads / 32);
  const WeightRow row = a.rows.data[blockIdx.x];
  const float *const v = a.v.data + row.offset, *const dw = a.dw.data + row.offset;
  float* const dv = a.dv.data + row.offset;
  const double inverse = inverse_norm(row_dot(v, v, row.length, buffer));
  const double dot = row_dot(dw, v, row.length, buffer);
  if (inverse == 0) return;
  const double dg = dot * inverse, factor = static_cast<double>(a.g.data[row.gain]) * inverse;
  const float of_dw = static_cast<float>(factor), of_v = static_cast<float>(factor * dg * inverse);
  if (row_packs(row.length, v) && row_packs(row.length, dw) && row_packs(row.length, dv)) {
    for (int64_t i = int64_t{threadIdx.x} * 4; i < row.length; i += row_threads * 4) {
      const Pack<float> x = load_pack(v + i), d = load_pack(dw + i);
      Pack<float> sum = load_pack(dv + i);
#pragma unroll
      for (int k = 0; k < 4; ++k) sum.v[k] += of_dw * d.v[k] - of_v * x.v[k];
      store_pack(dv + i, sum);
    }
  } else {
    for (int64_t i = threadIdx.x; i < row.length; i += row_threads) dv[i] += of_dw * dw[i] - of_v * v[i];
  }
  if (threadIdx.x == 0) a.dg.data[row.gain] += static_cast<float>(dg);
}

}  // namespace

template <class T>
void weight_norm_forward(Context& ctx, const WeightNormForward<T>& a) {
  launch(ctx, {.name = "weight_norm_forward", .grid = static_cast<unsigned>(a.rows.elements()), .block = row_threads},
         weight_norm_forward_kernel<T>, a);
}
void weight_norm_backward(Context& ctx, const WeightNormBackward& a) {
  launch(ctx, {.name = "weight_norm_backward", .grid = static_cast<unsigned>(a.rows.elements()), .block = row_threads},
         weight_norm_backward_kernel, a);
}

template void weight_norm_forward<float>(Context&, const WeightNormForward<float>&);
template void weight_norm_forward<bf16>(Context&, const WeightNormForward<bf16>&);

}  // namespace nacre::cuda
