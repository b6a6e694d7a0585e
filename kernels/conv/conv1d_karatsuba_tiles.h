#pragma once
// The inner loops of conv1d_karatsuba.cpp, and the matrix products of all CPU convolutions, chosen by instruction set
// at run time. All counts of floats are multiples of 16.
#include <cstdint>

namespace nacre::karatsuba {

inline constexpr int most_rows_in = 14, most_rows_out = 8;
inline constexpr int64_t panel = 64;  // columns of a right factor that are stored together
inline constexpr int64_t depth_of_group = 8;

/// How `rows_out` rows of y are computed from `rows_in` rows of x and `taps` taps: each product is a sum of rows times
/// a sum of taps, and each row of y is a sum of products.
struct Scheme {
  int rows_in, rows_out, taps, products;
  /// to[p step + i] = factor p of rows of x, at rows[r][i], i < n.
  void (*split)(const float* const* rows, int64_t n, float* to, int64_t step);
  /// The same for rows of dy, or for taps.
  void (*spread)(const float* const* rows, int64_t n, float* to, int64_t step);
  /// to[r][i] = sum of the products from[p step + i] that form row r, + bias[i] + add[r][i] if these are given.
  /// Rows whose pointer is null are not written.
  void (*gather)(const float* from, int64_t step, int64_t n, const float* bias, const float* const* add,
                 float* const* to);
  /// to[k tap_step + i] += the same for taps, from the sums of `parts` parts.
  void (*gather_taps)(const float* from, int64_t step, int64_t parts, int64_t part_step, int64_t n, float* to,
                      int64_t tap_step);
};
/// For 8 rows of 7 taps (the eighth is zero, and its product is left out), or for 2 rows of 2.
const Scheme& scheme(int rows_out);

/// A left factor made of windows: element (m, t, k) is a[m row + t tap + k].
struct Windows {
  const float* a;
  int64_t row, taps = 1, tap = 0;
};

struct Matrices {
  /// For each of `groups` groups of 6 or 12 rows, which follow each other a_group and c_group apart:
  /// c[m c_row + j] = sum over k of a[m a_row + k] b[k width + j]; k < depth, j < width <= panel.
  void (*multiply)(const float* a, int64_t a_row, int64_t a_group, const float* b, int64_t width, int64_t depth,
                   float* c, int64_t c_row, int64_t c_group, int64_t rows_of_group, int64_t groups);
  /// c[m c_row + j] = sum over t and k of a(m, t, k) b[(t depth + k) width + j] + bias[j] + add[m c_row + j], the last
  /// two if they are given; k < depth, j < width <= panel, m < rows. c may be add.
  void (*multiply_all)(const Windows& a, const float* b, int64_t width, int64_t depth, const float* bias,
                       const float* add, float* c, int64_t c_row, int64_t rows);
  /// c[m c_row + j] = (or += with `add`) sum over groups and k < depth_of_group of a[k a_row + m] b[k width + j].
  void (*multiply_across)(const float* a, int64_t a_row, int64_t a_group, int64_t rows, const float* b, int64_t width,
                          int64_t b_group, int64_t groups, float* c, int64_t c_row, bool add);
  /// to[j to_step + i] = from[i from_step + j], for 16 by 16 elements.
  void (*transpose)(const float* from, int64_t from_step, float* to, int64_t to_step);
  /// For few rows, with any outs and depth and the weight in place, which is read once for up to eight rows:
  /// sums[m sums_row + j] += a[m a_row + k] w[j w_row + k] for k = 0, 1, ..., depth - 1; j < outs, m < rows.
  /// The additions are one chain, in this order: that of multiply_all, if the sums begin with 0 and its bias follows.
  void (*add_by_outputs)(const float* a, int64_t a_row, int64_t rows, const float* w, int64_t w_row, int64_t outs,
                         int64_t depth, float* sums, int64_t sums_row);
  /// The same with w[k w_row + j].
  void (*add_by_inputs)(const float* a, int64_t a_row, int64_t rows, const float* w, int64_t w_row, int64_t outs,
                        int64_t depth, float* sums, int64_t sums_row);
};
const Matrices& matrices();

}  // namespace nacre::karatsuba
