// Tensor cores compute approximate scores of all codes. Only codes that can still be the nearest are then compared in
// float, in the plain kernel's order, so the result is exact. With x^, c^ the factors rounded to tf32, n_k the half
// norm and s_k = n_k - x^.c^_k the approximate score, every code satisfies
//
//   |s_k - h_k| <= |x - x^| |c_k| + |x^| |c_k - c^_k| + e (n_k + |x| |c_k|) <= E
//
// where h_k is the plain kernel's sum and e bounds the rounding of both sums. E uses the largest |c|, |c - c^| and n of
// the codebook and the row's own |x|, |x - x^|. The plain kernel's choice has s_k <= min s + 2 E; only codes in that
// window are compared.
// e has three parts. Fused multiply-adds round by 2^-24 per channel. Tensor cores add eight exact products to a sum and
// truncate each addend at no more than 2^-23 of the largest, which is 10 x 2^-23 of n + |x| |c|; the bound uses 2^-18
// per eight channels, three times that. The comparison adds 2^-18 (an index in four bits, the rounding of min s + 2 E).
// Rows whose bound is not finite (NaN, overflow) and rows with too many near codes are marked with code -1. The kernel
// of vq_products_rest.cu searches for them in float.
//
// A lane holds the scores of sixteen adjacent codes of a group of 64 for each of its rows. For up to 16 channels it
// keeps only the least of the sixteen, so that a score costs one instruction; all sixteen codes are then compared in
// float. For more channels that would read too many codes: the index of the least is stored in the last four bits of
// its score, and the second least score is kept too.
//
// Counted in the code for sm_90a, not measured. Per score and lane; minimum, compare, select and logic run at half
// rate:
//
//   channels   mma   half-rate   issued      1M rows x 1024 codes, 528 schedulers at 1.755 GHz, ms
//      8       0.25     1.33      1.96       0.10 (half-rate) and 0.06 to compare 16 codes of each row again
//     16       0.5      1.29      2.4        0.15 (mma) and 0.09
//     32       1        5.2       6.8        0.38 (half-rate)
//     64       2        4.5       9.6        0.58 (mma)
//    128       4        4.5      10.7        1.16 (mma)
//
// with 8 cycles per mma of 16 x 8 x 8. That is half the peak of the tensor cores, which only wgmma reaches. By sums in
// float, 8 channels need 0.31 ms at the peak of fused multiply-adds, 128 channels 4.5 ms.
#include "quantizer/vq_products.cuh"

