#pragma once
// Nearest code on the device, shared by vq.cu and rvq.cu, so that training, k-means and encoding find the same codes.
// The order of operations is that of vq_search.h: half norm first, then one fused multiply-add per channel; a code is
// chosen only if its half distance is below that of every lower index. The multiply-adds are intrinsics, so that no
// compiler decides what to fuse.
#include "runtime/device.cuh"
#include "nacre/ops/vq.h"

namespace nacre::cuda {

inline constexpr int64_t code_pad = 128;  ///< four codes per lane of a warp
inline constexpr float tiny_norm = 1e-12f;

__host__ __device__ inline int64_t padded_codes(int64_t codes) { return ceil_div(codes, code_pad) * code_pad; }
/// Codes are the fast index, so that 32 lanes with adjacent codes load whole lines.
/// Floats of a prepared codebook: [dim][padded codes], then the half norms. Codes that only pad have zeros and the norm
/// +inf, and are never chosen.
__host__ __device__ inline int64_t prepared_size(int64_t codes, int64_t dim) { return padded_codes(codes) * (dim + 1); }

/// The first 16-byte aligned address in a scratch. It skips up to three floats; sizes add `scratch_slack` for them.
inline float* aligned_scratch(float* p) {
  return reinterpret_cast<float*>((reinterpret_cast<uintptr_t>(p) + 15) / 16 * 16);
}
inline constexpr int64_t scratch_slack = 4;

/// Prepares `stages` codebooks of [codes][dim], one after the other.
void prepare_codebooks(Context&, const float* codebooks, int64_t stages, int64_t codes, int64_t dim, VqMetric,
                       float* prepared);

__device__ __forceinline__ int64_t clamp_code(int32_t code, int64_t codes) {
  const int64_t k = code;
  return k < 0 ? 0 : (k < codes ? k : codes - 1);
}

/// The best code so far and its half distance. Starts as code 0 at +inf: a row whose scores are all NaN or +inf keeps
/// 0.
struct Best {
  float h;
  int32_t k;
};
__device__ __forceinline__ Best no_code() { return {__int_as_float(0x7f800000), 0}; }
/// Takes candidates in any order; ties go to the lower index. NaN compares false and is never taken.
__device__ __forceinline__ void take_better(Best& best, float h, int32_t k) {
  if (h < best.h || (h == best.h && k < best.k)) best.h = h, best.k = k;
}
__device__ __forceinline__ Best warp_best(Best b) {
#pragma unroll
  for (int lanes = 16; lanes > 0; lanes /= 2) {
    const float h = __shfl_xor_sync(full_warp, b.h, lanes);
    const int32_t k = __shfl_xor_sync(full_warp, b.k, lanes);
    take_better(b, h, k);
  }
  return b;
}

/// The same with the half distance as an unsigned integer of the same order, for warp reductions in one instruction.
struct OrderedBest {
  uint32_t h, k;
};
__device__ __forceinline__ OrderedBest warp_ordered_best(const Best& b) {
  const uint32_t bits = __float_as_uint(b.h + 0.0f);  // -0 becomes +0: they compare equal
  OrderedBest out;
  const uint32_t key = bits ^ ((bits & 0x80000000u) != 0 ? 0xffffffffu : 0x80000000u);
  out.h = __reduce_min_sync(full_warp, key);
  out.k = __reduce_min_sync(full_warp, key == out.h ? static_cast<uint32_t>(b.k) : 0xffffffffu);
  return out;
}
__device__ __forceinline__ float half_distance(const OrderedBest& b) {
  return __uint_as_float(b.h ^ ((b.h & 0x80000000u) != 0 ? 0x80000000u : 0xffffffffu));
}

/// 1 / max(|x|, tiny_norm). Squares are rounded one by one and added in channel order, as on the CPU.
__device__ __forceinline__ float inverse_norm_of_square(float square) {
  const float norm = __fsqrt_rn(square);
  return 1.0f / (norm < tiny_norm ? tiny_norm : norm);
}
__device__ __forceinline__ float add_square(float sum, float x) { return __fadd_rn(sum, __fmul_rn(x, x)); }
__device__ __forceinline__ float inverse_norm(const float* x, int64_t dim) {
  float sum = 0;
  for (int64_t d = 0; d < dim; ++d) sum = add_square(sum, x[d]);
  return inverse_norm_of_square(sum);
}

/// The plain search, for any shape: a warp finds the nearest code of one row, one code per lane at a time. The result
/// is valid in every lane.
__device__ __forceinline__ Best warp_nearest(const float* x, int64_t dim, const float* prepared, int64_t codes,
                                             VqMetric metric) {
  const int64_t padded = padded_codes(codes);
  const float* norms = prepared + padded * dim;
  const float scale = metric == VqMetric::cosine ? inverse_norm(x, dim) : 1.0f;
  Best best = no_code();
  for (int64_t k = threadIdx.x % 32; k < codes; k += 32) {
    // Lanes read adjacent codes of one channel: coalesced. All lanes read the same x[d]: one broadcast.
    float h = norms[k];
    for (int64_t d = 0; d < dim; ++d) h = __fmaf_rn(-__fmul_rn(x[d], scale), prepared[d * padded + k], h);
    if (h < best.h) best.h = h, best.k = static_cast<int32_t>(k);
  }
  return warp_best(best);
}

// ---- a tile of rows against a codebook

inline constexpr int tile_rows = 16, tile_threads = 256, tile_warps = tile_threads / 32;
inline constexpr int tile_pitch = 20;  ///< floats per channel: eight channels start in distinct groups of four banks
inline constexpr int tile_codes = tile_threads * 4;  ///< codes that a block scores at once: four per thread
/// Shared memory of a tile: rows as floats [channels, padded to fours][tile_pitch]; candidates as words
/// [tile_rows][tile_warps][2].
__host__ __device__ constexpr int64_t tile_floats(int64_t dim) { return ceil_div(dim, int64_t{4}) * 4 * tile_pitch; }
inline constexpr int candidate_words = tile_rows * tile_warps * 2;

/// h[r][t] = half distance of row r to code k + t, for the 16 rows of a tile and the four codes of this thread. The 64
/// sums stay in registers. Codes come from L2, 16 bytes per lane and four channels ahead; rows come from shared memory
/// by broadcast. Channels beyond dim must be zero.
__device__ __forceinline__ void tile_scores(const float* x, int dim, const float* prepared, int padded, int k,
                                            float (&h)[tile_rows][4]) {
  // Two sets of codes: the products of four channels use `code` while the loads of the next four fill `next`. So 256
  // multiply-adds hide the latency of L2.
  const Pack<float> norms = load_pack(prepared + int64_t{dim} * padded + k);
#pragma unroll
  for (int r = 0; r < tile_rows; ++r)
#pragma unroll
    for (int t = 0; t < 4; ++t) h[r][t] = norms.v[t];
  const float* from = prepared + k;
  Pack<float> code[4], next[4];
#pragma unroll
  for (int u = 0; u < 4; ++u) {
    code[u] = next[u] = Pack<float>{};
    if (u < dim) code[u] = load_pack(from + int64_t{u} * padded);
  }
#pragma unroll 1
  for (int d = 0; d < dim; d += 4) {
    from += int64_t{4} * padded;
#pragma unroll
    for (int u = 0; u < 4; ++u) next[u] = d + 4 + u < dim ? load_pack(from + int64_t{u} * padded) : Pack<float>{};
#pragma unroll
    for (int u = 0; u < 4; ++u)
#pragma unroll
      for (int r = 0; r < tile_rows; r += 4) {
        // All lanes read the same four rows: one access for 16 multiply-adds of each lane.
        const Pack<float> rows = load_pack(x + (d + u) * tile_pitch + r);
#pragma unroll
        for (int j = 0; j < 4; ++j)
#pragma unroll
          for (int t = 0; t < 4; ++t) h[r + j][t] = __fmaf_rn(-rows.v[j], code[u].v[t], h[r + j][t]);
      }
#pragma unroll
    for (int u = 0; u < 4; ++u) code[u] = next[u];
  }
}
/// A block scores its 16 rows, tile_codes codes at a time, four adjacent ones per thread. Each warp writes its best
/// code of every row to `candidates` [tile_rows][tile_warps][2]. The caller synchronises the block before and after.
__device__ __forceinline__ void tile_search(const float* x, int dim, const float* prepared, int padded,
                                            uint32_t* candidates) {
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  for (int begin = 0; begin < padded; begin += tile_codes) {
    const int k = begin + static_cast<int>(threadIdx.x) * 4;
    float h[tile_rows][4];
    if (k < padded) tile_scores(x, dim, prepared, padded, k, h);
#pragma unroll
    for (int r = 0; r < tile_rows; ++r) {
      Best best = no_code();
      if (k < padded) {
#pragma unroll
        for (int t = 0; t < 4; ++t)
          if (h[r][t] < best.h) best.h = h[r][t], best.k = k + t;
      }
      // All lanes take part in the reduction, also those beyond the last code, which bring no_code().
      const OrderedBest best_of_warp = warp_ordered_best(best);
      uint32_t* slot = candidates + (r * tile_warps + warp) * 2;
      // Later codes have higher indices, so they win only if they are strictly nearer.
      if (lane == 0 && (begin == 0 || best_of_warp.h < slot[0])) slot[0] = best_of_warp.h, slot[1] = best_of_warp.k;
    }
  }
}
/// A warp transposes a row of x to column r of a tile, as the metric compares it. Channels up to a multiple of four,
/// and a row that does not exist, are zeros, as tile_scores() requires.
__device__ __forceinline__ void tile_row(const float* row, bool exists, int dim, VqMetric metric, float* tile, int r) {
  const float scale = exists && metric == VqMetric::cosine ? inverse_norm(row, dim) : 1.0f;
  for (int d = static_cast<int>(threadIdx.x) % 32; d < (dim + 3) / 4 * 4; d += 32)
    tile[d * tile_pitch + r] = exists && d < dim ? __fmul_rn(row[d], scale) : 0.0f;
}
/// Call after tile_search and a barrier: lane 8 i, for i of 0 and 1, gets the best code of row 2 warp + i.
__device__ __forceinline__ OrderedBest tile_results(const uint32_t* candidates) {
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const uint32_t* slot = candidates + (warp * 2 * tile_warps + lane % 16) * 2;
  OrderedBest best{slot[0], slot[1]};
#pragma unroll
  for (int lanes = 4; lanes > 0; lanes /= 2) {
    const uint32_t h = __shfl_xor_sync(full_warp, best.h, lanes), k = __shfl_xor_sync(full_warp, best.k, lanes);
    if (h < best.h || (h == best.h && k < best.k)) best.h = h, best.k = k;
  }
  return best;
}

/// Which rows and stages count: the first `frames` frames and the first `stages` stages of each item; null: all.
struct RowMask {
  const int32_t *frames, *stages;
  int64_t time, batch;
  int64_t mean_of = 0;  // losses are means over the stages used, of this many; 0: sums over stages

