#include "nacre/ops/convert.h"

#include "runtime/device.cuh"

// Conversion between float and bf16 on the device (contract: nacre/ops/convert.h; twin: convert.cpp). Eight elements
// per thread and step: one 16-byte access on the bf16 side, two on the float side.
namespace nacre::cuda {
namespace {

constexpr int threads = 256, width = 8;

__device__ __forceinline__ void load_eight(const float* p, float (&v)[width]) {
  const Pack<float> low = load_pack(p), high = load_pack(p + 4);
#pragma unroll
  for (int i = 0; i < 4; ++i) v[i] = low.v[i], v[4 + i] = high.v[i];
}
__device__ __forceinline__ void load_eight(const bf16* p, float (&v)[width]) {
  const Pack<bf16> all = load_pack(p);
#pragma unroll
  for (int i = 0; i < width; ++i) v[i] = all.v[i];
}
__device__ __forceinline__ void store_eight(float* p, const float (&v)[width]) {
  store_pack(p, Pack<float>{{v[0], v[1], v[2], v[3]}});
  store_pack(p + 4, Pack<float>{{v[4], v[5], v[6], v[7]}});
}
__device__ __forceinline__ void store_eight(bf16* p, const float (&v)[width]) {
  store_pack(p, Pack<bf16>{{v[0], v[1], v[2], v[3], v[4], v[5], v[6], v[7]}});
}

template <class From, class To>
__global__ void __launch_bounds__(threads)
    convert_kernel(const From* x, To* y, int64_t pack_count, int64_t n, bool add) {
  // Bound by memory. An element of y is read and written by one thread alone. Elements beyond the last whole eight are
  // converted one by one, and so are all elements if an address is not aligned.
  const int64_t first = grid_thread(), step = grid_threads();
  for (int64_t i = first; i < pack_count; i += step) {
    float v[width], sum[width];
    load_eight(x + i * width, v);
    if (add) {
      load_eight(y + i * width, sum);
#pragma unroll
      for (int k = 0; k < width; ++k) v[k] += sum[k];
    }
    store_eight(y + i * width, v);
  }
  for (int64_t i = pack_count * width + first; i < n; i += step)
    y[i] = store<To>(add ? to_float(y[i]) + to_float(x[i]) : to_float(x[i]));
}

}  // namespace

template <class From, class To>
void convert(Context& ctx, const Convert<From, To>& a) {
  const int64_t n = a.x.elements(), pack_count = aligned16(a.x.data) && aligned16(a.y.data) ? n / width : 0;
  launch(ctx, {.name = "convert", .grid = blocks_for(pack_count > 0 ? pack_count : n, threads), .block = threads},
         convert_kernel<From, To>, a.x.data, a.y.data, pack_count, n, a.add);
}

template void convert<float, bf16>(Context&, const Convert<float, bf16>&);
template void convert<bf16, float>(Context&, const Convert<bf16, float>&);

}  // namespace nacre::cuda