namespace nacre::cuda {
namespace {

constexpr float largest_size = 1e37f;  ///< magnitudes below this do not overflow in sums

/// The arguments of the kernel. `prepared`: the codebook as prepare_codebooks() leaves it; `products`: as
/// prepare_products() does. dim and padded are the channels and the padded number of codes.
struct Products {
  const float* x;
  int64_t rows;
  const float *prepared, *products;
  int32_t* out;
  float* half_distances;
  int dim, padded;
  bool cosine;
  bool pair_loads, pack_loads;  ///< x may be loaded by 8 and by 16 bytes
};

/// Two channels of a row; zero beyond the last row or channel.
__device__ __forceinline__ void load_pair(const Products& p, int64_t row, int channel, float (&v)[2]) {
  const float* from = p.x + row * p.dim + channel;
  v[0] = v[1] = 0;
  if (row >= p.rows) return;
  if (p.pair_loads && channel < p.dim) {
    const float2 both = *reinterpret_cast<const float2*>(from);
    v[0] = both.x, v[1] = both.y;
  } else {
    if (channel < p.dim) v[0] = from[0];
    if (channel + 1 < p.dim) v[1] = from[1];
  }
}

/// Block sizes for 8 K channels. The numbers of tiles and groups leave registers for `blocks` blocks per multiprocessor
/// and keep two stages within 99 KiB of shared memory.
template <int K>
struct Plan {
  static constexpr int depth = 8 * K;
  static constexpr int threads = 256, warps = threads / 32;
  static constexpr int tiles = K == 1 ? 4 : (K == 2 ? 3 : 2);  ///< tiles of sixteen rows of a warp
  static constexpr int warp_rows = tiles * 16, rows = warps * warp_rows;
  static constexpr int blocks = K <= 8 ? 2 : 1;  ///< blocks per multiprocessor
  /// Tiles of eight codes at once; for 64 channels registers suffice for one.
  static constexpr int code_tiles = K == 8 ? 1 : 2;
  static constexpr int steps = 8 / code_tiles;       ///< of `code_tiles` tiles through the 64 codes of a group
  static constexpr int groups = K <= 8 ? 8 / K : 1;  ///< groups of codes per pipeline stage
  static constexpr int group_floats = static_cast<int>(group_size(depth)), stage_floats = groups * group_floats;
  static constexpr bool index_in_score = K > 2;  ///< the last four bits of a score number a lane's code
};

/// The rows of this thread's warp. In an mma fragment lane l has rows l / 4 and l / 4 + 8 of a tile and codes 2 (l % 4)
/// and the next one: four lanes share a row, and each sees a quarter of the codes.
struct WarpRows {
  int lane, lane_of_row;
  int begin;      ///< first row of the warp in the arrays below
  int64_t first;  ///< the same row in x
  float* scales;  ///< in shared memory, one per row of the block; a warp reads and writes its own rows alone
  float *windows, *error_squares;
};

/// A warp's rows as tf32 fragments: [tile of rows][step of eight channels][register].
template <int K>
using Fragments = uint32_t[Plan<K>::tiles][K][4];

/// One value for each of a lane's rows: [tile][upper or lower half].
template <int K, class T>
using OfRows = T[Plan<K>::tiles][2];

/// State of a lane for one row and its quarter of the codes: the least score, the group it is in, and the least score
/// of all other groups (index_in_score: of all other codes).
struct Least {
  float first, second;
  int group;
};

// ---- before the codes: scales, fragments and windows of the rows

/// Starts the copy of a stage into the buffer of its parity. Threads copy adjacent 16-byte packs: coalesced.
template <int K>
__device__ __forceinline__ void fetch_stage(const Products& p, int stage, float* stages) {
  using P = Plan<K>;
  const int groups = p.padded / group_codes, begin = stage * P::groups;
  const int count = groups - begin < P::groups ? groups - begin : P::groups;
  const float* from = p.products + int64_t{begin} * P::group_floats;
  float* to = stages + stage % 2 * P::stage_floats;
#pragma unroll 1
  for (int i = static_cast<int>(threadIdx.x) * 4; i < count * P::group_floats; i += P::threads * 4)
    cp_async<16>(to + i, from + i, 16);
}

/// What a row is multiplied by: 1, or 1 / |x| for the cosine.
template <int K>
__device__ __forceinline__ void write_scales(const Products& p, const WarpRows& w) {
#pragma unroll 1
  for (int i = w.lane; i < Plan<K>::warp_rows; i += 32) {
    const int64_t row = w.first + i;
    float square = 0;  // inverse_norm would take more registers
#pragma unroll 4
    for (int d = 0; d < (p.cosine && row < p.rows ? p.dim : 0); ++d) square = add_square(square, p.x[row * p.dim + d]);
    w.scales[w.begin + i] = p.cosine ? inverse_norm_of_square(square) : 1.0f;
  }
}

/// The largest |c|, |c - c^| and half norm of the codebook, in every lane.
__device__ __forceinline__ CodeBounds codebook_bounds(const Products& p, int64_t group_floats, int lane) {
  const int groups = p.padded / group_codes;
  CodeBounds largest{0, 0, 0};
#pragma unroll 1
  for (int g = lane; g < groups; g += 32) {
    const Pack<float> bounds = load_pack(p.products + int64_t{groups} * group_floats + g * 4);
    largest.norm = fmaxf(largest.norm, bounds.v[0]), largest.error = fmaxf(largest.error, bounds.v[1]),
    largest.half_norm = fmaxf(largest.half_norm, bounds.v[2]);
  }
  return largest_of_warp(largest);
}

/// The rows as tf32 fragments, which stay in registers for the whole search. A row's |x| and |x - x^| are summed over
/// its four lanes; their squares wait in `windows` and `error_squares` until all are known.
template <int K>
__device__ __forceinline__ void load_rows(const Products& p, const WarpRows& w, Fragments<K>& a) {
#pragma unroll
  for (int m = 0; m < Plan<K>::tiles; ++m)
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int i = m * 16 + h * 8 + w.lane / 4;
      const float scale = w.scales[w.begin + i];
      float square = 0, error_square = 0;
#pragma unroll
      for (int k = 0; k < K; ++k) {
        float v[2];
        load_pair(p, w.first + i, k * 8 + w.lane_of_row * 2, v);
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          const float x = __fmul_rn(v[e], scale);
          a[m][k][h + 2 * e] = to_tf32(x);
          const float r = x - __uint_as_float(a[m][k][h + 2 * e]);
          square += x * x, error_square += r * r;
        }
      }
#pragma unroll
      for (int lanes = 2; lanes > 0; lanes /= 2) {
        square += __shfl_xor_sync(full_warp, square, lanes);
        error_square += __shfl_xor_sync(full_warp, error_square, lanes);
      }
      if (w.lane_of_row == 0) w.windows[w.begin + i] = square, w.error_squares[w.begin + i] = error_square;
    }
}

