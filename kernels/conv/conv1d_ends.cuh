#pragma once
// The first and the last layer of a codec. One side is wide (C channels), the other narrow (one channel). A thread
// holds the seven taps of one 16-byte pack of channels in registers and walks down a strip of rows. A block has several
// strips side by side. Three kernels serve both layers in all directions, because the weight is addressed by strides
// and its taps may be mirrored:
//   expand    wide   = sum_k w(c, k) narrow[r + shift + k]        a window of the narrow side slides through registers
//   contract  narrow = sum_{k, c} w(c, k) wide[r + shift + k, c]  seven sums slide; columns are added in shared memory
//   weights   w(c, k) += sum_r wide[r, c] narrow[r + shift + k]   seven sums per channel; a second kernel adds blocks
//
// Each element of the wide side moves once, 2 or 4 bytes for 14 operations, so memory bounds these kernels. Counted in
// SASS (sm_90a, bf16), an element takes 11.5 instructions in expand, contract and weights; with Snake 29 in the
// forward, 38 in the input gradient and 23 in the weight gradient. That is 0.8, 2.1, 1.4 and 1.7 times the issue slots
// available while the element's bytes are transferred.
#include "conv/choose_cuda.h"
#include "conv/conv1d_sizes.h"
#include "nacre/ops/snake_conv1d.h"
#include "pointwise/snake.cuh"
#include "runtime/device.cuh"

namespace nacre::cuda::ends {

// Conv1d, and Snake followed by the last layer's conv1d, divided as choose_cuda.h says.
template <class T>
void forward(Context&, const Conv1dForward<T>&, const StripPlan&);
template <class T>
void forward(Context&, const SnakeConv1dForward<T>&, const StripPlan&);
template <class T>
void input_gradient(Context&, const Conv1dInputGradient<T>&, const StripPlan&);
template <class T>
void input_gradient(Context&, const SnakeConv1dInputGradient<T>&, const StripPlan&);
template <class T>
void weight_gradient(Context&, const Conv1dWeightGradient<T>&, const StripPlan&);
template <class T>
void weight_gradient(Context&, const SnakeConv1dWeightGradient<T>&, const StripPlan&);

// ---- what the kernels share

/// The sample at position `at` of the padded signal; -1 for a zero.
__device__ __forceinline__ int64_t source_sample(int64_t at, int64_t time, bool reflect) {
  if (at >= 0 && at < time) return at;
  if (!reflect) return -1;
  const int64_t mirrored = at < 0 ? -at : 2 * (time - 1) - at;
  return mirrored >= 0 && mirrored < time ? mirrored : -1;  // -1: beyond the padding, for sums that are not stored
}
/// A pack of the wide side, by one access of 16 bytes or element by element: a view of a tensor need not begin at a
/// multiple of 16. The branch is a template argument, chosen per launch.
template <bool aligned, class T>
__device__ __forceinline__ uint4 load_raw_pack(const T* p) {
  if constexpr (aligned)
    return *reinterpret_cast<const uint4*>(p);
  else
    return packed(load_some(p, pack_size<T>));
}
template <bool aligned, class T>
__device__ __forceinline__ void save_pack(T* p, const Pack<T>& v) {
  if constexpr (aligned)
    store_pack(p, v);
  else
    store_some(p, v, pack_size<T>);
}

/// Access to the weight as w(channel, k).
template <class T>
struct Weight {
  const T* data;
  int64_t channel_stride, tap_stride;
  bool mirrored;
  __device__ __forceinline__ int64_t index(int64_t channel, int k) const {
    return channel * channel_stride + (mirrored ? taps - 1 - k : k) * tap_stride;
  }
};
template <class T>
__device__ __forceinline__ void load_weight(const Weight<T>& weight, int channel, float (&w)[taps][pack_size<T>]) {
#pragma unroll
  for (int k = 0; k < taps; ++k)
#pragma unroll
    for (int i = 0; i < pack_size<T>; ++i) w[k][i] = to_float(weight.data[weight.index(channel + i, k)]);
}

struct SnakeParameters {
  const float *alpha, *beta;
  bool log_scale;
};

/// Loads the narrow side's samples for a block that begins at row `first_row`: narrow[i] is the padded signal at
/// first_row + shift + i.
template <class T>
__device__ __forceinline__ void load_narrow(const T* from, const StripPlan& c, int64_t first_row, int count,
                                            float* narrow) {
  for (int i = static_cast<int>(threadIdx.x); i < count; i += threads) {
    const int64_t at = source_sample(first_row + c.shift + i, c.narrow_time, c.reflect);
    narrow[i] = at < 0 ? 0.0f : to_float(from[at]);
  }
}

/// Adds `sums` over the strips, in double, for `slots` values per channel: out[slot * pitch + channel].
/// `buffer`: slots * threads * P floats.
template <class T, int slots>
__device__ __forceinline__ void add_strips(const StripPlan& c, const float (&sums)[slots][pack_size<T>], float* buffer,
                                           float* out, int64_t pitch) {
  constexpr int P = pack_size<T>;
  const int column = static_cast<int>(threadIdx.x) % c.columns, strip = static_cast<int>(threadIdx.x) / c.columns;
  __syncthreads();
  if (strip < c.strips) {
#pragma unroll
    for (int s = 0; s < slots; ++s)
#pragma unroll
      for (int i = 0; i < P; ++i) buffer[(s * c.strips + strip) * c.channels + column * P + i] = sums[s][i];
  }
  __syncthreads();
  for (int item = static_cast<int>(threadIdx.x); item < slots * c.channels; item += threads) {
    const int slot = item / c.channels, channel = item - slot * c.channels;
    // The strips are added in ascending order.
    double total = 0;
    for (int s = 0; s < c.strips; ++s)
      total += static_cast<double>(buffer[(slot * c.strips + s) * c.channels + channel]);
    out[slot * pitch + channel] = static_cast<float>(total);
  }
}

/// The two layouts of the weight: of the first layer, [C][7][1], and of the last one, [1][7][C]. `mirrored`: sum index
/// k is tap 6 - k.
template <class T>
Weight<T> weight_of_first(const T* w, bool mirrored) {
  return {w, taps, 1, mirrored};
}
template <class T>
Weight<T> weight_of_last(const T* w, int64_t channels, bool mirrored) {
  return {w, 1, channels, mirrored};
}
inline unsigned grid_of(int64_t batch, const StripPlan& c) { return static_cast<unsigned>(batch * c.tiles); }

}  // namespace nacre::cuda::ends
