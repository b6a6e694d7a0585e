#pragma once
// The rows that chose a code, for sums over them: codebook gradients, moving averages, k-means. The order of a sum is
// that of its rows, so it depends neither on blocks nor on threads.
//
// A block serves eight codes, one per warp, and reads the codes of 4096 rows at a time:
//
//   warp                 0            1                 7
//   reads the codes of   512 rows     the next 512 ...  the last 512      16 loads in flight per lane
//   writes a list of     its rows whose code is one of the eight, in order
//                        ------------------ barrier ------------------
//   reads                all eight lists; its rows are those of its code  four rows in flight
//                        ------------------ barrier ------------------
#include "quantizer/vq_search.cuh"

namespace nacre::cuda {

/// The codes that a block serves.
class RowsOfCodes {
 public:
  static constexpr int warps = 8, threads = warps * 32;
  /// Shared memory of a block. An entry is a row's place among 4096, 12 bits, and above it which of the block's codes
  /// the row has.
  static constexpr int loads = 16, list_size = loads * 32, rows_at_once = warps * list_size;
  struct Shared {
    uint16_t lists[rows_at_once];
    int32_t counts[warps];
  };

  /// `codes`: those of one stage, one per row; negative for rows that do not count. The warps' codes are first_code and
  /// the next seven.
  __device__ RowsOfCodes(const int32_t* codes, int64_t rows, int64_t first_code, Shared& shared)
      : codes_(codes), rows_(rows), first_code_(static_cast<int32_t>(first_code)), shared_(shared) {}

  /// For each row of the warp's code, in the order of rows: load(row, v) fills v, then add(v) takes it. Returns how
  /// many rows there are. All threads of the block call it together, also those of warps beyond the last code.
  template <class Values, class Load, class Add>
  __device__ __forceinline__ int64_t for_each(Load&& load, Add&& add) const {
    int64_t found = 0;
    for (int64_t first = 0; first < rows_; first += rows_at_once) {
      list(first);
      __syncthreads();
      for (int w = 0; w < warps; ++w) found += take<Values>(first, w, load, add);
      __syncthreads();
    }
    return found;
  }

 private:
  /// Writes the warp's list of the rows from `first` on that have one of the block's codes.
  __device__ __forceinline__ void list(int64_t first) const {
    const unsigned lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    uint32_t code[loads];
#pragma unroll
    for (int j = 0; j < loads; ++j) {
      const int64_t row = first + warp * list_size + 32 * j + lane;
      // Differences of other codes are at least `warps` as unsigned numbers, also those of -1.
      code[j] = static_cast<uint32_t>((row < rows_ ? codes_[row] : -1) - first_code_);
    }
    unsigned n = 0;
#pragma unroll
    for (int j = 0; j < loads; ++j) {
      const bool ours = code[j] < warps;
      const unsigned matches = __ballot_sync(full_warp, ours);
      if (ours)
        shared_.lists[warp * list_size + n + static_cast<unsigned>(__popc(matches & ((1u << lane) - 1)))] =
            static_cast<uint16_t>(code[j] * rows_at_once + warp * list_size + 32 * j + lane);
      n += static_cast<unsigned>(__popc(matches));
    }
    if (lane == 0) shared_.counts[warp] = static_cast<int32_t>(n);
  }

  template <class Values, class Load, class Add>
  __device__ __forceinline__ int64_t take(int64_t first, int list, Load&& load, Add&& add) const {
    constexpr int at_once = 4;
    const int lane = static_cast<int>(threadIdx.x) % 32, count = shared_.counts[list];
    const unsigned warp = threadIdx.x / 32;
    int64_t found = 0;
    for (int i = 0; i < count; i += 32) {
      const unsigned entry = i + lane < count ? shared_.lists[list * list_size + i + lane] : ~0u;
      unsigned matches = __ballot_sync(full_warp, entry / rows_at_once == warp);
      found += __popc(matches);
      // The number of matches is the same in all lanes.
      while (matches != 0) {
        Values v[at_once];
        int n = 0;
#pragma unroll
        for (int t = 0; t < at_once; ++t) {
          if (matches == 0) continue;
          const unsigned place = __shfl_sync(full_warp, entry, __ffs(static_cast<int>(matches)) - 1) % rows_at_once;
          load(first + place, v[t]);
          matches &= matches - 1, ++n;
        }
#pragma unroll
        for (int t = 0; t < at_once; ++t)
          if (t < n) add(v[t]);
      }
    }
    return found;
  }

  const int32_t* codes_;
  int64_t rows_;
  int32_t first_code_;
  Shared& shared_;
};

}  // namespace nacre::cuda