/// 2 E of the comment above, plus 1 % for the rounding in this function; -1 if there is no bound.
__device__ __forceinline__ float window(float row_square, float row_error_square, const CodeBounds& code, int depth) {
  const float row_norm = norm_bound(row_square), row_error = norm_bound(row_error_square);
  const float magnitude = code.half_norm + 1.01f * row_norm * code.norm;
  const float rounding = static_cast<float>(depth / 8 + 1) * 0x1p-18f + static_cast<float>(depth) * 0x1p-23f;
  const float error = row_error * code.norm + (row_norm + row_error) * code.error + rounding * magnitude + 0x1p-110f;
  return magnitude < largest_size ? 2.02f * error : -1.0f;
}

/// The squares of load_rows become the windows 2 E of the rows.
template <int K>
__device__ __forceinline__ void write_windows(const WarpRows& w, const CodeBounds& largest) {
#pragma unroll 1
  for (int i = w.begin + w.lane; i < w.begin + Plan<K>::warp_rows; i += 32)
    w.windows[i] = window(w.windows[i], w.error_squares[i], largest, Plan<K>::depth);
}

// ---- scores of all codes by tensor cores

/// s = half norm - product, for the warp's rows and `code_tiles` tiles of eight codes. The products of different tiles
/// are independent, so their latencies overlap. One load of 16 bytes has two fragments: for K = 1 of two tiles
/// of codes, else of two steps of channels of one tile.
template <int K>
__device__ __forceinline__ void score_tiles(const WarpRows& w, const Fragments<K>& a, const float* group, int step,
                                            float (&s)[Plan<K>::code_tiles][Plan<K>::tiles][4]) {
  constexpr int T = Plan<K>::code_tiles, M = Plan<K>::tiles;
  float from[T][4];
#pragma unroll
  for (int t = 0; t < T; ++t) {
    // The sums start from the half norms. Four lanes read 16 bytes each and the other lanes the same ones: no
    // conflicts.
    const float* norms_of_tile = group + group_codes * Plan<K>::depth + (step * T + t) * 16;
    const Pack<float> norms = load_pack(norms_of_tile + w.lane_of_row * 4);
#pragma unroll
    for (int j = 0; j < 4; ++j) from[t][j] = norms.v[j];
  }
  if constexpr (K == 1) {
    const Pack<float> b = load_pack(group + (step * 32 + w.lane) * 4);
#pragma unroll
    for (int t = 0; t < T; ++t) {
      const uint32_t codes[2] = {__float_as_uint(b.v[2 * t]), __float_as_uint(b.v[2 * t + 1])};
#pragma unroll
      for (int m = 0; m < M; ++m) mma_tf32_16x8x8(s[t][m], a[m][0], codes, from[t]);
    }
  } else {
#pragma unroll
    for (int k = 0; k < K; k += 2) {
      Pack<float> b[T];
#pragma unroll
      for (int t = 0; t < T; ++t) b[t] = load_pack(group + (((step * T + t) * K + k) / 2 * 32 + w.lane) * 4);
#pragma unroll
      for (int j = 0; j < 2; ++j)
#pragma unroll
        for (int t = 0; t < T; ++t) {
          const uint32_t codes[2] = {__float_as_uint(b[t].v[2 * j]), __float_as_uint(b[t].v[2 * j + 1])};
#pragma unroll
          for (int m = 0; m < M; ++m) {
            if (k + j == 0)
              mma_tf32_16x8x8(s[t][m], a[m][0], codes, from[t]);
            else
              mma_tf32_16x8x8(s[t][m], a[m][k + j], codes);
          }
        }
    }
  }
}

