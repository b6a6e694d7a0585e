#include "conv/conv1d_tiles.h"

#include "runtime/lanes.h"

// The loops of conv1d_tiles.h. outer_products: a weight gradient, where b has the factors that are broadcast (channels
// of x) and v those that fill vectors (outputs), or the other way round if outputs are few. window_dots: a forward with
// few outputs, dot products of windows with one output's weight.
//
// Accumulators must stay in registers, so a tile is as large as the register file of its instruction set. Bodies are
// templates that are inlined into one function per instruction set, because templates cannot have target clones.
namespace nacre::direct {
namespace {

/// sums[i][j] += sum over rows of b[i] v[j], for B scalars and V vectors.
template <int lanes, int B, int V>
NACRE_INLINE void tile(const float* b, int64_t b_step, const float* v, int64_t v_step, int64_t rows, float* sums,
                       int64_t sums_step) {
  using Vec = typename Vector<lanes>::Type;
  // The B x V sums stay in registers over all rows. Each row is loaded once (V vectors) and each b is a broadcast. The
  // result is added to `sums` at the end, so the bits depend on how many rows a call has, but not on B and V.
  Vec sum[B][V] = {};
  for (int64_t r = 0; r < rows; ++r, b += b_step, v += v_step) {
    Vec x[V];
#pragma GCC unroll 4
    for (int n = 0; n < V; ++n) x[n] = *reinterpret_cast<const Vec*>(v + n * lanes);
#pragma GCC unroll 16
    for (int i = 0; i < B; ++i) {
      const float s = b[i];
#pragma GCC unroll 4
      for (int n = 0; n < V; ++n) sum[i][n] += x[n] * s;
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < B; ++i)
#pragma GCC unroll 4
    for (int n = 0; n < V; ++n) *reinterpret_cast<Vec*>(sums + i * sums_step + n * lanes) += sum[i][n];
}

/// Tiles of B of the scalars, then one of 8 where B is 16, then one tile of the 1 to 7 that are left. V vectors wide.
template <int lanes, int B, int V>
NACRE_INLINE void strip(const float* b, int64_t b_step, int64_t rows_left, const float* v, int64_t v_step, int64_t rows,
                        float* sums, int64_t sums_step) {
  for (; rows_left >= B; rows_left -= B, b += B, sums += B * sums_step)
    tile<lanes, B, V>(b, b_step, v, v_step, rows, sums, sums_step);
  if constexpr (B > 8) {
    if (rows_left >= 8) {
      tile<lanes, 8, V>(b, b_step, v, v_step, rows, sums, sums_step);
      rows_left -= 8, b += 8, sums += 8 * sums_step;
    }
  }
#define NACRE_REST(n)                                                                    \
  case n:                                                                                \
    if constexpr (n < B) tile<lanes, n, V>(b, b_step, v, v_step, rows, sums, sums_step); \
    break;
  switch (rows_left) {
    NACRE_REST(1) NACRE_REST(2) NACRE_REST(3) NACRE_REST(4) NACRE_REST(5) NACRE_REST(6) NACRE_REST(7)
  }
#undef NACRE_REST
}

/// The whole width: first strips of V vectors, then strips of a single vector with `wide` scalars per tile.
template <int lanes, int narrow, int wide, int V>  // tiles of narrow x V vectors, or wide x 1 where V do not fit
NACRE_INLINE void outer_products_body(const float* b, int64_t b_step, int64_t nb, const float* v, int64_t v_step,
                                      int64_t width, int64_t rows, float* sums, int64_t sums_step) {
  int64_t j = 0;
  for (; j + V * lanes <= width; j += V * lanes)
    strip<lanes, narrow, V>(b, b_step, nb, v + j, v_step, rows, sums + j, sums_step);
  for (; j < width; j += lanes) strip<lanes, wide, 1>(b, b_step, nb, v + j, v_step, rows, sums + j, sums_step);
}

/// The sum of all lanes, by adding halves.
template <int lanes>
NACRE_INLINE float total(const typename Vector<lanes>::Type& v) {
  if constexpr (lanes == 2) {
    return v[0] + v[1];
  } else {
    typename Vector<lanes / 2>::Type halves[2];
    __builtin_memcpy(halves, &v, sizeof(halves));
    halves[0] += halves[1];
    return total<lanes / 2>(halves[0]);
  }
}

/// y[r] = the dot product of window r with the weight, for R windows x_step apart; a window has `taps` runs of `width`
/// floats.
template <int lanes, int R>
NACRE_INLINE void dots(const float* x, int64_t x_step, int64_t taps, int64_t tap_step, int64_t width, const float* w,
                       float* y) {
  using Vec = typename Vector<lanes>::Type;
  // R outputs share each load of the weight. Lanes and the channels that fill no vector are summed apart and joined at
  // the end: the order depends on the instruction set, not on R.
  Vec sum[R] = {};
  float rest[R] = {};
  for (int64_t k = 0; k < taps; ++k, x += tap_step, w += width) {
    int64_t j = 0;
    for (; j + lanes <= width; j += lanes) {
      const Vec factor = *reinterpret_cast<const Vec*>(w + j);
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) sum[r] += factor * *reinterpret_cast<const Vec*>(x + r * x_step + j);
    }
    for (; j < width; ++j)
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) rest[r] += w[j] * x[r * x_step + j];
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
    y[r] = total<lanes>(sum[r]) + rest[r];
  }
}
template <int lanes>
NACRE_INLINE void window_dots_body(const float* x, int64_t x_step, int64_t taps, int64_t tap_step, int64_t width,
                                   const float* w, int64_t rows, float* y) {
  int64_t r = 0;
  for (; r + 8 <= rows; r += 8) dots<lanes, 8>(x + r * x_step, x_step, taps, tap_step, width, w, y + r);
  for (; r < rows; ++r) dots<lanes, 1>(x + r * x_step, x_step, taps, tap_step, width, w, y + r);
}

// A tile of narrow x V vectors, or of wide x 1: 8 accumulators of 16 registers, or 16 of 32 for AVX-512.
#define NACRE_TILES(set, lanes, narrow, wide, V)                                                                       \
  void outer_products_##set(const float* b, int64_t b_step, int64_t nb, const float* v, int64_t v_step, int64_t width, \
                            int64_t rows, float* sums, int64_t sums_step) {                                            \
    outer_products_body<lanes, narrow, wide, V>(b, b_step, nb, v, v_step, width, rows, sums, sums_step);               \
  }
