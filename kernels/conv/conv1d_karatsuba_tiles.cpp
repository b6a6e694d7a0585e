#include "conv/conv1d_karatsuba_tiles.h"

#include "runtime/lanes.h"

// The loops declared in conv1d_karatsuba_tiles.h, in this order: the sums and differences of the scheme (split, spread,
// gather), the matrix products (tile and what calls it), the products of few rows, the transpose, and the tables of
// functions per instruction set. As in conv1d_tiles.cpp, tiles are as large as the register file, and bodies are
// inlined into one function per instruction set.
namespace nacre::karatsuba {
namespace {

// The scheme computes n outputs of n taps, y[t] = sum over k of w[k] x[t + k], from 2 n - 1 inputs, by products of one
// sum of inputs with one sum of taps each. One level halves outputs and taps, h = n / 2. X(s) are the 2 h - 1 inputs
// from s on, w0 and w1 the halves of the taps, * is the same problem of half the size:
//   first half of y  = X(0) * w0 + X(h) * w1  = (X(0) - X(h)) * w0 + X(h) * (w0 + w1)
//   second half of y = X(h) * w0 + X(2h) * w1 = X(h) * (w0 + w1) + (X(2h) - X(h)) * w1
// Three problems of half the size instead of four: 3 products for two taps, 27 for eight. Exchanging w and y gives the
// same equations for the gradient of the taps, so `spread` makes the factors of taps and of rows of dy, and `gather`
// adds the products of rows of y and of taps.
//
// The three problems that problem p of a level becomes have the numbers 3 p, 3 p + 1 and 3 p + 2 on the next level, in
// the order of the factors w0, w0 + w1 and w1. So after three levels the base-3 digits of q describe product q. X(h)
// belongs to all three problems, so the differences go to a new array.
// split_level computes the factors of inputs: one vector of each of the 2 n - 1 rows in x, and the products of a
// problem that has number p among those of its level. Leaves store a factor, except for number `drop`.
template <int lanes, int n, int p, int drop>
NACRE_INLINE void split_level(const typename Vector<lanes>::Type* x, float* to, int64_t step) {
  if constexpr (p == drop && n == 1) {
  } else if constexpr (n == 1) {
    at<lanes>(to + p * step) = x[0];
  } else {
    constexpr int h = n / 2, size = 2 * h - 1;
    typename Vector<lanes>::Type d[size];
#pragma GCC unroll 8
    for (int i = 0; i < size; ++i) d[i] = x[i] - x[i + h];
    split_level<lanes, h, 3 * p, drop>(d, to, step);
    split_level<lanes, h, 3 * p + 1, drop>(x + h, to, step);
#pragma GCC unroll 8
    for (int i = 0; i < size; ++i) d[i] = x[i + 2 * h] - x[i + h];
    split_level<lanes, h, 3 * p + 2, drop>(d, to, step);
  }
}
// Of eight taps the last is zero: seven are used, and the product with the eighth alone, number 26, is left out. It is
// zero in the forward, and only the gradient of the eighth tap would need it. It is also the only product that reads
// the last of 15 inputs, so 14 rows suffice.
template <int n>
inline constexpr int taps_of = n == 8 ? 7 : n;
template <int n>
inline constexpr int rows_of = n + taps_of<n> - 1;
template <int n>
inline constexpr int dropped = n == 8 ? 26 : -1;

/// Scheme::split: the rows pass through registers, `lanes` columns at a time. So do those of spread and gather.
template <int lanes, int n>
NACRE_INLINE void split_body(const float* const* rows, int64_t size, float* to, int64_t step) {
  for (int64_t i = 0; i < size; i += lanes) {
    typename Vector<lanes>::Type x[2 * n - 1];
#pragma GCC unroll 16
    for (int r = 0; r < rows_of<n>; ++r) x[r] = at<lanes>(rows[r] + i);
    // The last input only enters the product that is dropped: any defined value will do.
    if constexpr (rows_of<n> < 2 * n - 1) x[2 * n - 2] = x[0];
    split_level<lanes, n, 0, dropped<n>>(x, to + i, step);
  }
}

/// The factors of taps, or of rows of dy: w0, w0 + w1 and w1.
template <int lanes, int n, int p, int drop>
NACRE_INLINE void spread_level(const typename Vector<lanes>::Type* y, float* to, int64_t step) {
  if constexpr (p == drop && n == 1) {
  } else if constexpr (n == 1) {
    at<lanes>(to + p * step) = y[0];
  } else {
    constexpr int h = n / 2;
    typename Vector<lanes>::Type sum[h];
#pragma GCC unroll 8
    for (int i = 0; i < h; ++i) sum[i] = y[i] + y[i + h];
    spread_level<lanes, h, 3 * p, drop>(y, to, step);
    spread_level<lanes, h, 3 * p + 1, drop>(sum, to, step);
    spread_level<lanes, h, 3 * p + 2, drop>(y + h, to, step);
  }
}
template <int lanes, int n>
NACRE_INLINE void spread_body(const float* const* rows, int64_t size, float* to, int64_t step) {
  for (int64_t i = 0; i < size; i += lanes) {
    typename Vector<lanes>::Type y[n] = {};
#pragma GCC unroll 8
    for (int r = 0; r < n - 1; ++r) y[r] = at<lanes>(rows[r] + i);
    // Eight rows of dy, but seven taps: the eighth is zero.
    if (rows[n - 1] != nullptr) y[n - 1] = at<lanes>(rows[n - 1] + i);
    spread_level<lanes, n, 0, dropped<n>>(y, to + i, step);
  }
}

/// y = the n rows of y, or the n taps, that follow from the products of problem p.
template <int lanes, int n, int p, int drop>
NACRE_INLINE void gather_level(const float* from, int64_t step, typename Vector<lanes>::Type* y) {
  if constexpr (n == 1 && p == drop) {
    y[0] = typename Vector<lanes>::Type{};
  } else if constexpr (n == 1) {
    y[0] = at<lanes>(from + p * step);
  } else {
    constexpr int h = n / 2;
    typename Vector<lanes>::Type both[h];
    // The transpose of the sums above: the middle product belongs to both halves.
    gather_level<lanes, h, 3 * p, drop>(from, step, y);
    gather_level<lanes, h, 3 * p + 1, drop>(from, step, both);
    gather_level<lanes, h, 3 * p + 2, drop>(from, step, y + h);
#pragma GCC unroll 8
    for (int i = 0; i < h; ++i) y[i] += both[i], y[i + h] += both[i];
  }
}
/// Scheme::gather. `to` may be `add`: an element is read before it is written. Bias and `add` follow the sum, as in
/// tile().
template <int lanes, int n>
NACRE_INLINE void gather_body(const float* from, int64_t step, int64_t size, const float* bias, const float* const* add,
                              float* const* to) {
  for (int64_t i = 0; i < size; i += lanes) {
    typename Vector<lanes>::Type y[n], offset = {};
    gather_level<lanes, n, 0, dropped<n>>(from + i, step, y);
    if (bias != nullptr) offset = at<lanes>(bias + i);
#pragma GCC unroll 8
    for (int r = 0; r < n; ++r) {
      if (to[r] == nullptr) continue;
      y[r] += offset;
      at<lanes>(to[r] + i) = add != nullptr ? y[r] + at<lanes>(add[r] + i) : y[r];
    }
  }
}
/// The sum of each part is gathered and added before the next: the order of parts is that of memory.
template <int lanes, int n>
NACRE_INLINE void gather_taps_body(const float* from, int64_t step, int64_t parts, int64_t part_step, int64_t size,
                                   float* to, int64_t tap_step) {
  for (int64_t i = 0; i < size; i += lanes) {
    typename Vector<lanes>::Type y[n];
    for (int64_t part = 0; part < parts; ++part) {
      gather_level<lanes, n, 0, dropped<n>>(from + part * part_step + i, step, y);
#pragma GCC unroll 8
      for (int k = 0; k < taps_of<n>; ++k) at<lanes>(to + k * tap_step + i) += y[k];
    }
  }
}

/// R rows by V vectors of multiply and multiply_all: c[m, j] = sum over taps t and k of a(m, t, k) b[t, k, j], then
/// bias and `add` if there are any. Each element is one chain of additions, taps outermost.
template <int lanes, int R, int V>
NACRE_INLINE void tile(const Windows& of, const float* b, int64_t width, int64_t depth, float* c, int64_t c_row,
                       const float* bias = nullptr, const float* add = nullptr) {
  using Vec = typename Vector<lanes>::Type;
  Vec sum[R][V] = {};
  // An R by V tile of c in registers. Per step of the depth: V loads of b, shared by R rows, and R broadcasts of a,
  // shared by V vectors. With 24 accumulators of 32 registers (12 of 16 for the other sets) there is room for both.
  const int64_t a_row = of.row;
  for (int64_t t = 0; t < of.taps; ++t) {
    const float* const a = of.a + t * of.tap;
    // Four pointers for up to twelve rows. The other rows lie one or two pitches from a pointer, an offset that an
    // address of x86 can hold.
    const float* every_third_row[4] = {a, a + 3 * a_row, a + 6 * a_row, a + 9 * a_row};
    for (int64_t k = 0; k < depth; ++k, b += width) {
      Vec x[V];
#pragma GCC unroll 4
      for (int n = 0; n < V; ++n) x[n] = at<lanes>(b + n * lanes);
#pragma GCC unroll 16
      for (int i = 0; i < R; ++i) {
        const float s = every_third_row[i / 3][i % 3 * a_row];
#pragma GCC unroll 4
        for (int n = 0; n < V; ++n) sum[i][n] += x[n] * s;
      }
#pragma GCC unroll 4
      for (int i = 0; i < (R + 2) / 3; ++i) ++every_third_row[i];
    }
  }
  if (bias != nullptr)
#pragma GCC unroll 16
    for (int i = 0; i < R; ++i)
#pragma GCC unroll 4
      for (int n = 0; n < V; ++n) sum[i][n] += at<lanes>(bias + n * lanes);
  if (add != nullptr)
#pragma GCC unroll 16
    for (int i = 0; i < R; ++i)
#pragma GCC unroll 4
      for (int n = 0; n < V; ++n) sum[i][n] += at<lanes>(add + i * c_row + n * lanes);
#pragma GCC unroll 16
  for (int i = 0; i < R; ++i)
#pragma GCC unroll 4
    for (int n = 0; n < V; ++n) at<lanes>(c + i * c_row + n * lanes) = sum[i][n];
}
/// All `rows` of one strip of R by V tiles, V vectors wide.
template <int lanes, int R, int V>
NACRE_INLINE void strip_all(Windows a, const float* b, int64_t width, int64_t depth, const float* bias,
                            const float* add, float* c, int64_t c_row, int64_t rows) {
  const auto next = [&](int64_t n) {
    a.a += n * a.row, c += n * c_row, add = add == nullptr ? nullptr : add + n * c_row;
  };
  // The rest goes by two rows and one. All tiles add a row's products in the same order, so the bits of a row do not
  // depend on the tile that it falls into.
  for (; rows >= R; rows -= R, next(R)) tile<lanes, R, V>(a, b, width, depth, c, c_row, bias, add);
  for (; rows >= 2; rows -= 2, next(2)) tile<lanes, 2, V>(a, b, width, depth, c, c_row, bias, add);
  if (rows > 0) tile<lanes, 1, V>(a, b, width, depth, c, c_row, bias, add);
}
/// The widest tile that the panel still fills. AVX-512 takes 6 x 4 vectors, then 12 x 2, which are 24 accumulators
/// each, then 12 x 1; the other sets 6 x 2. `width` is a multiple of 16.
template <int lanes>
NACRE_INLINE void multiply_all_body(const Windows& a, const float* b, int64_t width, int64_t depth, const float* bias,
                                    const float* add, float* c, int64_t c_row, int64_t rows) {
  const auto of = [](const float* p, int64_t j) { return p == nullptr ? nullptr : p + j; };
  int64_t j = 0;
  if constexpr (lanes == 16) {
    for (; j + 64 <= width; j += 64)
      strip_all<16, 6, 4>(a, b + j, width, depth, of(bias, j), of(add, j), c + j, c_row, rows);
    for (; j + 32 <= width; j += 32)
      strip_all<16, 12, 2>(a, b + j, width, depth, of(bias, j), of(add, j), c + j, c_row, rows);
    for (; j < width; j += 16)
      strip_all<16, 12, 1>(a, b + j, width, depth, of(bias, j), of(add, j), c + j, c_row, rows);
  } else {
    for (; j < width; j += 2 * lanes)
      strip_all<lanes, 6, 2>(a, b + j, width, depth, of(bias, j), of(add, j), c + j, c_row, rows);
  }
}
/// The rows of all groups by V vectors. R divides the rows of a group.
template <int lanes, int R, int V>
NACRE_INLINE void strip(const float* a, int64_t a_row, int64_t a_group, const float* b, int64_t width, int64_t depth,
                        float* c, int64_t c_row, int64_t c_group, int64_t rows_of_group, int64_t groups) {
  for (int64_t g = 0; g < groups; ++g, a += a_group, c += c_group)
    for (int64_t m = 0; m < rows_of_group; m += R)
      tile<lanes, R, V>({.a = a + m * a_row, .row = a_row}, b, width, depth, c + m * c_row, c_row);
}
/// The widest tile that the panel still fills. A group has 6 or 12 rows, which are whole tiles of 6 or one of 12.
template <int lanes>
NACRE_INLINE void multiply_body(const float* a, int64_t a_row, int64_t a_group, const float* b, int64_t width,
                                int64_t depth, float* c, int64_t c_row, int64_t c_group, int64_t rows_of_group,
                                int64_t groups) {
  int64_t j = 0;
  if constexpr (lanes == 16) {
    for (; j + 64 <= width; j += 64)
      strip<16, 6, 4>(a, a_row, a_group, b + j, width, depth, c + j, c_row, c_group, rows_of_group, groups);
    for (; j + 32 <= width && rows_of_group == 12; j += 32)
      strip<16, 12, 2>(a, a_row, a_group, b + j, width, depth, c + j, c_row, c_group, 12, groups);
    for (; j + 32 <= width; j += 32)
      strip<16, 6, 2>(a, a_row, a_group, b + j, width, depth, c + j, c_row, c_group, 6, groups);
    for (; j < width; j += 16)
      strip<16, 6, 1>(a, a_row, a_group, b + j, width, depth, c + j, c_row, c_group, rows_of_group, groups);
  } else {
    for (; j < width; j += 2 * lanes)
      strip<lanes, 6, 2>(a, a_row, a_group, b + j, width, depth, c + j, c_row, c_group, rows_of_group, groups);
  }
}

/// R neighbouring columns of a, as rows of c, by V vectors: c[m, j] (+)= sum over groups and k of a[k, m] b[k, j]. The
/// sums stay in registers over all groups, so c is read and written once per call.
template <int lanes, int R, int V>
NACRE_INLINE void tile_across(const float* a, int64_t a_row, int64_t a_group, const float* b, int64_t width,
                              int64_t b_group, int64_t groups, float* c, int64_t c_row, bool add) {
  using Vec = typename Vector<lanes>::Type;
  Vec sum[R][V] = {};
  for (int64_t g = 0; g < groups; ++g, a += a_group, b += b_group) {
    // A is read across: row k of a group has the factors of R neighbouring outputs, so sums run over rows of both
    // arrays.
    const float *row = a, *v = b;
    for (int64_t k = 0; k < depth_of_group; ++k, row += a_row, v += width) {
      Vec x[V];
#pragma GCC unroll 4
      for (int n = 0; n < V; ++n) x[n] = at<lanes>(v + n * lanes);
#pragma GCC unroll 8
      for (int i = 0; i < R; ++i)
#pragma GCC unroll 4
        for (int n = 0; n < V; ++n) sum[i][n] += x[n] * row[i];
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < R; ++i)
#pragma GCC unroll 4
    for (int n = 0; n < V; ++n) {
      Vec& to = at<lanes>(c + i * c_row + n * lanes);
      to = add ? to + sum[i][n] : sum[i][n];
    }
}
/// `rows` is a multiple of 16, so tiles of 4 or 8 rows come out even.
template <int lanes>
NACRE_INLINE void multiply_across_body(const float* a, int64_t a_row, int64_t a_group, int64_t rows, const float* b,
                                       int64_t width, int64_t b_group, int64_t groups, float* c, int64_t c_row,
                                       bool add) {
  constexpr int R = lanes == 16 ? 8 : 4;
  int64_t done = 0;
  // Four products per broadcast, because one broadcast seems to issue per cycle
  // (docs/decisions/conv1d-weight-gradient-tiles.md).
  if constexpr (lanes == 16)
    for (; done + 64 <= width; done += 64)
      for (int64_t m = 0; m < rows; m += 4)
        tile_across<16, 4, 4>(a + m, a_row, a_group, b + done, width, b_group, groups, c + m * c_row + done, c_row,
                              add);
  for (int64_t m = 0; m < rows; m += R) {
    int64_t j = done;
    for (; j + 2 * lanes <= width; j += 2 * lanes)
      tile_across<lanes, R, 2>(a + m, a_row, a_group, b + j, width, b_group, groups, c + m * c_row + j, c_row, add);
    if (j < width)
      tile_across<lanes, R, 1>(a + m, a_row, a_group, b + j, width, b_group, groups, c + m * c_row + j, c_row, add);
  }
}

// Few rows: sums that continue in `sums`, by weights in place. Every sum is one chain of additions in the order of k,
// as in tile(), so the bits are those of products with a weight that was laid out first.

/// Outputs that fill no vector. w[j w_out + k w_in]; in a vector, so that the compiler fuses the same operations.
template <int lanes>
NACRE_INLINE void few_left(const float* a, int64_t a_row, int64_t rows, const float* w, int64_t w_out, int64_t w_in,
                           int64_t outs, int64_t depth, float* sums, int64_t sums_row) {
  for (int64_t r = 0; r < rows; ++r, a += a_row, sums += sums_row) {
    float padded[lanes] = {};
    for (int64_t j = 0; j < outs; ++j) padded[j] = sums[j];
    typename Vector<lanes>::Type sum = at<lanes>(padded);
    for (int64_t k = 0; k < depth; ++k) {
      for (int64_t j = 0; j < outs; ++j) padded[j] = w[j * w_out + k * w_in];
      sum += at<lanes>(padded) * a[k];
    }
    at<lanes>(padded) = sum;
    for (int64_t j = 0; j < outs; ++j) sums[j] = padded[j];
  }
}

/// R rows by `lanes` outputs, whose weights are rows of w: squares of the weight are transposed in registers.
template <int lanes, int R>
NACRE_INLINE void few_by_outputs(const float* a, int64_t a_row, const float* w, int64_t w_row, int64_t depth,
                                 float* sums, int64_t sums_row) {
  typename Vector<lanes>::Type sum[R];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) sum[r] = at<lanes>(sums + r * sums_row);
  constexpr int thirds = (lanes + 2) / 3;
  const float* every_third_row[thirds];
#pragma GCC unroll 8
  for (int j = 0; j < thirds; ++j) every_third_row[j] = w + 3 * j * w_row;
  int64_t k = 0;
  for (; k + lanes <= depth; k += lanes) {
    typename Vector<lanes>::Type columns[lanes];
#pragma GCC unroll 16
    for (int j = 0; j < lanes; ++j) {
      const float* const from = every_third_row[j / 3] + j % 3 * w_row;
      columns[j] = at<lanes>(from);
      // The same place of the next outputs, because the hardware's prefetcher begins anew with every group of rows. One
      // prefetch per 64 bytes of a row. Past the last output it has no effect.
      if (lanes == 16 || k % 16 == 0) __builtin_prefetch(from + lanes * w_row, 0, 2);
    }
#pragma GCC unroll 8
    for (int j = 0; j < thirds; ++j) every_third_row[j] += lanes;
    exchange<lanes>(columns);
#pragma GCC unroll 16
    for (int j = 0; j < lanes; ++j)
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) sum[r] += columns[j] * a[r * a_row + k + j];
  }
  // Inputs that fill no square.
  for (; k < depth; ++k) {
    float column[lanes];
    for (int64_t j = 0; j < lanes; ++j) column[j] = w[j * w_row + k];
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) sum[r] += at<lanes>(column) * a[r * a_row + k];
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) at<lanes>(sums + r * sums_row) = sum[r];
}

