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
// Rows whose bound is not finite (NaN, overflow) and rows with too many near codes are marked with code -1. A second
// kernel searches for them in float.
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

constexpr int prepare_threads = 256;
constexpr float absent_norm = 3e38f;   ///< half norm of a padding code; stays finite whatever its last four bits are
constexpr float largest_size = 1e37f;  ///< magnitudes below this do not overflow in sums
constexpr float smallest = 0x1p-67f;   ///< more than a norm loses when its squares underflow

/// An upper bound of a norm, from its square as added in float.
__device__ __forceinline__ float norm_bound(float square) { return __fsqrt_rn(square) * 1.0001f + smallest; }

/// A block per group of 64 codes: fragments, half norms and bounds. Fragment f = tile * depth / 8 + step has b0, b1 of
/// lane l: channels 8 step + 2 (l % 4) and the next one of code 16 (l / 8) + 2 tile + l / 4 % 2. Two fragments are
/// stored interleaved, for loads of 16 bytes. Half norms: per tile and lane of a row, those of its two codes, twice, as
/// the start of the sums of two rows. Bytes: the prepared codes once, the fragments once.
__global__ void __launch_bounds__(prepare_threads)
    vq_prepare_products_kernel(const float* prepared, int64_t codes, int dim, int depth, float* products) {
  NACRE_SHARED(float, largest, 3 * 2);
  const int64_t padded = padded_codes(codes), base = int64_t{blockIdx.x} * group_codes;
  const float* norms = prepared + padded * dim;
  float* group = products + int64_t{blockIdx.x} * group_size(depth);
  const int steps = depth / 8;
  // Element i of a group: i % 2 is the channel of the pair, i / 2 % 2 the fragment of the pair, i / 4 % 32 the lane.
  // Codes are stored negated, because the products start from the norms and subtract.
  for (int i = static_cast<int>(threadIdx.x); i < group_codes * depth; i += prepare_threads) {
    const int lane = i / 4 % 32, f = i / 128 * 2 + i / 2 % 2, tile = f / steps;
    const int64_t k = base + lane / 8 * 16 + tile * 2 + lane / 4 % 2;
    const int channel = f % steps * 8 + lane % 4 * 2 + i % 2;
    const bool exists = channel < dim && norms[k] < no_code().h;
    group[i] = exists ? -__uint_as_float(to_tf32(prepared[int64_t{channel} * padded + k])) : 0.0f;
  }
  float max_norm = 0, max_error = 0, max_half_norm = 0;
  // Two warps, one code per thread: the norms of the 64 codes, and the largest |c|, |c - c^| and half norm for E.
  if (threadIdx.x < group_codes) {
    const int i = static_cast<int>(threadIdx.x);
    const float n = norms[base + i];
    const bool exists = n < no_code().h;
    // Norms: [tile of eight codes][lane of a row][row of the fragment][code of the pair], the same for both rows.
    float* slot = group + group_codes * depth + i % 16 / 2 * 16 + i / 16 * 4 + i % 2;
    slot[0] = slot[2] = exists ? n : absent_norm;
    if (exists) {
      float square = 0, error_square = 0;
      for (int d = 0; d < dim; ++d) {
        const float v = prepared[int64_t{d} * padded + base + i], r = v - __uint_as_float(to_tf32(v));
        square += v * v, error_square += r * r;
      }
      max_norm = norm_bound(square), max_error = norm_bound(error_square), max_half_norm = n;
    }
#pragma unroll
    for (int lanes = 16; lanes > 0; lanes /= 2) {
      max_norm = fmaxf(max_norm, __shfl_xor_sync(full_warp, max_norm, lanes));
      max_error = fmaxf(max_error, __shfl_xor_sync(full_warp, max_error, lanes));
      max_half_norm = fmaxf(max_half_norm, __shfl_xor_sync(full_warp, max_half_norm, lanes));
    }
    if (i % 32 == 0) largest[i / 32] = max_norm, largest[2 + i / 32] = max_error, largest[4 + i / 32] = max_half_norm;
  }
  __syncthreads();
  if (threadIdx.x < 4) {
    const int i = static_cast<int>(threadIdx.x);
    float* bounds = products + int64_t{gridDim.x} * group_size(depth) + int64_t{blockIdx.x} * 4;
    bounds[i] = i < 3 ? fmaxf(largest[2 * i], largest[2 * i + 1]) : 0.0f;
  }
}

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