/// Two scores of a row join the least (and the second least) of their group. `tile` is the tile of eight codes.
template <int K>
__device__ __forceinline__ void take_scores(float u, float v, int tile, float& least, float& second) {
  if constexpr (Plan<K>::index_in_score) {
    const uint32_t index = static_cast<uint32_t>(tile * 2);
    u = __uint_as_float((__float_as_uint(u) & ~15u) | index);
    v = __uint_as_float((__float_as_uint(v) & ~15u) | (index + 1));
    // The new second least is the smallest of three: the old one, the larger of u and v, and the larger of the old
    // least and the smaller of u and v.
    const float smaller = fminf(u, v);
    second = fminf(fminf(second, fmaxf(u, v)), fmaxf(least, smaller));
    least = fminf(least, smaller);
  } else {
    least = tile == 0 ? fminf(u, v) : fminf(least, fminf(u, v));
  }
}

/// The least (and the second least) score of a group, for each of the lane's rows.
template <int K>
__device__ __forceinline__ void score_group(const WarpRows& w, const Fragments<K>& a, const float* group,
                                            OfRows<K, float>& least, OfRows<K, float>& second) {
  constexpr int T = Plan<K>::code_tiles, M = Plan<K>::tiles;
#pragma unroll
  for (int m = 0; m < M; ++m)
#pragma unroll
    for (int h = 0; h < 2; ++h) least[m][h] = second[m][h] = no_code().h;
#pragma unroll(K > 4 ? 1 : (K > 2 ? 4 : 2))
  for (int step = 0; step < Plan<K>::steps; ++step) {
    float s[T][M][4];
    score_tiles<K>(w, a, group, step, s);
#pragma unroll
    for (int t = 0; t < T; ++t)
#pragma unroll
      for (int m = 0; m < M; ++m)
#pragma unroll
        for (int h = 0; h < 2; ++h)
          take_scores<K>(s[t][m][2 * h], s[t][m][2 * h + 1], step * T + t, least[m][h], second[m][h]);
  }
}

/// The scores of group g join the state of a row.
template <int K>
__device__ __forceinline__ void take_group(Least& l, int g, float least, float second) {
  // The order matters: `second` takes the larger of the old and the new least score before `first` is replaced.
  l.second = fminf(l.second, fmaxf(l.first, least));
  if constexpr (Plan<K>::index_in_score) l.second = fminf(l.second, second);
  l.group = least < l.first ? g : l.group;
  l.first = fminf(l.first, least);
}

/// The scores of all codes, through two buffers of shared memory:
///
///   copies     0 -> A | 1 -> B | 2 -> A | 3 -> B | (empty)
///   products          |  A (0) |  B (1) |  A (2) |  B (3)
///
/// Stage 0 is fetched by the caller. One group of copies is committed per stage, empty ones at the end, so that wait<1>
/// always means: this stage has arrived. The first barrier makes it visible to all warps; the one at the end frees its
/// buffer for the fetch of the next iteration.
template <int K>
__device__ __forceinline__ void search_codes(const Products& p, const WarpRows& w, const Fragments<K>& a, float* stages,
                                             OfRows<K, Least>& least) {
  using P = Plan<K>;
#pragma unroll
  for (int m = 0; m < P::tiles; ++m)
#pragma unroll
    for (int h = 0; h < 2; ++h) least[m][h] = {no_code().h, no_code().h, 0};
  const int groups = p.padded / group_codes, stage_count = (groups + P::groups - 1) / P::groups;
#pragma unroll 1
  for (int stage = 0; stage < stage_count; ++stage) {
    if (stage + 1 < stage_count) fetch_stage<K>(p, stage + 1, stages);
    cp_async_commit();
    cp_async_wait<1>();
    __syncthreads();
    const int begin = stage * P::groups;
    // A warp without rows skips the products.
    const int end = w.first >= p.rows ? begin : (begin + P::groups < groups ? begin + P::groups : groups);
    const float* group = stages + stage % 2 * P::stage_floats;
#pragma unroll 1
    for (int g = begin; g < end; ++g, group += P::group_floats) {
      OfRows<K, float> least_here, second_here;
      score_group<K>(w, a, group, least_here, second_here);
#pragma unroll
      for (int m = 0; m < P::tiles; ++m)
#pragma unroll
        for (int h = 0; h < 2; ++h) take_group<K>(least[m][h], g, least_here[m][h], second_here[m][h]);
    }
    __syncthreads();
  }
}

// ---- exact comparison of the codes that are left

/// Registers cannot be indexed at run time. The states move to the shared memory of the stages, so that the loop over
/// rows is compiled once and needs few registers.
template <int K>
__device__ __forceinline__ void save_states(const OfRows<K, Least>& least, uint4* saved) {
#pragma unroll
  for (int m = 0; m < Plan<K>::tiles; ++m)
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const Least& l = least[m][h];
      saved[(m * 2 + h) * Plan<K>::threads] =
          make_uint4(__float_as_uint(l.first), __float_as_uint(l.second), static_cast<unsigned>(l.group), 0);
    }
}