/// R rows by all outputs, whose weights are columns of w. Sixteen rows of w are added at a time, each read front to
/// back.
template <int lanes, int R>
NACRE_INLINE void few_by_inputs(const float* a, int64_t a_row, const float* w, int64_t w_row, int64_t outs,
                                int64_t depth, float* sums, int64_t sums_row) {
  using Vec = typename Vector<lanes>::Type;
  // Between two blocks of 16 the sums are in memory, which keeps the chain of additions as it is.
  constexpr int64_t together = 16;
  for (; depth > 0; depth -= together, w += together * w_row, a += together) {
    int64_t j = 0;
    for (; j + lanes <= outs; j += lanes) {
      Vec sum[R];
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) sum[r] = at<lanes>(sums + r * sums_row + j);
      const float* from = w + j;
      if (depth >= together) {
#pragma GCC unroll 16
        for (int64_t k = 0; k < together; ++k, from += w_row) {
          const Vec factor = at<lanes>(from);
          // The row that is 16 further down, as above.
          if (lanes == 16 || j % 16 == 0) __builtin_prefetch(from + together * w_row, 0, 2);
#pragma GCC unroll 8
          for (int r = 0; r < R; ++r) sum[r] += factor * a[r * a_row + k];
        }
      } else {
        for (int64_t k = 0; k < depth; ++k, from += w_row) {
          const Vec factor = at<lanes>(from);
#pragma GCC unroll 8
          for (int r = 0; r < R; ++r) sum[r] += factor * a[r * a_row + k];
        }
      }
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) at<lanes>(sums + r * sums_row + j) = sum[r];
    }
    if (j < outs)
      few_left<lanes>(a, a_row, R, w + j, 1, w_row, outs - j, depth < together ? depth : together, sums + j, sums_row);
  }
}