/// 2 E of the comment above, plus 1 % for the rounding in this function; -1 if there is no bound.
__device__ __forceinline__ float window(float row_square, float row_error_square, float max_norm, float max_error,
                                        float max_half_norm, int depth) {
  const float row_norm = norm_bound(row_square), row_error = norm_bound(row_error_square);
  const float magnitude = max_half_norm + 1.01f * row_norm * max_norm;
  const float rounding = static_cast<float>(depth / 8 + 1) * 0x1p-18f + static_cast<float>(depth) * 0x1p-23f;
  const float error = row_error * max_norm + (row_norm + row_error) * max_error + rounding * magnitude + 0x1p-110f;
  return magnitude < largest_size ? 2.02f * error : -1.0f;
}

/// The numbers of tiles and groups leave registers for `blocks` blocks per multiprocessor and keep two stages within 99
/// KiB of shared memory.
/// Block sizes for 8 K channels: threads of a block, tiles of 16 rows per warp, groups of codes per pipeline stage,
/// blocks per multiprocessor.
template <int K>
struct Plan {
  static constexpr int threads = 256, warps = threads / 32, tiles = K == 1 ? 4 : (K == 2 ? 3 : 2),
                       blocks = K <= 8 ? 2 : 1;
  static constexpr int rows = warps * tiles * 16, groups = K <= 8 ? 8 / K : 1;
};

/// State of a lane for one row and its quarter of the codes: the least score, the group it is in, and the least score
/// of all other groups (index_in_score: of all other codes).
struct Least {
  float first, second;
  int group;
};