#define NACRE_DOTS(set, lanes)                                                                          \
  void window_dots_##set(const float* x, int64_t x_step, int64_t taps, int64_t tap_step, int64_t width, \
                         const float* w, int64_t rows, float* y) {                                      \
    window_dots_body<lanes>(x, x_step, taps, tap_step, width, w, rows, y);                              \
  }

NACRE_TILES(baseline, 4, 4, 8, 2)
NACRE_DOTS(baseline, 4)
#if defined(__x86_64__) && !defined(NACRE_NO_CLONES)
__attribute__((target("arch=x86-64-v3"))) NACRE_TILES(avx2, 8, 4, 8, 2) __attribute__((target("arch=x86-64-v3")))
NACRE_DOTS(avx2, 8) __attribute__((target("arch=x86-64-v4"))) NACRE_TILES(avx512, 16, 8, 16, 2)
    __attribute__((target("arch=x86-64-v4"))) NACRE_DOTS(avx512, 16)
#define NACRE_PICK(name)                                                                                             \
  (__builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") && \
           __builtin_cpu_supports("avx512cd")                                                                        \
       ? name##_avx512                                                                                               \
   : __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") ? name##_avx2                                   \
                                                                     : name##_baseline)
#else
#define NACRE_PICK(name) name##_baseline
#endif

}  // namespace

OuterProducts outer_products() {
  static const OuterProducts picked = NACRE_PICK(outer_products);
  return picked;
}
WindowDots window_dots() {
  static const WindowDots picked = NACRE_PICK(window_dots);
  return picked;
}

}  // namespace nacre::direct
