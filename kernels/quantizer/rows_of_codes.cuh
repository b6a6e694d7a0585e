#pragma once
// The rows that chose a code, for sums over them: codebook gradients, moving averages, k-means. The order of a sum is
// that of its rows, so it depends neither on blocks nor on threads.
//
// A block serves eight codes, one per warp, and reads the codes of 4096 rows at a time:
//
//   warp                 0            1                   7
//   reads the codes of   512 rows     the next 512  ...   the last 512    16 loads in flight per lane
//   counts the rows that have one of the eight codes
//                        ------------------ barrier ------------------
//   writes these rows to the list, behind those of the warps before it
//                        ------------------ barrier ------------------
//   reads                the whole list; its rows are those of its code   up to four rows in flight
//                        ------------------ barrier ------------------
#include "quantizer/vq_search.cuh"

namespace nacre::cuda {

/// Finds the rows of the eight codes that a block serves.
class RowsOfCodes {
 public:
  static constexpr int warps = 8, threads = warps * 32;
  static constexpr int loads = 16, rows_of_warp = loads * 32, rows_at_once = warps * rows_of_warp;
  /// Shared memory of a block. The low 12 bits of an entry are the row's place among 4096. The bits above say which of
  /// the eight codes it has.
  struct Shared {
    uint16_t list[rows_at_once];
    int32_t counts[warps];
  };

  /// `codes`: those of one stage, one per row; negative for rows that do not count. The warps' codes are first_code and
  /// the next seven.
  __device__ RowsOfCodes(const int32_t* codes, int64_t rows, int64_t first_code, Shared& shared)
      : codes_(codes), rows_(rows), first_code_(static_cast<uint32_t>(first_code)), shared_(shared) {}

  /// For each row of the warp's code, in the order of rows: load(row, v) fills v, then add(v) takes it. Up to four
  /// loads run before the first of their adds. Returns how many rows there are. All threads of the block call it
  /// together, also those of warps beyond the last code.
  template <class Values, class Load, class Add>
  __device__ __forceinline__ int64_t for_each(Load&& load, Add&& add) const {
    int64_t found = 0;
    for (int64_t first = 0; first < rows_; first += rows_at_once) {
      const int count = list_rows(first);
      for (int i = 0; i < count; i += 32) found += take<Values>(first, i, count, load, add);
      __syncthreads();
    }
    return found;
  }

 private:
  /// Lists the rows from `first` on that have one of the block's codes. Returns how many there are.
  __device__ __forceinline__ int list_rows(int64_t first) const {
    const unsigned lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    uint32_t code[loads];
#pragma unroll
    for (int j = 0; j < loads; ++j) {
      const int64_t row = first + warp * rows_of_warp + 32 * j + lane;
      // Other codes, and negative ones, become at least `warps` as unsigned numbers.
      code[j] = static_cast<uint32_t>(row < rows_ ? codes_[row] : -1) - first_code_;
    }
    int found = 0;
#pragma unroll
    for (int j = 0; j < loads; ++j) found += __popc(__ballot_sync(full_warp, code[j] < warps));
    if (lane == 0) shared_.counts[warp] = found;
    __syncthreads();
    int end = 0, all = 0;
#pragma unroll
    for (unsigned w = 0; w < warps; ++w) {
      if (w == warp) end = all;
      all += shared_.counts[w];
    }
#pragma unroll
    for (int j = 0; j < loads; ++j) {
      const unsigned matches = __ballot_sync(full_warp, code[j] < warps);
      if (code[j] < warps)
        shared_.list[end + __popc(matches & ((1u << lane) - 1))] =
            static_cast<uint16_t>(code[j] * rows_at_once + warp * rows_of_warp + 32 * j + lane);
      end += __popc(matches);
    }
    __syncthreads();
    return all;
  }

  /// Loads and adds those of 32 listed rows, from entry `i` on, that have the warp's code. Returns how many there are.
  template <class Values, class Load, class Add>
  __device__ __forceinline__ int take(int64_t first, int i, int count, Load&& load, Add&& add) const {
    constexpr int at_once = 4;
    const int lane = static_cast<int>(threadIdx.x) % 32;
    const unsigned entry = i + lane < count ? shared_.list[i + lane] : ~0u;
    unsigned matches = __ballot_sync(full_warp, entry / rows_at_once == threadIdx.x / 32);
    const int found = __popc(matches);
    // All lanes have the same matches.
    while (matches != 0) {
      Values v[at_once];
      int n = 0;
#pragma unroll
      for (int t = 0; t < at_once; ++t) {
        if (matches == 0) continue;
        load(first + __shfl_sync(full_warp, entry, __ffs(static_cast<int>(matches)) - 1) % rows_at_once, v[t]);
        matches &= matches - 1, ++n;
      }
#pragma unroll
      for (int t = 0; t < at_once; ++t)
        if (t < n) add(v[t]);
    }
    return found;
  }

  const int32_t* codes_;
  int64_t rows_;
  uint32_t first_code_;
  Shared& shared_;
};

}  // namespace nacre::cuda