template <int K>
__global__ void __launch_bounds__(Plan<K>::threads, Plan<K>::blocks) vq_nearest_products_kernel(Products p) {
  constexpr int depth = 8 * K, M = Plan<K>::tiles, group_floats = static_cast<int>(group_size(depth));
  constexpr int stage_floats = Plan<K>::groups * group_floats;
  constexpr bool index_in_score = K > 2;
  constexpr int T = K == 8 ? 1 : 2;  // tiles of eight codes at once; for 64 channels registers suffice for one
  // A block handles `rows` rows, a warp M tiles of sixteen of them. All warps read the same codes, which pass through
  // shared memory in two buffers of `groups` groups each: cp.async fills one while the other is used. Phases: scales
  // and windows of the rows; fragments of the rows in registers; scores of all codes, of which a lane keeps the least;
  // exact comparison of what is left.
  //
  // In an mma fragment lane l has rows l / 4 and l / 4 + 8 of a tile and codes 2 (l % 4) and the next one: four lanes
  // share a row, and each sees a quarter of the codes.
  NACRE_DYNAMIC_SHARED(float, stages);
  NACRE_SHARED(float, windows, Plan<K>::rows);
  NACRE_SHARED(float, error_squares, Plan<K>::rows);
  NACRE_SHARED(float, scales, Plan<K>::rows);
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32,
            lane_of_row = lane % 4;
  const int warp_row = warp * (M * 16);
  const int64_t first = int64_t{blockIdx.x} * Plan<K>::rows + warp_row;
  const int groups = p.padded / group_codes;

  // Starts the copy of a stage into the buffer of its parity. Threads copy adjacent 16-byte packs: coalesced.
  const auto fetch = [&](int stage) {
    const int begin = stage * Plan<K>::groups;
    const int count = groups - begin < Plan<K>::groups ? groups - begin : Plan<K>::groups;
    const float* from = p.products + int64_t{begin} * group_floats;
    float* to = stages + stage % 2 * stage_floats;
#pragma unroll 1
    for (int i = static_cast<int>(threadIdx.x) * 4; i < count * group_floats; i += Plan<K>::threads * 4)
      cp_async<16>(to + i, from + i, 16);
  };
  fetch(0);
  cp_async_commit();

#pragma unroll 1
  // Each warp prepares its own rows, so a warp barrier is enough between `scales`, `windows` and their readers.
  for (int i = lane; i < M * 16; i += 32) {
    const int64_t row = first + i;
    float square = 0;  // inverse_norm would take more registers
#pragma unroll 4
    for (int d = 0; d < (p.cosine && row < p.rows ? p.dim : 0); ++d) square = add_square(square, p.x[row * p.dim + d]);
    scales[warp_row + i] = p.cosine ? inverse_norm_of_square(square) : 1.0f;
  }
  __syncwarp();
  float max_norm = 0, max_error = 0, max_half_norm = 0;
#pragma unroll 1
  for (int g = lane; g < groups; g += 32) {
    const Pack<float> bounds = load_pack(p.products + int64_t{groups} * group_floats + g * 4);
    max_norm = fmaxf(max_norm, bounds.v[0]), max_error = fmaxf(max_error, bounds.v[1]),
    max_half_norm = fmaxf(max_half_norm, bounds.v[2]);
  }
#pragma unroll
  for (int lanes = 16; lanes > 0; lanes /= 2) {
    max_norm = fmaxf(max_norm, __shfl_xor_sync(full_warp, max_norm, lanes));
    max_error = fmaxf(max_error, __shfl_xor_sync(full_warp, max_error, lanes));
    max_half_norm = fmaxf(max_half_norm, __shfl_xor_sync(full_warp, max_half_norm, lanes));
  }
  // The rows as tf32 fragments stay in registers for the whole search. A row's |x| and |x - x^| are summed over its
  // four lanes.
  uint32_t a[M][K][4];
#pragma unroll
  for (int m = 0; m < M; ++m)
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int i = m * 16 + h * 8 + lane / 4;
      const float scale = scales[warp_row + i];
      float square = 0, error_square = 0;
#pragma unroll
      for (int k = 0; k < K; ++k) {
        float v[2];
        load_pair(p, first + i, k * 8 + lane_of_row * 2, v);
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
      // The squares wait in shared memory until all are known; then each entry becomes the window 2 E of its row.
      if (lane_of_row == 0) windows[warp_row + i] = square, error_squares[warp_row + i] = error_square;
    }
  __syncwarp();
#pragma unroll 1
  for (int i = warp_row + lane; i < warp_row + M * 16; i += 32)
    windows[i] = window(windows[i], error_squares[i], max_norm, max_error, max_half_norm, depth);

  Least least[M][2];
#pragma unroll
  for (int m = 0; m < M; ++m)
#pragma unroll
    for (int h = 0; h < 2; ++h) least[m][h] = {no_code().h, no_code().h, 0};
  const int stage_count = (groups + Plan<K>::groups - 1) / Plan<K>::groups;
#pragma unroll 1
  // One group of copies is committed per stage, empty ones at the end, so that wait<1> always means: this stage has
  // arrived. The first barrier makes it visible to all warps; the one at the end frees its buffer for the fetch of the
  // next iteration.
  for (int stage = 0; stage < stage_count; ++stage) {
    if (stage + 1 < stage_count) fetch(stage + 1);
    cp_async_commit();
    cp_async_wait<1>();
    __syncthreads();
    const int begin = stage * Plan<K>::groups;
    // A warp without rows skips the products.
    const int end = first >= p.rows ? begin : (begin + Plan<K>::groups < groups ? begin + Plan<K>::groups : groups);
    const float* group = stages + stage % 2 * stage_floats;
#pragma unroll 1
    for (int g = begin; g < end; ++g, group += group_floats) {
      float least_here[M][2], second_here[M][2];  // the least and the second least score of this group
#pragma unroll
      for (int m = 0; m < M; ++m)
#pragma unroll
        for (int h = 0; h < 2; ++h) least_here[m][h] = second_here[m][h] = no_code().h;
#pragma unroll(K > 4 ? 1 : (K > 2 ? 4 : 2))
      for (int step = 0; step < 8 / T; ++step) {
        float from[T][4];
#pragma unroll
        for (int t = 0; t < T; ++t) {
          // The sums start from the half norms. Four lanes read 16 bytes each and the other lanes the same ones: no
          // conflicts.
          const Pack<float> norms = load_pack(group + group_codes * depth + (step * T + t) * 16 + lane_of_row * 4);
#pragma unroll
          for (int j = 0; j < 4; ++j) from[t][j] = norms.v[j];
        }
        // T times M products are independent, so their latencies overlap. One load of 16 bytes has two fragments: of
        // two tiles for K = 1, else of two steps of one tile.
        float s[T][M][4];
        if constexpr (K == 1) {
          const Pack<float> b = load_pack(group + (step * 32 + lane) * 4);
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
            for (int t = 0; t < T; ++t) b[t] = load_pack(group + (((step * T + t) * K + k) / 2 * 32 + lane) * 4);
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
#pragma unroll
        for (int t = 0; t < T; ++t)
#pragma unroll
          for (int m = 0; m < M; ++m)
#pragma unroll
            for (int h = 0; h < 2; ++h) {
              float u = s[t][m][2 * h], v = s[t][m][2 * h + 1];
              if constexpr (index_in_score) {
                const uint32_t index = static_cast<uint32_t>((step * T + t) * 2);
                u = __uint_as_float((__float_as_uint(u) & ~15u) | index);
                v = __uint_as_float((__float_as_uint(v) & ~15u) | (index + 1));
                // The new second least is the smallest of three: the old one, the larger of u and v, and the larger of
                // the old least and the smaller of u and v.
                const float least_score = fminf(u, v);
                second_here[m][h] = fminf(fminf(second_here[m][h], fmaxf(u, v)), fmaxf(least_here[m][h], least_score));
                least_here[m][h] = fminf(least_here[m][h], least_score);
              } else {
                least_here[m][h] = step + t == 0 ? fminf(u, v) : fminf(least_here[m][h], fminf(u, v));
              }
            }
      }
#pragma unroll
      for (int m = 0; m < M; ++m)
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          Least& l = least[m][h];
          // The order matters: `second` takes the larger of the old and the new least score before `first` is replaced.
          l.second = fminf(l.second, fmaxf(l.first, least_here[m][h]));
          if constexpr (index_in_score) l.second = fminf(l.second, second_here[m][h]);
          l.group = least_here[m][h] < l.first ? g : l.group;
          l.first = fminf(l.first, least_here[m][h]);
        }
    }
    __syncthreads();
  }

  // Registers cannot be indexed at run time. The state moves to the shared memory of the stages, so that the loop below
  // is compiled once and needs few registers.
  uint4* saved = reinterpret_cast<uint4*>(stages) + threadIdx.x;
#pragma unroll
  for (int m = 0; m < M; ++m)
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const Least& l = least[m][h];
      saved[(m * 2 + h) * Plan<K>::threads] =
          make_uint4(__float_as_uint(l.first), __float_as_uint(l.second), static_cast<unsigned>(l.group), 0);
    }
    // Four lanes share a row. Each may have a candidate: one code (index_in_score) or its sixteen codes of a group.