// Calls tile(R) for eight rows at a time and then for all that are left, so that a weight is read once for up to eight.
#define NACRE_BY_ROWS(rows, tile)                         \
  for (; (rows) > 8; (rows) -= 8) tile(8) switch (rows) { \
      case 1:                                             \
        tile(1) break;                                    \
      case 2:                                             \
        tile(2) break;                                    \
      case 3:                                             \
        tile(3) break;                                    \
      case 4:                                             \
        tile(4) break;                                    \
      case 5:                                             \
        tile(5) break;                                    \
      case 6:                                             \
        tile(6) break;                                    \
      case 7:                                             \
        tile(7) break;                                    \
      case 8:                                             \
        tile(8) break;                                    \
    }
template <int lanes>
NACRE_INLINE void few_by_outputs_body(const float* a, int64_t a_row, int64_t rows, const float* w, int64_t w_row,
                                      int64_t outs, int64_t depth, float* sums, int64_t sums_row) {
  for (; outs >= lanes; outs -= lanes, w += lanes * w_row, sums += lanes) {
    int64_t left = rows;
    const float* x = a;
    float* to = sums;
#define NACRE_TILE(R)                                                  \
  {                                                                    \
    few_by_outputs<lanes, R>(x, a_row, w, w_row, depth, to, sums_row); \
    x += (R)*a_row, to += (R)*sums_row;                                \
  }
    NACRE_BY_ROWS(left, NACRE_TILE)
#undef NACRE_TILE
  }
  if (outs > 0) few_left<lanes>(a, a_row, rows, w, w_row, 1, outs, depth, sums, sums_row);
}
template <int lanes>
NACRE_INLINE void few_by_inputs_body(const float* a, int64_t a_row, int64_t rows, const float* w, int64_t w_row,
                                     int64_t outs, int64_t depth, float* sums, int64_t sums_row) {
#define NACRE_TILE(R)                                                         \
  {                                                                           \
    few_by_inputs<lanes, R>(a, a_row, w, w_row, outs, depth, sums, sums_row); \
    a += (R)*a_row, sums += (R)*sums_row;                                     \
  }
  NACRE_BY_ROWS(rows, NACRE_TILE)
#undef NACRE_TILE
}
#undef NACRE_BY_ROWS

