#pragma once
// Nearest code on the CPU. vq_nearest, vq_kmeans and rvq_forward share one function, so that training and encoding
// agree bit for bit.
//
// Half distances h_k = |c_k|^2 / 2 - x.c_k are compared, in float:
//   h starts as |c_k|^2 / 2 (squares added in channel order, from 0). Then x_d c_kd is subtracted for d = 0, 1, ..., by
//   a fused multiply-add if the instruction set has one. A code is chosen only if its h is below that of every lower
//   index.
#include "nacre/ops/vq.h"
#include "runtime/host.h"

namespace nacre::vq_search {

inline constexpr int64_t lanes = 16;  ///< codes of a packed block, one per vector lane
inline constexpr int64_t tile = 12;  ///< rows of one register tile: twelve accumulators leave four of sixteen registers
inline constexpr int64_t max_rows = 48;  ///< rows of one call of nearest(): they stay in the first-level cache

inline int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }
/// A packed codebook puts the same channel of sixteen codes side by side, so that one vector load serves sixteen half
/// distances and no sum crosses lanes.
/// Floats of a packed codebook: blocks of [dim][lanes], then the half norms.
inline int64_t packed_size(int64_t codes, int64_t dim) { return round_up(codes, lanes) * (dim + 1); }
/// The buffer holds the rows of a call, scaled for the metric, as tiles [tile index][dim][tile]. A row keeps the place
/// that its index gives it: callers that start at multiples of `tile` rows may share one buffer for all rows.
/// Floats of the buffer that nearest() needs for `rows` rows.
inline int64_t buffer_size(int64_t rows, int64_t dim) { return round_up(rows, tile) * dim; }

/// Floats per vector of the search: 16, 8 or 4, by Context::instruction_set().
int vector_width();

/// Packs `stages` codebooks of [codes][dim], one after the other.
void pack_codebooks(const Context&, const float* codebooks, int64_t stages, int64_t codes, int64_t dim, VqMetric,
                    float* packed);
/// Packs the blocks [first, first + count) of one codebook [codes][dim]: blocks of [dim][lanes], then apart the half
/// norms. The values are those of pack_codebooks(), bit for bit.
void pack_blocks(const float* codebook, int64_t codes, int64_t dim, VqMetric, int64_t first, int64_t count,
                 float* blocks, float* norms);

/// For each of `rows` <= max_rows rows of x: out[row * stride] = index of the nearest code, 0 for a row with NaN.
/// `half_distances`, if given, receives the half distance of each row to its code.
void nearest(const float* x, int64_t rows, int64_t dim, const float* packed, int64_t codes, VqMetric, float* buffer,
             int32_t* out, int64_t stride, float* half_distances = nullptr);

/// For so few rows, packing a codebook takes longer than the search.
inline constexpr int64_t few_rows = 8;
inline constexpr int64_t few_blocks = 4;  ///< packed at a time
/// Floats of the buffer of nearest_in_place().
inline int64_t in_place_buffer_size(int64_t dim) { return (few_rows + few_blocks * lanes) * dim; }
/// nearest(), bit for bit, of `rows` <= few_rows rows in a codebook [codes][dim], which is read once.
void nearest_in_place(const float* x, int64_t rows, int64_t dim, const float* codebook, int64_t codes, VqMetric metric,
                      float* buffer, int32_t* out, int64_t stride);

/// out = sum of the listed rows of x, added in double in the order of the list.
void sum_rows(const float* x, int64_t dim, const int32_t* list, int64_t n, float* out);

/// Codes also come from files and streams; an invalid one must not read past the codebook.
inline int64_t clamp_code(int32_t code, int64_t codes) { return std::clamp<int64_t>(code, 0, codes - 1); }

/// Stable counting sort of rows by code: `order` lists the rows, those of code k from index first[k] up to first[k +
/// 1]. Rows for which valid(row) is false are left out. `first` has count + 1 elements.
template <class Valid>
void sort_by_code(const int32_t* codes, int64_t stride, int64_t rows, int64_t count, int32_t* first, int32_t* order,
                  Valid&& valid) {
  std::fill(first, first + count + 1, 0);
  for (int64_t r = 0; r < rows; ++r)
    if (valid(r)) ++first[clamp_code(codes[r * stride], count) + 1];
  for (int64_t k = 0; k < count; ++k) first[k + 1] += first[k];
  // Filling moves first[k] to the end of its run, which is the start of the next one. The shift below restores it.
  for (int64_t r = 0; r < rows; ++r)
    if (valid(r)) order[first[clamp_code(codes[r * stride], count)]++] = static_cast<int32_t>(r);
  for (int64_t k = count; k > 0; --k) first[k] = first[k - 1];
  first[0] = 0;
}

/// Which rows and stages count: the first `frames` frames and the first `stages` stages of each item; empty views: all.
struct RowMask {
  View<const int32_t> frames{}, stages{};
  int64_t time = 1;
  int64_t mean_of = 0;  // losses are means over the stages used, of this many; 0: sums over stages

  int64_t valid_frames(int64_t item) const { return frames ? std::clamp<int64_t>(frames[item], 0, time) : time; }
  bool valid(int64_t row) const { return row % time < valid_frames(row / time); }
  bool used(int64_t row, int64_t stage) const { return !stages || stage < stages[row / time]; }
  int64_t stages_used(int64_t row, int64_t stage_count) const {
    return stages ? std::clamp<int64_t>(stages[row / time], 0, stage_count) : stage_count;
  }
  int64_t valid_rows(int64_t batch) const {
    int64_t n = 0;
    for (int64_t b = 0; b < batch; ++b) n += valid_frames(b);
    return n;
  }
  /// What sums of losses are divided by; 0 without a valid row.
  int64_t loss_elements(int64_t batch, int64_t dim) const {
    int64_t used = mean_of > 0 && !stages ? mean_of : 1;
    for (int64_t b = 0; mean_of > 0 && stages && b < batch; ++b)
      used = std::max(used, std::clamp<int64_t>(stages[b], 0, mean_of));
    return valid_rows(batch) * dim * used;
  }
  /// The row of the valid frame with index n.
  int64_t row_of_valid(int64_t n, int64_t batch) const {
    for (int64_t b = 0; b < batch; ++b) {
      if (n < valid_frames(b)) return b * time + n;
      n -= valid_frames(b);
    }
    return 0;
  }
};

/// Throws unless the view has data and n elements, in any shape.
template <class T>
void expect_elements(const char* op, const char* argument, const View<T>& v, int64_t n) {
  if (!v || v.elements() != n) [[unlikely]]
    throw_usage(op, std::string(argument) + (v ? " is " + str(v.shape) : " has no data") + ", expected " +
                        std::to_string(n) + " elements");
}
template <class T>
void expect_elements_or_empty(const char* op, const char* argument, const View<T>& v, int64_t n) {
  if (v) expect_elements(op, argument, v, n);
}

}  // namespace nacre::vq_search