#pragma unroll 1
  for (int half_tile = 0; half_tile < M * 2; ++half_tile) {
    const uint4 state = saved[half_tile * Plan<K>::threads];
    const Least l{__uint_as_float(state.x), __uint_as_float(state.y), static_cast<int>(state.z)};
    const int i = half_tile * 8 + lane / 4;
    const int64_t row = first + i;
    float least_score = l.first;
#pragma unroll
    for (int lanes = 2; lanes > 0; lanes /= 2)
      least_score = fminf(least_score, __shfl_xor_sync(full_warp, least_score, lanes));
    // `limit` is the same for the four lanes of a row. A row is marked if it has no bound, or if one of its lanes has a
    // second candidate that it has forgotten (second <= limit).
    const float width = windows[warp_row + i], scale = scales[warp_row + i], limit = least_score + width;
    const bool near = l.first <= limit, bounded = width >= 0 && least_score < largest_size;
    const uint32_t near_lanes = __ballot_sync(full_warp, near) >> (lane & 28) & 15u;
    const bool marked = (__ballot_sync(full_warp, !bounded || l.second <= limit) >> (lane & 28) & 15u) != 0;
    const bool compared = row < p.rows && !marked;
    int code = l.group * group_codes + lane_of_row * 16;
    if constexpr (index_in_score) code += static_cast<int>(__float_as_uint(l.first) & 15u);
    Best best{no_code().h, code};
    if constexpr (index_in_score) {
      // A single candidate is the nearest code without a further comparison, unless its half distance is asked for.
      const bool only_candidate = (near_lanes & (near_lanes - 1)) == 0 && p.half_distances == nullptr;
      if (near && compared) {
        if (only_candidate) {
          best.h = -no_code().h;
        } else {
          const float* x = p.x + row * p.dim;
          const float* from = p.prepared + code;
          // The plain kernel's sum for this code.
          float sum = from[int64_t{p.dim} * p.padded];
#pragma unroll 8
          for (int d = 0; d < p.dim; ++d) sum = __fmaf_rn(-__fmul_rn(x[d], scale), from[int64_t{d} * p.padded], sum);
          best.h = sum;
        }
      }
    } else {
      // The four lanes of a row go through its near lanes together: each compares four of the sixteen codes of that
      // lane's group in float, in the plain kernel's order. All lanes of the warp loop until no row has a candidate
      // left, because the shuffles need all of them.
      best.k = 0;
      uint32_t remaining = compared ? near_lanes : 0;
      while (__any_sync(full_warp, remaining != 0)) {
        const int from_lane = (lane & 28) + (remaining != 0 ? __ffs(static_cast<int>(remaining)) - 1 : 0);
        const int k = __shfl_sync(full_warp, code, from_lane) + lane_of_row * 4;
        if (remaining != 0) {
          const float* from = p.prepared + k;
          Pack<float> sum = load_pack(from + int64_t{p.dim} * p.padded);
          const float* x = p.x + row * p.dim;
#pragma unroll 2
          for (int d = 0; d < depth; d += 4) {
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
        remaining &= remaining - 1;
      }
    }
#pragma unroll
    for (int lanes = 2; lanes > 0; lanes /= 2) {
      const float other = __shfl_xor_sync(full_warp, best.h, lanes);
      const int32_t k = __shfl_xor_sync(full_warp, best.k, lanes);
      take_better(best, other, k);
    }
    if (lane_of_row == 0 && row < p.rows) {
      p.out[row] = marked ? -1 : best.k;
      if (p.half_distances != nullptr) p.half_distances[row] = best.h;
    }
  }
}

constexpr int marked_span = 4 * tile_threads;  ///< rows in which a block looks for marked ones

/// Searches for marked rows, sixteen at a time, as vq_nearest_tile_kernel. If none is marked, it only reads the codes
/// of the rows.
__global__ void __launch_bounds__(tile_threads, 2)
    vq_nearest_rest_kernel(const float* x, int64_t rows, int dim, const float* prepared, int padded, VqMetric metric,
                           int32_t* out, float* half_distances) {
  NACRE_DYNAMIC_SHARED(float, tile);
  NACRE_SHARED(uint32_t, candidates, candidate_words);
  NACRE_SHARED(int32_t, marked_rows, marked_span);
  NACRE_SHARED(int32_t, counts, 4 * tile_warps);
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const int64_t first = int64_t{blockIdx.x} * marked_span;
  // Marked rows are compacted in row order: a ballot gives each warp its count, then every thread adds the counts
  // before its own.
  uint32_t marked[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int64_t row = first + i * tile_threads + threadIdx.x;
    marked[i] = __ballot_sync(full_warp, row < rows && out[row] < 0);
    if (lane == 0) counts[i * tile_warps + warp] = __popc(marked[i]);
  }
  __syncthreads();
  int offset = 0, total = 0;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
#pragma unroll 1
    for (int w = 0; w < tile_warps; ++w) {
      if (w == warp) offset = total;
      total += counts[i * tile_warps + w];
    }
    if ((marked[i] >> lane & 1u) != 0)
      marked_rows[offset + __popc(marked[i] & ((1u << lane) - 1))] = i * tile_threads + static_cast<int>(threadIdx.x);
  }
  __syncthreads();
#pragma unroll 1
  // `total` is the same for all threads, so all reach the barriers. The barrier that publishes a tile also separates
  // the readers of `candidates` from the next search.
  for (int begin = 0; begin < total; begin += tile_rows) {
    for (int i = 0; i < 2; ++i) {
      const int r = warp * 2 + i;
      const bool in_range = begin + r < total;
      const float* row = x + (first + (in_range ? marked_rows[begin + r] : 0)) * dim;
      const float scale = in_range && metric == VqMetric::cosine ? inverse_norm(row, dim) : 1.0f;
      for (int d = lane; d < (dim + 3) / 4 * 4; d += 32)
        tile[d * tile_pitch + r] = in_range && d < dim ? __fmul_rn(row[d], scale) : 0.0f;
    }
    __syncthreads();
    tile_search(tile, dim, prepared, padded, candidates);
    __syncthreads();
    const OrderedBest best = tile_results(candidates);
    const int r = begin + warp * 2 + lane / 8;
    if (lane % 8 == 0 && lane < 16 && r < total) {
      const int64_t row = first + marked_rows[r];
      out[row] = static_cast<int32_t>(best.k);
      if (half_distances != nullptr) half_distances[row] = half_distance(best);
    }
  }
}

