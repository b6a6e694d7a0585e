#include "quantizer/vq_search.h"

#include <cmath>
#include <limits>

#include "runtime/lanes.h"

// Nearest code on the CPU; vq_search.h gives the arithmetic and the layout of packed codebooks. There are two searches
// with the same bits:
//
//   nearest            packed codebooks, tiles of twelve rows: one vector of codes serves twelve rows
//   nearest_in_place   few rows: 64 codes at a time are packed into a small buffer and searched at once
//
// Each is compiled for vectors of 4, 8 and 16 floats, and vector_width() picks one at run time. The lanes of a vector
// are codes, so the order of a sum does not depend on the width.
namespace nacre::vq_search {
namespace {

constexpr float tiny_norm = 1e-12f;

/// x (rows as a tile), packed block, its half norms, dim, index of its first code, best [tile][lanes], index
/// [tile][lanes].
using Search = void (*)(const float*, const float*, const float*, int64_t, int64_t, float*, int32_t*);

// Half distances of twelve rows to a block of sixteen codes: x is [dim][tile], codes [dim][lanes]. best and index
// [tile][lanes] have the least half distance that each lane has seen, and its code; the block joins them. `base` is the
// index of the block's first code. Vector types are explicit because gcc 12 vectorises the plain loop along the rows,
// four wide, at a tenth of the speed. There is one function per instruction set because function clones would split
// these vectors first. All do the same operations in the same order per row and code.
#define NACRE_SEARCH(name, target, width)                                                                        \
  target void name(const float* __restrict x, const float* __restrict codes, const float* __restrict half_norms, \
                   int64_t dim, int64_t base, float* __restrict best, int32_t* __restrict index) {               \
    typedef float Floats __attribute__((vector_size(width * 4), aligned(4), may_alias));                         \
    typedef int32_t Ints __attribute__((vector_size(width * 4), aligned(4), may_alias));                         \
    for (int64_t t = 0; t < lanes; t += width) {                                                                 \
      const Floats start = *reinterpret_cast<const Floats*>(half_norms + t);                                     \
      Floats h[tile];                                                                                            \
      _Pragma("GCC unroll 12") for (int r = 0; r < tile; ++r) h[r] = start;                                      \
      for (int64_t d = 0; d < dim; ++d) {                                                                        \
        const Floats c = *reinterpret_cast<const Floats*>(codes + d * lanes + t);                                \
        _Pragma("GCC unroll 12") for (int r = 0; r < tile; ++r) h[r] -= x[d * tile + r] * c;                     \
      }                                                                                                          \
      Ints k;                                                                                                    \
      for (int j = 0; j < width; ++j) k[j] = static_cast<int32_t>(base + t + j);                                 \
      _Pragma("GCC unroll 12") for (int r = 0; r < tile; ++r) {                                                  \
        Floats* b = reinterpret_cast<Floats*>(best + r * lanes + t);                                             \
        Ints* i = reinterpret_cast<Ints*>(index + r * lanes + t);                                                \
        const Ints less = h[r] < *b;                                                                             \
        *b = less ? h[r] : *b;                                                                                   \
        *i = less ? k : *i;                                                                                      \
      }                                                                                                          \
    }                                                                                                            \
  }

NACRE_SEARCH(search_4, , 4)
#if defined(__x86_64__) && !defined(NACRE_NO_CLONES)
NACRE_SEARCH(search_8, __attribute__((target("arch=x86-64-v3"))), 8)
NACRE_SEARCH(search_16, __attribute__((target("arch=x86-64-v4"))), 16)
#endif
#undef NACRE_SEARCH

Search select_search() {
#if defined(__x86_64__) && !defined(NACRE_NO_CLONES)
  if (vector_width() == 16) return search_16;
  if (vector_width() == 8) return search_8;
#endif
  return search_4;
}

/// Packs a whole block. from: [lanes][dim]; to: [dim][lanes], scaled; norms: half norms, of squares that are added in
/// channel order. Matrices of width x width, codes by channels, are transposed in registers; the channels that are left
/// go one by one. A lane is a code, so every width adds in the same order.
template <int width>
NACRE_INLINE void pack_body(const float* from, int64_t dim, const float* scale, float* to, float* norms) {
  using Vec = typename Vector<width>::Type;
  for (int64_t t = 0; t < lanes; t += width, from += width * dim) {
    Vec sum = {};
    const Vec factor = at<width>(scale + t);
    int64_t d = 0;
    for (; d + width <= dim; d += width) {
      Vec columns[width];
#pragma GCC unroll 16
      for (int i = 0; i < width; ++i) {
        columns[i] = at<width>(from + i * dim + d);
        // The same place of the next block: there are more rows than the hardware's prefetcher follows. Once per 64
        // bytes of a row; a prefetch beyond the codebook does nothing.
        if (width == lanes || d % 16 == 0) __builtin_prefetch(from + (lanes + i) * dim + d, 0, 2);
      }
      exchange<width>(columns);
#pragma GCC unroll 16
      for (int i = 0; i < width; ++i) {
        const Vec c = columns[i] * factor;
        at<width>(to + (d + i) * lanes + t) = c;
        sum += c * c;
      }
    }
    for (; d < dim; ++d) {
      float column[width];
      for (int64_t i = 0; i < width; ++i) column[i] = from[i * dim + d];
      const Vec c = at<width>(column) * factor;
      at<width>(to + d * lanes + t) = c;
      sum += c * c;
    }
    at<width>(norms + t) = sum * 0.5f;
  }
}

template <int width>
struct Indices {
  typedef int32_t Type __attribute__((vector_size(4 * width), aligned(4), may_alias));
};
/// As Search, for R rows of x, [row][dim], and B blocks, whose sums are independent and so hide each other's latency.
template <int width, int R, int B>
NACRE_INLINE void few_tile(const float* x, const float* blocks, const float* norms, int64_t dim, int64_t base,
                           float* best, int32_t* index) {
  using Vec = typename Vector<width>::Type;
  using Ints = typename Indices<width>::Type;
  for (int64_t t = 0; t < lanes; t += width) {
    Vec h[R][B];
#pragma GCC unroll 4
    for (int b = 0; b < B; ++b)
#pragma GCC unroll 2
      for (int r = 0; r < R; ++r) h[r][b] = at<width>(norms + b * lanes + t);
    for (int64_t d = 0; d < dim; ++d)
#pragma GCC unroll 4
      for (int b = 0; b < B; ++b) {
        const Vec c = at<width>(blocks + (b * dim + d) * lanes + t);
#pragma GCC unroll 2
        for (int r = 0; r < R; ++r) h[r][b] -= x[r * dim + d] * c;
      }
#pragma GCC unroll 4
    for (int b = 0; b < B; ++b) {
      Ints k{};
      for (int j = 0; j < width; ++j) k[j] = static_cast<int32_t>(base + b * lanes + t + j);
#pragma GCC unroll 2
      for (int r = 0; r < R; ++r) {
        Vec& least = at<width>(best + r * lanes + t);
        Ints& i = *reinterpret_cast<Ints*>(index + r * lanes + t);
        const Ints less = h[r][b] < least;
        least = less ? h[r][b] : least;
        i = less ? k : i;
      }
    }
  }
}
/// As few_tile, for `rows` rows and `count` blocks from code `base` on: rows in pairs, blocks in fours, then what is
/// left. Blocks are visited in ascending order for each row, as the choice among equal half distances requires.
template <int width>
NACRE_INLINE void few_body(const float* x, int64_t rows, const float* blocks, const float* norms, int64_t count,
                           int64_t dim, int64_t base, float* best, int32_t* index) {
  for (int64_t r = 0; r < rows; r += 2)
    for (int64_t b = 0; b < count;) {
      const float* const from = blocks + b * dim * lanes;
      const float* const of_norms = norms + b * lanes;
      const int64_t first = base + b * lanes;
      float* const least = best + r * lanes;
      int32_t* const k = index + r * lanes;
      if (b + 4 <= count) {
        rows - r > 1 ? few_tile<width, 2, 4>(x + r * dim, from, of_norms, dim, first, least, k)
                     : few_tile<width, 1, 4>(x + r * dim, from, of_norms, dim, first, least, k);
        b += 4;
      } else {
        rows - r > 1 ? few_tile<width, 2, 1>(x + r * dim, from, of_norms, dim, first, least, k)
                     : few_tile<width, 1, 1>(x + r * dim, from, of_norms, dim, first, least, k);
        b += 1;
      }
    }
}

/// Packing and search of one instruction set.
struct InPlace {
  void (*pack)(const float* from, int64_t dim, const float* scale, float* to, float* norms);
  void (*search)(const float* x, int64_t rows, const float* blocks, const float* norms, int64_t count, int64_t dim,
                 int64_t base, float* best, int32_t* index);
};
#define NACRE_IN_PLACE(width, target)                                                                           \
  target void pack_##width(const float* from, int64_t dim, const float* scale, float* to, float* norms) {       \
    pack_body<width>(from, dim, scale, to, norms);                                                              \
  }                                                                                                             \
  target void few_##width(const float* x, int64_t rows, const float* blocks, const float* norms, int64_t count, \
                          int64_t dim, int64_t base, float* best, int32_t* index) {                             \
    few_body<width>(x, rows, blocks, norms, count, dim, base, best, index);                                     \
  }
