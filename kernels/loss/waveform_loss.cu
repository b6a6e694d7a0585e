#include "nacre/ops/waveform_loss.h"

#include "loss/distance.h"
#include "runtime/partials.cuh"

// waveform_loss on the device (contract: nacre/ops/waveform_loss.h; twin: waveform_loss.cpp).
// Two launches: parts of 4096 samples with their gradient, then the sum of the parts. 12 bytes per sample: 14.6 MB for
// 72 x 16896 samples, 3.4 us at the copy rate. Parts begin anew with each item; `frame` is the number of elements per
// time step, width x channels.
namespace nacre::cuda {
namespace {

/// Elements of an item that count: the first lengths[item] time steps, clamped to [0, time].
__device__ __forceinline__ int64_t valid_samples(const WaveformLoss& a, int64_t item, int64_t frame) {
  const Shape s = a.estimate.shape;
  if (a.lengths.data == nullptr) return s.time * frame;
  const int64_t n = a.lengths.data[item];
  return (n < 0 ? 0 : n < s.time ? n : s.time) * frame;
}
/// 1 / (valid samples of the batch), the same in every thread. The sum is of integers, so its order does not matter.
__device__ __forceinline__ double mean_weight(const WaveformLoss& a, int64_t frame, int64_t* buffer) {
  const Shape s = a.estimate.shape;
  int64_t count = 0;
  if (a.lengths.data == nullptr)
    count = s.elements();
  else {
    for (int64_t item = threadIdx.x; item < s.batch; item += sum_threads) count += valid_samples(a, item, frame);
    count = block_sum<sum_threads>(count, buffer);
  }
  return count > 0 ? 1 / static_cast<double>(count) : 0;
}

/// One part per block. Thread i takes samples 4 i .. 4 i + 3 of each 1024, whether aligned or not, so that the order of
/// the sum does not depend on addresses.
template <bool aligned>
__global__ void __launch_bounds__(sum_threads) waveform_loss_kernel(WaveformLoss a, int64_t frame, int64_t parts) {
  NACRE_SHARED(double, sums, sum_threads / 32);
  NACRE_SHARED(int64_t, counts, sum_threads / 32);
  constexpr int P = pack_size<float>;
  const bool squared = a.norm == WaveformNorm::l2;
  // Every block counts the valid samples itself: a few integers per item, instead of one more launch.
  const double weight = mean_weight(a, frame, counts);
  const float scale = static_cast<float>(squared ? 2 * weight : weight);
  // A block has one part of one item: 4096 samples, of which the first `valid` count. Both arrays are read once; the
  // gradient of the others is zero.
  const int64_t item = blockIdx.x / parts, per_item = a.estimate.shape.time * frame,
                begin = (blockIdx.x - item * parts) * sum_part;
  const int64_t remaining = per_item - begin, valid_remaining = valid_samples(a, item, frame) - begin;
  const int n = static_cast<int>(remaining < sum_part ? remaining : sum_part);
  const int valid = static_cast<int>(valid_remaining < 0 ? 0 : valid_remaining < n ? valid_remaining : n);
  const float *estimate = a.estimate.data + item * per_item + begin, *target = a.target.data + item * per_item + begin;
  float* const gradient = a.gradient.data == nullptr ? nullptr : a.gradient.data + item * per_item + begin;
  double sum = 0;
#pragma unroll
  for (int step = 0; step < sum_part / (P * sum_threads); ++step) {
    const int offset = (step * sum_threads + static_cast<int>(threadIdx.x)) * P;
    const bool full_pack = aligned && offset + P <= valid;
    const Pack<float> e = full_pack ? load_pack(estimate + offset) : load_some(estimate + offset, valid - offset);
    const Pack<float> t = full_pack ? load_pack(target + offset) : load_some(target + offset, valid - offset);
    Pack<float> g;
#pragma unroll
    for (int i = 0; i < P; ++i) {
      const float d = e.v[i] - t.v[i];  // zero beyond the valid samples
      const double wide = static_cast<double>(d);
      sum += squared ? wide * wide : magnitude(d);
      g.v[i] = squared ? scale * d : scaled_sign(d, scale);
      if (offset + i >= valid) g.v[i] = 0;
    }
    if (gradient == nullptr) continue;
    if (aligned && offset + P <= n)
      store_pack(gradient + offset, g);
    else
      store_some(gradient + offset, g, n - offset);
  }
  sum = block_sum<sum_threads>(sum, sums);
  if (threadIdx.x == 0) put_partial(a.scratch.data, blockIdx.x, sum);
}

/// One block: loss = the sum of all `parts` parts of all items times the weight of a mean.
__global__ void __launch_bounds__(sum_threads) waveform_loss_sum_kernel(WaveformLoss a, int64_t frame, int64_t parts) {
  NACRE_SHARED(double, sums, sum_threads / 32);
  NACRE_SHARED(int64_t, counts, sum_threads / 32);
  const double weight = mean_weight(a, frame, counts);
  const double sum = add_partials(a.scratch.data, parts, static_cast<int>(threadIdx.x), sum_threads);
  const double total = block_sum<sum_threads>(sum, sums);
  if (threadIdx.x == 0) a.loss.data[0] = static_cast<float>(total * weight);
}

}  // namespace

Shape waveform_loss_scratch(Shape s) { return {.channels = 2 * s.batch * sum_parts(s.time * s.width * s.channels)}; }

void waveform_loss(Context& ctx, const WaveformLoss& a) {
  const Shape s = a.estimate.shape;
  const int64_t frame = s.width * s.channels, per_item = s.time * frame, parts = sum_parts(per_item);
  const bool aligned = per_item % pack_size<float> == 0 && aligned16(a.estimate.data) && aligned16(a.target.data) &&
                       aligned16(a.gradient.data);
  launch(ctx,
         {.name = aligned ? "waveform_loss_packs" : "waveform_loss",
          .grid = blocks_for(s.batch * parts, 1),
          .block = sum_threads},
         aligned ? waveform_loss_kernel<true> : waveform_loss_kernel<false>, a, frame, parts);
  launch(ctx, {.name = "waveform_loss_sum", .block = sum_threads}, waveform_loss_sum_kernel, a, frame, s.batch * parts);
}

}  // namespace nacre::cuda
