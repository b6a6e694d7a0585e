#pragma once
// Convolutions of several groups, by fused multiply-adds for every storage and precision. A group has too few channels
// for a tensor core's tile, and too few bytes per row for memory. So a block takes a slab of neighbouring groups: their
// channels of a tile of rows are copied to shared memory once, with one halo for all taps, and the weights of the slab
// lie beside them. A thread computes four neighbouring channels. choose_groups.cpp divides the work; conv1d_cuda.h
// declares what launches the kernels.
//
// What memory moves, of a layer whose tile has R rows and h rows of halo: (1 + h / R) times the source and once the
// result. What shared memory moves, per four channels of a tap: a pack of the source for every 4 or 16 multiply-adds,
// and a pack of weights for every 32.
#include "conv/choose_cuda.h"
#include "conv/conv1d_sizes.h"
#include "runtime/device.cuh"

namespace nacre::cuda::groups {

// ---- what the kernels share

/// The sample at position `at` of the padded signal; -1 for a zero, and beyond the padding.
__device__ __forceinline__ int64_t source_sample(int64_t at, int64_t time, bool reflect) {
  if (at >= 0 && at < time) return at;
  if (!reflect) return -1;
  const int64_t mirrored = at < 0 ? -at : 2 * (time - 1) - at;
  return mirrored >= 0 && mirrored < time ? mirrored : -1;
}
/// Four neighbouring elements of shared memory, aligned to their size.
__device__ __forceinline__ float4 load_four(const float* p) { return *reinterpret_cast<const float4*>(p); }
__device__ __forceinline__ float4 load_four(const bf16* p) {
  const uint2 raw = *reinterpret_cast<const uint2*>(p);
  return make_float4(__uint_as_float(raw.x << 16), __uint_as_float(raw.x & 0xffff0000u), __uint_as_float(raw.y << 16),
                     __uint_as_float(raw.y & 0xffff0000u));
}
template <class T>
__device__ __forceinline__ void load_four(const T* p, float (&v)[4]) {
  const float4 f = load_four(p);
  v[0] = f.x, v[1] = f.y, v[2] = f.z, v[3] = f.w;
}

/// The kernel of a pattern.
template <class F>
auto with_pattern(Pattern p, F&& f) {
  switch (p) {
    case Pattern::quads:
      return f.template operator()<Pattern::quads>();
    case Pattern::pairs:
      return f.template operator()<Pattern::pairs>();
    case Pattern::singles:
      return f.template operator()<Pattern::singles>();
    default:
      return f.template operator()<Pattern::mixed>();
  }
}

}  // namespace nacre::cuda::groups