NACRE_IN_PLACE(4, )
#if defined(__x86_64__) && !defined(NACRE_NO_CLONES)
NACRE_IN_PLACE(8, __attribute__((target("arch=x86-64-v3"))))
NACRE_IN_PLACE(16, __attribute__((target("arch=x86-64-v4"))))
#endif
#undef NACRE_IN_PLACE

const InPlace& in_place() {
  static const InPlace picked = [] {
#if defined(__x86_64__) && !defined(NACRE_NO_CLONES)
    if (vector_width() == 16) return InPlace{pack_16, few_16};
    if (vector_width() == 8) return InPlace{pack_8, few_8};
#endif
    return InPlace{pack_4, few_4};
  }();
  return picked;
}

// 1 / max(|x|, tiny_norm). Not one of the clones: the plain x86-64 code has no fused multiply-add, so squares are
// rounded one by one, as add_square does on CUDA.
float inverse_norm(const float* x, int64_t dim) {
  float sum = 0;
  for (int64_t d = 0; d < dim; ++d) sum += x[d] * x[d];
  return 1.0f / std::max(std::sqrt(sum), tiny_norm);
}

// Half norms of a packed block. One code per lane, so every vector width adds the squares of a code in channel order.
NACRE_CLONES void half_norms_of(const float* __restrict block, int64_t dim, float* __restrict out) {
  float sum[lanes] = {};
  for (int64_t d = 0; d < dim; ++d)
    for (int64_t t = 0; t < lanes; ++t) sum[t] += block[d * lanes + t] * block[d * lanes + t];
  for (int64_t t = 0; t < lanes; ++t) out[t] = 0.5f * sum[t];
}