/// The plain kernel's sum for one code.
__device__ __forceinline__ float exact_score(const Products& p, int64_t row, float scale, int code) {
  const float* x = p.x + row * p.dim;
  const float* from = p.prepared + code;
  float sum = from[int64_t{p.dim} * p.padded];
#pragma unroll 8
  for (int d = 0; d < p.dim; ++d) sum = __fmaf_rn(-__fmul_rn(x[d], scale), from[int64_t{d} * p.padded], sum);
  return sum;
}

/// The plain kernel's sums for four adjacent codes, from k on, join `best`.
template <int K>
__device__ __forceinline__ void take_exact_scores(const Products& p, int64_t row, float scale, int k, Best& best) {
  const float* from = p.prepared + k;
  Pack<float> sum = load_pack(from + int64_t{p.dim} * p.padded);
  const float* x = p.x + row * p.dim;
#pragma unroll 2
  for (int d = 0; d < Plan<K>::depth; d += 4) {
    const Pack<float> v = p.pack_loads ? load_pack(x + d) : load_some(x + d, p.dim - d);
#pragma unroll
    for (int u = 0; u < 4; ++u)
      if (d + u < p.dim) {
        const Pack<float> c = load_pack(from + int64_t{d + u} * p.padded);
        const float w = -__fmul_rn(v.v[u], scale);
#pragma unroll
        for (int j = 0; j < 4; ++j) sum.v[j] = __fmaf_rn(w, c.v[j], sum.v[j]);
      }
  }
#pragma unroll
  for (int j = 0; j < 4; ++j) take_better(best, sum.v[j], k + j);
}

/// The best code among the candidates of a row, of which each of the four lanes of the row may have one:
/// `code` (index_in_score), or the sixteen codes of its group that begin with `code`. `near_lanes` has a bit per lane.
template <int K>
__device__ __forceinline__ Best compare_candidates(const Products& p, const WarpRows& w, int64_t row, float scale,
                                                   int code, bool near, uint32_t near_lanes, bool compared) {
  Best best{no_code().h, code};
  if constexpr (Plan<K>::index_in_score) {
    // A single candidate is the nearest code without a further comparison, unless its half distance is asked for.
    const bool only_candidate = (near_lanes & (near_lanes - 1)) == 0 && p.half_distances == nullptr;
    if (near && compared) best.h = only_candidate ? -no_code().h : exact_score(p, row, scale, code);
  } else {
    // The four lanes of a row go through its near lanes together: each compares four of the sixteen codes of that
    // lane's group in float, in the plain kernel's order. All lanes of the warp loop until no row has a candidate left,
    // because the shuffles need all of them.
    best.k = 0;
    uint32_t remaining = compared ? near_lanes : 0;
    while (__any_sync(full_warp, remaining != 0)) {
      const int from_lane = (w.lane & 28) + (remaining != 0 ? __ffs(static_cast<int>(remaining)) - 1 : 0);
      const int k = __shfl_sync(full_warp, code, from_lane) + w.lane_of_row * 4;
      if (remaining != 0) take_exact_scores<K>(p, row, scale, k, best);
      remaining &= remaining - 1;
    }
  }
#pragma unroll
  for (int lanes = 2; lanes > 0; lanes /= 2) {
    const float other = __shfl_xor_sync(full_warp, best.h, lanes);
    const int32_t k = __shfl_xor_sync(full_warp, best.k, lanes);
    take_better(best, other, k);
  }
  return best;
}

/// Row i of the warp: finds the lanes that have a candidate, compares those, and writes the code.
template <int K>
__device__ __forceinline__ void finish_row(const Products& p, const WarpRows& w, const Least& l, int i) {
  const int64_t row = w.first + i;
  float least_score = l.first;
#pragma unroll
  for (int lanes = 2; lanes > 0; lanes /= 2)
    least_score = fminf(least_score, __shfl_xor_sync(full_warp, least_score, lanes));
  // `limit` is the same for the four lanes of a row. A row is marked if it has no bound, or if one of its lanes has a
  // second candidate that it has forgotten (second <= limit).
  const float width = w.windows[w.begin + i], scale = w.scales[w.begin + i], limit = least_score + width;
  const bool near = l.first <= limit, bounded = width >= 0 && least_score < largest_size;
  const uint32_t near_lanes = __ballot_sync(full_warp, near) >> (w.lane & 28) & 15u;
  const bool marked = (__ballot_sync(full_warp, !bounded || l.second <= limit) >> (w.lane & 28) & 15u) != 0;
  int code = l.group * group_codes + w.lane_of_row * 16;
  if constexpr (Plan<K>::index_in_score) code += static_cast<int>(__float_as_uint(l.first) & 15u);
  const Best best = compare_candidates<K>(p, w, row, scale, code, near, near_lanes, row < p.rows && !marked);
  if (w.lane_of_row == 0 && row < p.rows) {
    p.out[row] = marked ? -1 : best.k;
    if (p.half_distances != nullptr) p.half_distances[row] = best.h;
  }
}