/// 16 by 16 elements as squares of `lanes` by `lanes`, each transposed in registers; square (i, j) goes to (j, i).
template <int lanes>
NACRE_INLINE void transpose_body(const float* from, int64_t from_step, float* to, int64_t to_step) {
  for (int i = 0; i < 16; i += lanes)
    for (int j = 0; j < 16; j += lanes) {
      typename Vector<lanes>::Type rows[lanes];
#pragma GCC unroll 16
      for (int r = 0; r < lanes; ++r) rows[r] = at<lanes>(from + (i + r) * from_step + j);
      exchange<lanes>(rows);
#pragma GCC unroll 16
      for (int r = 0; r < lanes; ++r) at<lanes>(to + (j + r) * to_step + i) = rows[r];
    }
}

// One function per loop and instruction set, and the tables of them. Which table is used is found once, at the first
// call.
#define NACRE_SCHEME(set, target, lanes, n)                                                                       \
  target void split_##n##_##set(const float* const* rows, int64_t size, float* to, int64_t step) {                \
    split_body<lanes, n>(rows, size, to, step);                                                                   \
  }                                                                                                               \
  target void spread_##n##_##set(const float* const* rows, int64_t size, float* to, int64_t step) {               \
    spread_body<lanes, n>(rows, size, to, step);                                                                  \
  }                                                                                                               \
  target void gather_##n##_##set(const float* from, int64_t step, int64_t size, const float* bias,                \
                                 const float* const* add, float* const* to) {                                     \
    gather_body<lanes, n>(from, step, size, bias, add, to);                                                       \
  }                                                                                                               \
  target void taps_##n##_##set(const float* from, int64_t step, int64_t parts, int64_t part_step, int64_t size,   \
                               float* to, int64_t tap_step) {                                                     \
    gather_taps_body<lanes, n>(from, step, parts, part_step, size, to, tap_step);                                 \
  }                                                                                                               \
  constexpr Scheme scheme_##n##_##set{                                                                            \
      rows_of<n>,      n, taps_of<n>, n == 8 ? 26 : 3, split_##n##_##set, spread_##n##_##set, gather_##n##_##set, \
      taps_##n##_##set};