/// sum += x, in double.
NACRE_CLONES void add_row(const float* __restrict x, int64_t n, double* __restrict sum) {
  for (int64_t d = 0; d < n; ++d) sum[d] += static_cast<double>(x[d]);
}

}  // namespace

// Floats of the widest vectors that this processor has. 16 requires the AVX-512 features of psABI level x86-64-v4. 8
// requires avx2 and fma, as level x86-64-v3 does; its other features are not tested.
int vector_width() {
#if defined(__x86_64__) && !defined(NACRE_NO_CLONES)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512cd") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
    return 16;
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return 8;
#endif
  return 4;
}

namespace {

/// Packs block `block` of one codebook to `to` [dim][lanes] and norms [lanes]. Codes beyond the last one have zeros.
void pack_block(const float* codebook, int64_t codes, int64_t dim, VqMetric metric, int64_t block, float* to,
                float* norms) {
  const int64_t count = std::min(lanes, codes - block * lanes);
  const float* const from = codebook + block * lanes * dim;
  float scale[lanes];
  for (int64_t t = 0; t < count; ++t) scale[t] = metric == VqMetric::cosine ? inverse_norm(from + t * dim, dim) : 1.0f;
  if (count == lanes) return in_place().pack(from, dim, scale, to, norms);
  for (int64_t t = 0; t < lanes; ++t)
    for (int64_t d = 0; d < dim; ++d) to[d * lanes + t] = t < count ? from[t * dim + d] * scale[t] : 0;
  half_norms_of(to, dim, norms);
  // Padding codes are at an infinite distance, so they are never chosen.
  for (int64_t t = count; t < lanes; ++t) norms[t] = std::numeric_limits<float>::infinity();
}

/// The lowest of a row's candidates, one per lane. Lanes hold interleaved indices, so equal half distances go to the
/// lower index explicitly.
int32_t least_of(const float* best, const int32_t* index, float& least) {
  least = best[0];
  int32_t code = index[0];
  for (int64_t t = 1; t < lanes; ++t)
    if (best[t] < least || (best[t] == least && index[t] < code)) least = best[t], code = index[t];
  return code;
}

}  // namespace

void pack_codebooks(const Context& ctx, const float* codebooks, int64_t stages, int64_t codes, int64_t dim,
                    VqMetric metric, float* packed) {
  const int64_t blocks = round_up(codes, lanes) / lanes;
  parallel_ranges(ctx, stages * blocks, 16, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t stage = i / blocks, block = i % blocks;
      float* const packed_book = packed + stage * packed_size(codes, dim);
      pack_block(codebooks + stage * codes * dim, codes, dim, metric, block, packed_book + block * lanes * dim,
                 packed_book + blocks * lanes * dim + block * lanes);
    }
  });
}

