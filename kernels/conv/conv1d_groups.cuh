#pragma once
// Convolutions of several groups, by fused multiply-adds for every storage and precision. A group has too few channels
// for a tensor core's tile, and too few bytes per row for memory. So a block takes a slab of neighbouring groups: their
// channels of a tile of rows are copied to shared memory once, with one halo for all taps, and the weights of the slab
// lie beside them. A thread computes four neighbouring channels. choose_groups.cu divides the work; conv1d_cuda.h
// declares what launches the kernels.
//
// What memory moves, of a layer whose tile has R rows and h rows of halo: (1 + h / R) times the source and once the
// result. What shared memory moves, per four channels of a tap: a pack of the source for every 4 or 16 multiply-adds,
// and a pack of weights for every 32.
#include "conv/choose_cuda.h"
#include "runtime/device.cuh"

namespace nacre::cuda::groups {

inline constexpr int threads = 256;
/// Shared memory that a block takes at most, all of it dynamic: every device has it, and an H200 holds two such blocks.
inline constexpr int most_shared = 96 << 10;
static_assert(most_shared <= least_shared_per_block);

// ---- forward and input gradient: a thread computes `rows_each` rows of four channels

inline constexpr int rows_each = 8;
/// Lanes of a warp side by side. The others are rows below each other. With quads the lanes of a row share a group and
/// read one pack of the source; else eight lanes read 32 neighbouring channels.
constexpr int lanes_across(Pattern p) { return p == Pattern::quads ? 4 : 8; }
constexpr int rows_of_warp(Pattern p) { return 32 / lanes_across(p) * rows_each; }
/// Channels of a group that a pattern combines with one pack of four weights.
constexpr int channels_at_once(Pattern p) { return p == Pattern::quads ? 4 : p == Pattern::pairs ? 2 : 1; }

/// Bytes of the source's tile: the rows of each remainder by the stride, one remainder after the other.
inline int64_t tile_bytes(const ProductPlan& s, int element_bytes) {
  const int64_t remainders = s.phases == 1 ? s.stride : 1;
  return remainders * s.phase_rows * s.pitch * element_bytes;
}
inline int64_t shared_bytes(const ProductPlan& s, int element_bytes) {
  return tile_bytes(s, element_bytes) + int64_t{4} * s.chunk * s.reduced * s.weight_pitch;
}

// ---- weight gradient: a thread has `items_each` items of work

inline constexpr int items_each = 4;
inline constexpr int most_work = items_each * threads;

inline int64_t source_rows(const WeightPlan& s) {
  return int64_t{s.tile_rows - 1} * s.stride + int64_t{s.taps - 1} * s.dilation + 1;
}
/// x, dy, a pack of ones, and in their place the sums of an item's threads.
inline int64_t shared_bytes(const WeightPlan& s, int element_bytes) {
  const int64_t tiles = (source_rows(s) * s.pitch + int64_t{s.tile_rows} * s.groups * s.out) * element_bytes + 16;
  const int64_t sums = s.lanes > 1 ? int64_t{s.lanes} * s.share * 4 * channels_at_once(s.pattern) * 4 : 0;
  return tiles > sums ? tiles : sums;
}

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