#define NACRE_LOOPS(set, target, lanes)                                                                         \
  NACRE_SCHEME(set, target, lanes, 8)                                                                           \
  NACRE_SCHEME(set, target, lanes, 2)                                                                           \
  target void multiply_##set(const float* a, int64_t a_row, int64_t a_group, const float* b, int64_t width,     \
                             int64_t depth, float* c, int64_t c_row, int64_t c_group, int64_t rows_of_group,    \
                             int64_t groups) {                                                                  \
    multiply_body<lanes>(a, a_row, a_group, b, width, depth, c, c_row, c_group, rows_of_group, groups);         \
  }                                                                                                             \
  target void all_##set(const Windows& a, const float* b, int64_t width, int64_t depth, const float* bias,      \
                        const float* add, float* c, int64_t c_row, int64_t rows) {                              \
    multiply_all_body<lanes>(a, b, width, depth, bias, add, c, c_row, rows);                                    \
  }                                                                                                             \
  target void across_##set(const float* a, int64_t a_row, int64_t a_group, int64_t rows, const float* b,        \
                           int64_t width, int64_t b_group, int64_t groups, float* c, int64_t c_row, bool add) { \
    multiply_across_body<lanes>(a, a_row, a_group, rows, b, width, b_group, groups, c, c_row, add);             \
  }                                                                                                             \
  target void transpose_##set(const float* from, int64_t from_step, float* to, int64_t to_step) {               \
    transpose_body<lanes>(from, from_step, to, to_step);                                                        \
  }                                                                                                             \
  target void by_outputs_##set(const float* a, int64_t a_row, int64_t rows, const float* w, int64_t w_row,      \
                               int64_t outs, int64_t depth, float* sums, int64_t sums_row) {                    \
    few_by_outputs_body<lanes>(a, a_row, rows, w, w_row, outs, depth, sums, sums_row);                          \
  }                                                                                                             \
  target void by_inputs_##set(const float* a, int64_t a_row, int64_t rows, const float* w, int64_t w_row,       \
                              int64_t outs, int64_t depth, float* sums, int64_t sums_row) {                     \
    few_by_inputs_body<lanes>(a, a_row, rows, w, w_row, outs, depth, sums, sums_row);                           \
  }                                                                                                             \
  constexpr Matrices matrices_##set{multiply_##set,  all_##set,        across_##set,                            \
                                    transpose_##set, by_outputs_##set, by_inputs_##set};

NACRE_LOOPS(baseline, , 4)
#if defined(__x86_64__) && !defined(NACRE_NO_CLONES)
NACRE_LOOPS(avx2, __attribute__((target("arch=x86-64-v3"))), 8)
NACRE_LOOPS(avx512, __attribute__((target("arch=x86-64-v4"))), 16)

enum class Set { baseline, avx2, avx512 };
// AVX-512 needs the features of x86-64-v4, for which the functions are compiled.
Set found() {
  if (__builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512cd"))
    return Set::avx512;
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") ? Set::avx2 : Set::baseline;
}
Set set() {
  static const Set picked = found();
  return picked;
}
#define NACRE_PICK(name) (set() == Set::avx512 ? name##_avx512 : set() == Set::avx2 ? name##_avx2 : name##_baseline)
#else
#define NACRE_PICK(name) name##_baseline
#endif

}  // namespace

const Scheme& scheme(int rows_out) { return rows_out == 8 ? NACRE_PICK(scheme_8) : NACRE_PICK(scheme_2); }
const Matrices& matrices() { return NACRE_PICK(matrices); }

}  // namespace nacre::karatsuba