void pack_blocks(const float* codebook, int64_t codes, int64_t dim, VqMetric metric, int64_t first, int64_t count,
                 float* blocks, float* norms) {
  for (int64_t b = 0; b < count; ++b)
    pack_block(codebook, codes, dim, metric, first + b, blocks + b * lanes * dim, norms + b * lanes);
}

void nearest_in_place(const float* x, int64_t rows, int64_t dim, const float* codebook, int64_t codes, VqMetric metric,
                      float* buffer, int32_t* out, int64_t stride) {
  // Buffer: the rows, scaled for the metric, [few_rows][dim]; then few_blocks packed blocks.
  float best[few_rows * lanes], norms[few_blocks * lanes];
  int32_t index[few_rows * lanes];
  std::fill(best, best + rows * lanes, std::numeric_limits<float>::infinity());
  std::fill(index, index + rows * lanes, 0);
  float *const scaled = buffer, *const packed = buffer + few_rows * dim;
  for (int64_t r = 0; r < rows; ++r) {
    const float scale = metric == VqMetric::cosine ? inverse_norm(x + r * dim, dim) : 1.0f;
    for (int64_t d = 0; d < dim; ++d) scaled[r * dim + d] = x[r * dim + d] * scale;
  }
  const int64_t blocks = round_up(codes, lanes) / lanes;
  for (int64_t first = 0; first < blocks; first += few_blocks) {
    const int64_t count = std::min(few_blocks, blocks - first);
    pack_blocks(codebook, codes, dim, metric, first, count, packed, norms);
    in_place().search(scaled, rows, packed, norms, count, dim, first * lanes, best, index);
  }
  for (int64_t r = 0; r < rows; ++r) {
    float least;
    out[r * stride] = least_of(best + r * lanes, index + r * lanes, least);
  }
}

void nearest(const float* x, int64_t rows, int64_t dim, const float* packed, int64_t codes, VqMetric metric,
             float* buffer, int32_t* out, int64_t stride, float* half_distances) {
  // Three phases: rows are transposed into tiles of twelve; every tile is compared with every block of sixteen codes;
  // the sixteen candidates of a row (one per lane) are reduced to one. `best` and `index` are [row][lane], on the
  // stack, because ops allocate nothing.
  //
  // A lane visits codes in ascending order and takes only strictly smaller half distances, so it holds its lowest
  // index. NaN compares false: such a row keeps index 0.
  static const Search search = select_search();
  const int64_t blocks = round_up(codes, lanes) / lanes, tiles = round_up(rows, tile) / tile;
  const float* norms = packed + blocks * lanes * dim;
  float best[max_rows * lanes];
  int32_t index[max_rows * lanes];
  std::fill(best, best + tiles * tile * lanes, std::numeric_limits<float>::infinity());
  std::fill(index, index + tiles * tile * lanes, 0);

  for (int64_t r = 0; r < tiles * tile; ++r) {
    float* to = buffer + r / tile * tile * dim + r % tile;
    if (r >= rows) {
      for (int64_t d = 0; d < dim; ++d) to[d * tile] = 0;
      continue;
    }
    const float* from = x + r * dim;
    const float scale = metric == VqMetric::cosine ? inverse_norm(from, dim) : 1.0f;
    for (int64_t d = 0; d < dim; ++d) to[d * tile] = from[d] * scale;
  }
  // Tiles inside, blocks outside: a block of codes comes from memory once for up to 48 rows.
  for (int64_t b = 0; b < blocks; ++b)
    for (int64_t t = 0; t < tiles; ++t)
      search(buffer + t * tile * dim, packed + b * lanes * dim, norms + b * lanes, dim, b * lanes,
             best + t * tile * lanes, index + t * tile * lanes);

  for (int64_t r = 0; r < rows; ++r) {
    float least;
    out[r * stride] = least_of(best + r * lanes, index + r * lanes, least);
    if (half_distances != nullptr) half_distances[r] = least;
  }
}

void sum_rows(const float* x, int64_t dim, const int32_t* list, int64_t n, float* out) {
  // 1 KiB of running sums on the stack. The rows are read once per chunk, in the order of the list.
  constexpr int64_t chunk = 128;
  double sum[chunk];
  for (int64_t d = 0; d < dim; d += chunk) {
    const int64_t width = std::min(chunk, dim - d);
    std::fill(sum, sum + width, 0.0);
    for (int64_t i = 0; i < n; ++i) add_row(x + list[i] * dim + d, width, sum);
    for (int64_t j = 0; j < width; ++j) out[d + j] = static_cast<float>(sum[j]);
  }
}

}  // namespace nacre::vq_search