// ---- the kernel

/// A block handles `rows` rows, a warp `tiles` tiles of sixteen of them. All warps read the same codes. Each warp
/// prepares its own rows, so a warp barrier is enough between `scales`, `windows` and their readers.
template <int K>
__global__ void __launch_bounds__(Plan<K>::threads, Plan<K>::blocks) vq_nearest_products_kernel(Products p) {
  using P = Plan<K>;
  NACRE_DYNAMIC_SHARED(float, stages);
  NACRE_SHARED(float, windows, P::rows);
  NACRE_SHARED(float, error_squares, P::rows);
  NACRE_SHARED(float, scales, P::rows);
  const int lane = static_cast<int>(threadIdx.x) % 32, begin = static_cast<int>(threadIdx.x) / 32 * P::warp_rows;
  const WarpRows w{.lane = lane,
                   .lane_of_row = lane % 4,
                   .begin = begin,
                   .first = int64_t{blockIdx.x} * P::rows + begin,
                   .scales = scales,
                   .windows = windows,
                   .error_squares = error_squares};
  fetch_stage<K>(p, 0, stages);
  cp_async_commit();
  write_scales<K>(p, w);
  __syncwarp();
  const CodeBounds largest = codebook_bounds(p, P::group_floats, lane);
  Fragments<K> a;
  load_rows<K>(p, w, a);
  __syncwarp();
  write_windows<K>(w, largest);

  OfRows<K, Least> least;
  search_codes<K>(p, w, a, stages, least);

  uint4* saved = reinterpret_cast<uint4*>(stages) + threadIdx.x;
  save_states<K>(least, saved);
#pragma unroll 1
  for (int half_tile = 0; half_tile < P::tiles * 2; ++half_tile) {
    const uint4 state = saved[half_tile * P::threads];
    const Least l{__uint_as_float(state.x), __uint_as_float(state.y), static_cast<int>(state.z)};
    finish_row<K>(p, w, l, half_tile * 8 + lane / 4);
  }
}

/// The kernel for 8 K channels.
template <int K>
void launch_products(Context& ctx, const Products& p) {
  // Two stages. The saved state of all threads fits into them, as well.
  constexpr size_t shared_bytes = size_t{2 * Plan<K>::stage_floats} * sizeof(float);
  static_assert(shared_bytes + 3 * Plan<K>::rows * sizeof(float) <= least_shared_per_block);
  launch(ctx,
         {.name = "vq_nearest_products",
          .grid = blocks_for(p.rows, Plan<K>::rows),
          .block = Plan<K>::threads,
          .shared_bytes = shared_bytes},
         vq_nearest_products_kernel<K>, p);
}

}  // namespace

void nearest_by_products(Context& ctx, const float* x, int64_t rows, int64_t dim, const float* prepared, int64_t codes,
                         VqMetric metric, float* products, int32_t* out, float* half_distances) {
  const int64_t depth = products_depth(dim), padded = padded_codes(codes);
  prepare_products(ctx, prepared, codes, dim, products);
  const Products p{.x = x,
                   .rows = rows,
                   .prepared = prepared,
                   .products = products,
                   .out = out,
                   .half_distances = half_distances,
                   .dim = static_cast<int>(dim),
                   .padded = static_cast<int>(padded),
                   .cosine = metric == VqMetric::cosine,
                   .pair_loads = dim % 2 == 0 && reinterpret_cast<uintptr_t>(x) % sizeof(float2) == 0,
                   .pack_loads = dim == depth && aligned16(x)};
  if (depth == 8) launch_products<1>(ctx, p);
  if (depth == 16) launch_products<2>(ctx, p);
  if (depth == 32) launch_products<4>(ctx, p);
  if (depth == 64) launch_products<8>(ctx, p);
  if (depth == 128) launch_products<16>(ctx, p);
}

}  // namespace nacre::cuda