  __device__ int64_t valid_frames(int64_t item) const {
    if (frames == nullptr) return time;
    const int64_t n = frames[item];
    return n < 0 ? 0 : (n < time ? n : time);
  }
  __device__ bool valid(int64_t row) const { return frames == nullptr || row % time < valid_frames(row / time); }
  __device__ bool used(int64_t row, int64_t stage) const { return stages == nullptr || stage < stages[row / time]; }
  __device__ int64_t stages_used(int64_t row, int64_t stage_count) const {
    if (stages == nullptr) return stage_count;
    const int64_t n = stages[row / time];
    return n < 0 ? 0 : (n < stage_count ? n : stage_count);
  }
  /// All lanes of the warp must call it together.
  __device__ int64_t valid_rows() const {
    if (frames == nullptr) return batch * time;
    long long n = 0;
    for (int64_t b = threadIdx.x % 32; b < batch; b += 32) n += valid_frames(b);
    return warp_sum(n);
  }
  /// What sums of losses are divided by; 0 without a valid row. All lanes of the warp must call it together.
  __device__ int64_t loss_elements(int64_t dim) const {
    const int64_t elements = valid_rows() * dim;
    if (mean_of == 0) return elements;
    int most = stages == nullptr ? static_cast<int>(mean_of) : 1;
    if (stages != nullptr)
      for (int64_t b = threadIdx.x % 32; b < batch; b += 32)
        most = max(most, static_cast<int>(min(static_cast<int64_t>(stages[b]), mean_of)));
    for (int lanes = 16; lanes > 0; lanes /= 2) most = max(most, __shfl_xor_sync(full_warp, most, lanes));
    return elements * most;
  }
  /// The row of the valid frame with index n.
  __device__ int64_t row_of_valid(int64_t n) const {
    for (int64_t b = 0; b < batch; ++b) {
      const int64_t frames_of_item = valid_frames(b);
      if (n < frames_of_item) return b * time + n;
      n -= frames_of_item;
    }
    return 0;
  }
};

/// Writes element i of codes [rows][stages] to by_stage [stages][rows], as transpose_codes().
__device__ __forceinline__ void transpose_code(const int32_t* codes, int64_t i, int64_t rows, int64_t stages,
                                               int64_t code_count, const RowMask& mask, int32_t* by_stage) {
  const int64_t row = i / stages, stage = i % stages;
  const bool included = mask.valid(row) && mask.used(row, stage);
  by_stage[stage * rows + row] = included ? static_cast<int32_t>(clamp_code(codes[i], code_count)) : -1;
}

/// by_stage [stages][rows] = codes [rows][stages], clamped to [0, code_count); -1 where RowMask excludes row or stage.
/// RowsOfCodes reads a stage of it: contiguous, with the masks applied once instead of by every code.
void transpose_codes(Context&, const int32_t* codes, int64_t rows, int64_t stages, int64_t code_count, RowMask,
                     int32_t* by_stage);

}  // namespace nacre::cuda
