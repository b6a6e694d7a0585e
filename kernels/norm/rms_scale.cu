#include "nacre/ops/rms_scale.h"

#include "runtime/partials.cuh"

// The level of items and the scaling by it on CUDA; rms_scale.cpp is the same on the CPU. nacre/ops/rms_scale.h gives
// the formulas.
//
// rms_scale: two launches. A block adds a part of one item, as many whole samples as have at most 4096 elements, to a
// double in scratch; then a block per item adds the item's parts. Parts begin anew with each item, and items of
// different lengths have the same number of parts: those behind the length add zeros. scale_items: one launch over
// parts of one item.
namespace nacre::cuda {
namespace {

/// Samples per block.
int64_t part_samples(Shape x) { return sum_part / x.channels; }
int64_t parts_of(Shape x) { return ceil_div(x.time, part_samples(x)); }

/// Samples of an item within its length, which is clamped to [0, time].
__device__ __forceinline__ int64_t valid_samples(const RmsScale& a, int64_t item) {
  const int64_t time = a.x.shape.time;
  if (a.lengths.data == nullptr) return time;
  const int64_t n = a.lengths.data[item];
  return n < 0 ? 0 : n < time ? n : time;
}
/// The block's samples: its item, the first sample in that item, and how many are valid.
struct Part {
  int64_t item, begin;
  int n;
  __device__ __forceinline__ Part(const RmsScale& a, int64_t parts, int64_t samples) : item(blockIdx.x / parts) {
    begin = (blockIdx.x - item * parts) * samples;
    const int64_t valid = valid_samples(a, item) - begin;
    n = static_cast<int>(valid < 0 ? 0 : valid < samples ? valid : samples);
  }
};
/// Adds the sums of the block's threads and stores the result as the block's partial.
__device__ __forceinline__ void put_sum(const RmsScale& a, double sum, double* buffer) {
  sum = block_sum<sum_threads>(sum, buffer);
  if (threadIdx.x == 0) put_partial(a.scratch.data, blockIdx.x, sum);
}

/// Any number of channels: thread i takes the samples i, i + threads, ... Adjacent threads are `channels` floats apart.
__global__ void __launch_bounds__(sum_threads) rms_scale_parts_kernel(RmsScale a, int64_t parts, int64_t samples) {
  NACRE_SHARED(double, buffer, sum_threads / 32);
  const Part p(a, parts, samples);
  const int64_t channels = a.x.shape.channels;
  const float* const x = a.x.data + (p.item * a.x.shape.time + p.begin) * channels;
  double sum = 0;
  for (int t = static_cast<int>(threadIdx.x); t < p.n; t += sum_threads) {
    double m = 0;
    for (int64_t c = 0; c < channels; ++c) m += static_cast<double>(x[t * channels + c]);
    sum += m * m;
  }
  put_sum(a, sum, buffer);
}

/// One channel or two. Thread i takes elements 4 i .. 4 i + 3 of each 1024, whether aligned or not, so that the order
/// of the sum does not depend on addresses.
template <int channels, bool aligned>
__global__ void __launch_bounds__(sum_threads) rms_scale_packs_kernel(RmsScale a, int64_t parts) {
  NACRE_SHARED(double, buffer, sum_threads / 32);
  constexpr int P = pack_size<float>;
  const Part p(a, parts, sum_part / channels);
  const float* const x = a.x.data + (p.item * a.x.shape.time + p.begin) * channels;
  const int valid = p.n * channels;
  double sum = 0;
#pragma unroll
  for (int step = 0; step < sum_part / (P * sum_threads); ++step) {
    const int offset = (step * sum_threads + static_cast<int>(threadIdx.x)) * P;
    // Zero behind the valid samples.
    const Pack<float> v =
        aligned && offset + P <= valid ? load_pack(x + offset) : load_some(x + offset, valid - offset);
#pragma unroll
    for (int i = 0; i < P; i += channels) {
      double m = static_cast<double>(v.v[i]);
      if constexpr (channels == 2) m += static_cast<double>(v.v[i + 1]);
      sum += m * m;
    }
  }
  put_sum(a, sum, buffer);
}

/// A block per item: scale = eps + sqrt(sum of its parts / (samples channels^2)). An item without samples divides 0 by
/// channels^2, so its scale is eps.
__global__ void __launch_bounds__(sum_threads) rms_scale_kernel(RmsScale a, int64_t parts) {
  NACRE_SHARED(double, buffer, sum_threads / 32);
  const int64_t item = blockIdx.x, channels = a.x.shape.channels, valid = valid_samples(a, item);
  const double sum = sum_partials(a.scratch.data + 2 * item * parts, parts, buffer);
  if (threadIdx.x != 0) return;
  // The squares are those of sums over channels, not of means.
  const auto count = static_cast<double>((valid > 0 ? valid : 1) * channels * channels);
  a.scale.data[item] = static_cast<float>(static_cast<double>(a.eps) + sqrt(sum / count));
}

/// A block has a part of one item: sum_part elements, four packs per thread. y may be x: a thread reads its elements
/// before it writes them, and no other thread touches them.
template <bool aligned>
__global__ void __launch_bounds__(sum_threads) scale_items_kernel(ScaleItems a, int64_t per_item, int64_t parts) {
  constexpr int P = pack_size<float>;
  const int64_t item = blockIdx.x / parts, begin = (blockIdx.x - item * parts) * sum_part, rest = per_item - begin;
  const int n = static_cast<int>(rest < sum_part ? rest : sum_part);
  const float* const x = a.x.data + item * per_item + begin;
  float* const y = a.y.data + item * per_item + begin;
  const float scale = a.scale.data[item];
#pragma unroll
  for (int step = 0; step < sum_part / (P * sum_threads); ++step) {
    const int offset = (step * sum_threads + static_cast<int>(threadIdx.x)) * P;
    if (offset >= n) return;
    const bool full_pack = aligned && offset + P <= n;
    Pack<float> v = full_pack ? load_pack(x + offset) : load_some(x + offset, n - offset);
    Pack<float> before{};
    if (a.add) before = full_pack ? load_pack(y + offset) : load_some(y + offset, n - offset);
#pragma unroll
    for (int i = 0; i < P; ++i) {
      v.v[i] = a.divide ? v.v[i] / scale : v.v[i] * scale;
      if (a.add) v.v[i] += before.v[i];
    }
    if (full_pack)
      store_pack(y + offset, v);
    else
      store_some(y + offset, v, n - offset);
  }
}

}  // namespace

Shape rms_scale_scratch(Shape x) { return {.channels = 2 * x.batch * parts_of(x)}; }

void rms_scale(Context& ctx, const RmsScale& a) {
  const Shape s = a.x.shape;
  if (s.batch == 0) return;
  const int64_t parts = parts_of(s), channels = s.channels;
  const unsigned grid = blocks_for(s.batch * parts, 1);
  const bool aligned = s.time * channels % pack_size<float> == 0 && aligned16(a.x.data);
  if (channels > 2)
    launch(ctx, {.name = "rms_scale_parts", .grid = grid, .block = sum_threads}, rms_scale_parts_kernel, a, parts,
           part_samples(s));
  else if (channels == 2)
    launch(ctx, {.name = "rms_scale_packs", .grid = grid, .block = sum_threads},
           aligned ? rms_scale_packs_kernel<2, true> : rms_scale_packs_kernel<2, false>, a, parts);
  else
    launch(ctx, {.name = "rms_scale_packs", .grid = grid, .block = sum_threads},
           aligned ? rms_scale_packs_kernel<1, true> : rms_scale_packs_kernel<1, false>, a, parts);
  launch(ctx, {.name = "rms_scale", .grid = blocks_for(s.batch, 1), .block = sum_threads}, rms_scale_kernel, a, parts);
}

void scale_items(Context& ctx, const ScaleItems& a) {
  const Shape s = a.x.shape;
  if (s.elements() == 0) return;
  const int64_t per_item = s.time * s.width * s.channels, parts = sum_parts(per_item);
  const bool aligned = per_item % pack_size<float> == 0 && aligned16(a.x.data) && aligned16(a.y.data);
  launch(ctx, {.name = "scale_items", .grid = blocks_for(s.batch * parts, 1), .block = sum_threads},
         aligned ? scale_items_kernel<true> : scale_items_kernel<false>, a, per_item, parts);
}

}  // namespace nacre::cuda