template <int K>
void launch_products(Context& ctx, const Products& p) {
  // Two stages. The saved state of all threads fits into them, as well.
  constexpr size_t shared_bytes = static_cast<size_t>(2 * Plan<K>::groups * group_size(8 * K)) * sizeof(float);
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
  launch(ctx,
         {.name = "vq_prepare_products", .grid = static_cast<unsigned>(padded / group_codes), .block = prepare_threads},
         vq_prepare_products_kernel, prepared, codes, static_cast<int>(dim), static_cast<int>(depth), products);
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

void search_marked_rows(Context& ctx, const float* x, int64_t rows, int64_t dim, const float* prepared, int64_t codes,
                        VqMetric metric, int32_t* out, float* half_distances) {
  constexpr int static_words = candidate_words + marked_span + 4 * tile_warps;
  static_assert((tile_floats(max_products_dim) + static_words) * sizeof(float) <= least_shared_per_block);
  launch(ctx,
         {.name = "vq_nearest_rest",
          .grid = blocks_for(rows, marked_span),
          .block = tile_threads,
          .shared_bytes = static_cast<size_t>(tile_floats(dim)) * sizeof(float)},
         vq_nearest_rest_kernel, x, rows, static_cast<int>(dim), prepared, static_cast<int>(padded_codes(codes)),
         metric, out, half_distances);
}

}  // namespace nacre::cuda
