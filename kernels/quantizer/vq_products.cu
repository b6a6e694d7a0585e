// Scores of all codes by tensor cores decide which codes can be the nearest; those few are compared as the first rung
// compares them. Exact: with x^, c^ the factors rounded to tf32 and s_k the score n_k - x^.c^_k, for every code
//
//   |s_k - h_k| <= |x - x^| |c_k| + |x^| |c_k - c^_k| + e (n_k + |x| |c_k|) <= E
//
// where h_k is the first rung's sum, e holds the rounding of both sums, and E takes the largest |c|, |c - c^| and n of
// the codebook and the row's own |x|, |x - x^|. The first rung's choice has s_k <= min s + 2 E: no other is looked at.
// e: fused multiply-adds 2^-24 per channel; tensor cores add eight exact products to a sum, each addend cut off no
// higher than 2^-23 of the largest, which is 10 x 2^-23 of n + |x| |c|: 2^-18 per eight channels leaves room for three
// times that; and 2^-18 for the comparison itself (an index in four bits, the rounding of min s + 2 E). Rows whose
// bound is not finite (NaN, overflow) and rows with too many near codes are marked -1 and searched by a second kernel
// in the order of the first rung.
//
// A lane holds the scores of sixteen adjacent codes of a group of 64 for each of its rows. To 16 channels only the
// least of the sixteen is kept, so that a score costs one instruction, and all sixteen are compared again; beyond, that
// would read too many codes: the index of the least stays in its last four bits, and the second least besides.
//
// Counted in the code for sm_90a, not measured. Per score and lane; minimum, compare, select and logic run at half rate:
//
//   channels   mma   half-rate   issued      1M rows x 1024 codes, 528 schedulers at 1.755 GHz, ms
//      8       0.25     1.33      1.96       0.10 (half-rate) and 0.06 to compare 16 codes of each row again
//     16       0.5      1.29      2.4        0.15 (mma) and 0.09
//     32       1        5.2       6.8        0.38 (half-rate)
//     64       2        4.5       9.6        0.58 (mma)
//    128       4        4.5      10.7        1.16 (mma)
//
// with 8 cycles per mma of 16 x 8 x 8, half of what the tensor cores can do: what wgmma alone reaches is out of reach of
// mma.sync. By sums alone 8 channels need 0.31 ms at the peak of fused multiply-adds, 128 channels 4.5 ms.
#include "quantizer/vq_products.cuh"

namespace nacre::cuda {
namespace {

constexpr int prepare_threads = 256;
constexpr float absent = 3e38f;        ///< half norm of a code that is never chosen; finite with any last four bits
constexpr float largest_size = 1e37f;  ///< sums below it do not overflow
constexpr float smallest = 0x1p-67f;   ///< more than squares below the smallest float can hide of a norm

/// An upper bound of the norm whose square was added in float.
__device__ __forceinline__ float norm_bound(float square) { return __fsqrt_rn(square) * 1.0001f + smallest; }

/// A block per group of 64 codes. Fragment f = tile * depth / 8 + step has b0, b1 of lane l: channels 8 step + 2 (l %
/// 4) and the next of code 16 (l / 8) + 2 tile + l / 4 % 2; two fragments lie side by side. Norms: two of each of two
/// tiles for each of four lanes. Bytes: the prepared codes once, the fragments once.
__global__ void __launch_bounds__(prepare_threads)
    vq_prepare_products_kernel(const float* prepared, int64_t codes, int dim, int depth, float* products) {
  NACRE_SHARED(float, largest, 3 * 2);
  const int64_t padded = padded_codes(codes), base = int64_t{blockIdx.x} * group_codes;
  const float* norms = prepared + padded * dim;
  float* group = products + int64_t{blockIdx.x} * group_size(depth);
  const int steps = depth / 8;
  for (int i = static_cast<int>(threadIdx.x); i < group_codes * depth; i += prepare_threads) {
    const int lane = i / 4 % 32, f = i / 128 * 2 + i / 2 % 2, tile = f / steps;
    const int64_t k = base + lane / 8 * 16 + tile * 2 + lane / 4 % 2;
    const int channel = f % steps * 8 + lane % 4 * 2 + i % 2;
    const bool there = channel < dim && norms[k] < no_code().h;
    group[i] = there ? -__uint_as_float(to_tf32(prepared[int64_t{channel} * padded + k])) : 0.0f;
  }
  float far = 0, off = 0, norm = 0;
  if (threadIdx.x < group_codes) {
    const int i = static_cast<int>(threadIdx.x);
    const float n = norms[base + i];
    const bool there = n < no_code().h;
    float* place = group + group_codes * depth + i % 16 / 2 * 16 + i / 16 * 4 + i % 2;
    place[0] = place[2] = there ? n : absent;
    if (there) {
      float square = 0, rest = 0;
      for (int d = 0; d < dim; ++d) {
        const float v = prepared[int64_t{d} * padded + base + i], r = v - __uint_as_float(to_tf32(v));
        square += v * v, rest += r * r;
      }
      far = norm_bound(square), off = norm_bound(rest), norm = n;
    }
#pragma unroll
    for (int lanes = 16; lanes > 0; lanes /= 2) {
      far = fmaxf(far, __shfl_xor_sync(full_warp, far, lanes));
      off = fmaxf(off, __shfl_xor_sync(full_warp, off, lanes));
      norm = fmaxf(norm, __shfl_xor_sync(full_warp, norm, lanes));
    }
    if (i % 32 == 0) largest[i / 32] = far, largest[2 + i / 32] = off, largest[4 + i / 32] = norm;
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
  float* half;
  int dim, padded;
  bool cosine, pairs, packs;  ///< pairs, packs: 8- and 16-byte loads of x
};

/// Two channels of a row, zero where they are not there.
__device__ __forceinline__ void load_pair(const Products& p, int64_t row, int channel, float (&v)[2]) {
  const float* from = p.x + row * p.dim + channel;
  v[0] = v[1] = 0;
  if (row >= p.rows) return;
  if (p.pairs && channel < p.dim) {
    const float2 both = *reinterpret_cast<const float2*>(from);
    v[0] = both.x, v[1] = both.y;
  } else {
    if (channel < p.dim) v[0] = from[0];
    if (channel + 1 < p.dim) v[1] = from[1];
  }
}

/// 2 E of the comment above, with a hundredth more for the rounding here; -1 where there is no bound.
__device__ __forceinline__ float window(float square, float rest, float far, float off, float norm, int depth) {
  const float size = norm_bound(square), lost = norm_bound(rest);
  const float largest = norm + 1.01f * size * far;
  const float rounding = static_cast<float>(depth / 8 + 1) * 0x1p-18f + static_cast<float>(depth) * 0x1p-23f;
  const float error = lost * far + (size + lost) * off + rounding * largest + 0x1p-110f;
  return largest < largest_size ? 2.02f * error : -1.0f;
}

/// How a codebook of 8 K channels goes: threads of a block, tiles of 16 rows per warp, groups of codes on their way at
/// once, blocks per multiprocessor.
template <int K>
struct Plan {
  static constexpr int threads = 256, warps = threads / 32, tiles = K == 1 ? 4 : (K == 2 ? 3 : 2),
                       blocks = K <= 8 ? 2 : 1;
  static constexpr int rows = warps * tiles * 16, groups = K <= 8 ? 8 / K : 1;
};

/// What a lane knows of one row and its quarter of the codes: the least score, the group it lies in, and the least of
/// all other groups (packed: of all other codes).
struct Least {
  float first, second;
  int group;
};

template <int K>
__global__ void __launch_bounds__(Plan<K>::threads, Plan<K>::blocks) vq_nearest_products_kernel(Products p) {
  constexpr int depth = 8 * K, M = Plan<K>::tiles, group_floats = static_cast<int>(group_size(depth));
  constexpr int stage_floats = Plan<K>::groups * group_floats;
  constexpr bool packed = K > 2;
  constexpr int T = K == 8 ? 1 : 2;  // tiles of eight codes at once: registers for 64 channels leave one
  NACRE_DYNAMIC_SHARED(float, stages);
  NACRE_SHARED(float, windows, Plan<K>::rows);
  NACRE_SHARED(float, rests, Plan<K>::rows);
  NACRE_SHARED(float, scales, Plan<K>::rows);
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32, quarter = lane % 4;
  const int warp_row = warp * (M * 16);
  const int64_t first = int64_t{blockIdx.x} * Plan<K>::rows + warp_row;
  const int groups = p.padded / group_codes;

  const auto fetch = [&](int stage) {
    const int begin = stage * Plan<K>::groups;
    const int here = groups - begin < Plan<K>::groups ? groups - begin : Plan<K>::groups;
    const float* from = p.products + int64_t{begin} * group_floats;
    float* to = stages + stage % 2 * stage_floats;
#pragma unroll 1
    for (int i = static_cast<int>(threadIdx.x) * 4; i < here * group_floats; i += Plan<K>::threads * 4)
      cp_async<16>(to + i, from + i, 16);
  };
  fetch(0);
  cp_async_commit();

#pragma unroll 1
  for (int i = lane; i < M * 16; i += 32) {
    const int64_t row = first + i;
    float square = 0;  // as inverse_norm, in fewer registers
#pragma unroll 4
    for (int d = 0; d < (p.cosine && row < p.rows ? p.dim : 0); ++d) square = add_square(square, p.x[row * p.dim + d]);
    scales[warp_row + i] = p.cosine ? inverse_norm_of_square(square) : 1.0f;
  }
  __syncwarp();
  float far = 0, off = 0, norm = 0;
#pragma unroll 1
  for (int g = lane; g < groups; g += 32) {
    const Pack<float> bounds = load_pack(p.products + int64_t{groups} * group_floats + g * 4);
    far = fmaxf(far, bounds.v[0]), off = fmaxf(off, bounds.v[1]), norm = fmaxf(norm, bounds.v[2]);
  }
#pragma unroll
  for (int lanes = 16; lanes > 0; lanes /= 2) {
    far = fmaxf(far, __shfl_xor_sync(full_warp, far, lanes));
    off = fmaxf(off, __shfl_xor_sync(full_warp, off, lanes));
    norm = fmaxf(norm, __shfl_xor_sync(full_warp, norm, lanes));
  }
  uint32_t a[M][K][4];
#pragma unroll
  for (int m = 0; m < M; ++m)
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int i = m * 16 + h * 8 + lane / 4;
      const float scale = scales[warp_row + i];
      float square = 0, rest = 0;
#pragma unroll
      for (int k = 0; k < K; ++k) {
        float v[2];
        load_pair(p, first + i, k * 8 + quarter * 2, v);
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          const float x = __fmul_rn(v[e], scale);
          a[m][k][h + 2 * e] = to_tf32(x);
          const float r = x - __uint_as_float(a[m][k][h + 2 * e]);
          square += x * x, rest += r * r;
        }
      }
#pragma unroll
      for (int lanes = 2; lanes > 0; lanes /= 2) {
        square += __shfl_xor_sync(full_warp, square, lanes);
        rest += __shfl_xor_sync(full_warp, rest, lanes);
      }
      if (quarter == 0) windows[warp_row + i] = square, rests[warp_row + i] = rest;
    }
  __syncwarp();
#pragma unroll 1
  for (int i = warp_row + lane; i < warp_row + M * 16; i += 32)
    windows[i] = window(windows[i], rests[i], far, off, norm, depth);

  Least least[M][2];
#pragma unroll
  for (int m = 0; m < M; ++m)
#pragma unroll
    for (int h = 0; h < 2; ++h) least[m][h] = {no_code().h, no_code().h, 0};
  const int turns = (groups + Plan<K>::groups - 1) / Plan<K>::groups;
#pragma unroll 1
  for (int stage = 0; stage < turns; ++stage) {
    if (stage + 1 < turns) fetch(stage + 1);
    cp_async_commit();
    cp_async_wait<1>();
    __syncthreads();
    const int begin = stage * Plan<K>::groups;
    // A warp without rows has nothing to score.
    const int end = first >= p.rows ? begin : (begin + Plan<K>::groups < groups ? begin + Plan<K>::groups : groups);
    const float* group = stages + stage % 2 * stage_floats;
#pragma unroll 1
    for (int g = begin; g < end; ++g, group += group_floats) {
      float one[M][2], two[M][2];  // the least of this group, and the second
#pragma unroll
      for (int m = 0; m < M; ++m)
#pragma unroll
        for (int h = 0; h < 2; ++h) one[m][h] = two[m][h] = no_code().h;
#pragma unroll(K > 4 ? 1 : (K > 2 ? 4 : 2))
      for (int turn = 0; turn < 8 / T; ++turn) {
        float from[T][4];
#pragma unroll
        for (int t = 0; t < T; ++t) {
          const Pack<float> norms = load_pack(group + group_codes * depth + (turn * T + t) * 16 + quarter * 4);
#pragma unroll
          for (int j = 0; j < 4; ++j) from[t][j] = norms.v[j];
        }
        float s[T][M][4];
        if constexpr (K == 1) {
          const Pack<float> b = load_pack(group + (turn * 32 + lane) * 4);
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
            for (int t = 0; t < T; ++t) b[t] = load_pack(group + (((turn * T + t) * K + k) / 2 * 32 + lane) * 4);
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
              if constexpr (packed) {
                const uint32_t index = static_cast<uint32_t>((turn * T + t) * 2);
                u = __uint_as_float((__float_as_uint(u) & ~15u) | index);
                v = __uint_as_float((__float_as_uint(v) & ~15u) | (index + 1));
                const float low = fminf(u, v);
                two[m][h] = fminf(fminf(two[m][h], fmaxf(u, v)), fmaxf(one[m][h], low));
                one[m][h] = fminf(one[m][h], low);
              } else {
                one[m][h] = turn + t == 0 ? fminf(u, v) : fminf(one[m][h], fminf(u, v));
              }
            }
      }
#pragma unroll
      for (int m = 0; m < M; ++m)
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          Least& l = least[m][h];
          l.second = fminf(l.second, fmaxf(l.first, one[m][h]));
          if constexpr (packed) l.second = fminf(l.second, two[m][h]);
          l.group = one[m][h] < l.first ? g : l.group;
          l.first = fminf(l.first, one[m][h]);
        }
    }
    __syncthreads();
  }

  // What is known waits in the stages' place, so that the rest is written once and takes few registers.
  uint4* known = reinterpret_cast<uint4*>(stages) + threadIdx.x;
#pragma unroll
  for (int m = 0; m < M; ++m)
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const Least& l = least[m][h];
      known[(m * 2 + h) * Plan<K>::threads] =
          make_uint4(__float_as_uint(l.first), __float_as_uint(l.second), static_cast<unsigned>(l.group), 0);
    }
    // Four lanes share a row: each has a code (packed) or sixteen that may be the nearest, or none.
#pragma unroll 1
  for (int turn = 0; turn < M * 2; ++turn) {
    const uint4 mine = known[turn * Plan<K>::threads];
    const Least l{__uint_as_float(mine.x), __uint_as_float(mine.y), static_cast<int>(mine.z)};
    const int i = turn * 8 + lane / 4;
    const int64_t row = first + i;
    float low = l.first;
#pragma unroll
    for (int lanes = 2; lanes > 0; lanes /= 2) low = fminf(low, __shfl_xor_sync(full_warp, low, lanes));
    const float width = windows[warp_row + i], scale = scales[warp_row + i], most = low + width;
    const bool near = l.first <= most, bounded = width >= 0 && low < largest_size;
    const uint32_t near_lanes = __ballot_sync(full_warp, near) >> (lane & 28) & 15u;
    const bool marked = (__ballot_sync(full_warp, !bounded || l.second <= most) >> (lane & 28) & 15u) != 0;
    const bool counts = row < p.rows && !marked;
    int code = l.group * group_codes + quarter * 16;
    if constexpr (packed) code += static_cast<int>(__float_as_uint(l.first) & 15u);
    Best best{no_code().h, code};
    if constexpr (packed) {
      const bool alone = (near_lanes & (near_lanes - 1)) == 0 && p.half == nullptr;
      if (near && counts) {
        if (alone) {
          best.h = -no_code().h;
        } else {
          const float* x = p.x + row * p.dim;
          const float* from = p.prepared + code;
          float sum = from[int64_t{p.dim} * p.padded];
#pragma unroll 8
          for (int d = 0; d < p.dim; ++d) sum = __fmaf_rn(-__fmul_rn(x[d], scale), from[int64_t{d} * p.padded], sum);
          best.h = sum;
        }
      }
    } else {
      best.k = 0;
      uint32_t left = counts ? near_lanes : 0;
      while (__any_sync(full_warp, left != 0)) {
        const int from_lane = (lane & 28) + (left != 0 ? __ffs(static_cast<int>(left)) - 1 : 0);
        const int k = __shfl_sync(full_warp, code, from_lane) + quarter * 4;
        if (left != 0) {
          const float* from = p.prepared + k;
          Pack<float> sum = load_pack(from + int64_t{p.dim} * p.padded);
          const float* x = p.x + row * p.dim;
#pragma unroll 2
          for (int d = 0; d < depth; d += 4) {
            const Pack<float> v = p.packs ? load_pack(x + d) : load_some(x + d, p.dim - d);
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
        left &= left - 1;
      }
    }
#pragma unroll
    for (int lanes = 2; lanes > 0; lanes /= 2) {
      const float other = __shfl_xor_sync(full_warp, best.h, lanes);
      const int32_t k = __shfl_xor_sync(full_warp, best.k, lanes);
      take_better(best, other, k);
    }
    if (quarter == 0 && row < p.rows) {
      p.out[row] = marked ? -1 : best.k;
      if (p.half != nullptr) p.half[row] = best.h;
    }
  }
}

constexpr int rest_span = 4 * tile_threads;  ///< rows among which a block looks for marked ones

/// Marked rows, sixteen at a time, as the tile rung does it. Bytes where none is marked: the codes once.
__global__ void __launch_bounds__(tile_threads, 2)
    vq_nearest_rest_kernel(const float* x, int64_t rows, int dim, const float* prepared, int padded, VqMetric metric,
                           int32_t* out, float* half) {
  NACRE_DYNAMIC_SHARED(float, tile);
  NACRE_SHARED(uint32_t, candidates, candidate_words);
  NACRE_SHARED(int32_t, list, rest_span);
  NACRE_SHARED(int32_t, counts, 4 * tile_warps);
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const int64_t first = int64_t{blockIdx.x} * rest_span;
  uint32_t marked[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int64_t row = first + i * tile_threads + threadIdx.x;
    marked[i] = __ballot_sync(full_warp, row < rows && out[row] < 0);
    if (lane == 0) counts[i * tile_warps + warp] = __popc(marked[i]);
  }
  __syncthreads();
  int before = 0, total = 0;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
#pragma unroll 1
    for (int w = 0; w < tile_warps; ++w) {
      if (w == warp) before = total;
      total += counts[i * tile_warps + w];
    }
    if ((marked[i] >> lane & 1u) != 0)
      list[before + __popc(marked[i] & ((1u << lane) - 1))] = i * tile_threads + static_cast<int>(threadIdx.x);
  }
  __syncthreads();
#pragma unroll 1
  for (int begin = 0; begin < total; begin += tile_rows) {
    for (int i = 0; i < 2; ++i) {
      const int r = warp * 2 + i;
      const bool there = begin + r < total;
      const float* row = x + (first + (there ? list[begin + r] : 0)) * dim;
      const float scale = there && metric == VqMetric::cosine ? inverse_norm(row, dim) : 1.0f;
      for (int d = lane; d < (dim + 3) / 4 * 4; d += 32)
        tile[d * tile_pitch + r] = there && d < dim ? __fmul_rn(row[d], scale) : 0.0f;
    }
    __syncthreads();
    tile_search(tile, dim, prepared, padded, candidates);
    __syncthreads();
    const OrderedBest best = tile_results(candidates);
    const int r = begin + warp * 2 + lane / 8;
    if (lane % 8 == 0 && lane < 16 && r < total) {
      const int64_t row = first + list[r];
      out[row] = static_cast<int32_t>(best.k);
      if (half != nullptr) half[row] = half_distance(best);
    }
  }
}

template <int K>
void launch_products(Context& ctx, const Products& p) {
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
                         VqMetric metric, float* products, int32_t* out, float* half) {
  const int64_t depth = products_depth(dim), padded = padded_codes(codes);
  launch(ctx,
         {.name = "vq_prepare_products", .grid = static_cast<unsigned>(padded / group_codes), .block = prepare_threads},
         vq_prepare_products_kernel, prepared, codes, static_cast<int>(dim), static_cast<int>(depth), products);
  const Products p{.x = x,
                   .rows = rows,
                   .prepared = prepared,
                   .products = products,
                   .out = out,
                   .half = half,
                   .dim = static_cast<int>(dim),
                   .padded = static_cast<int>(padded),
                   .cosine = metric == VqMetric::cosine,
                   .pairs = dim % 2 == 0 && reinterpret_cast<uintptr_t>(x) % sizeof(float2) == 0,
                   .packs = dim == depth && aligned16(x)};
  if (depth == 8) launch_products<1>(ctx, p);
  if (depth == 16) launch_products<2>(ctx, p);
  if (depth == 32) launch_products<4>(ctx, p);
  if (depth == 64) launch_products<8>(ctx, p);
  if (depth == 128) launch_products<16>(ctx, p);
}

void nearest_of_marked(Context& ctx, const float* x, int64_t rows, int64_t dim, const float* prepared, int64_t codes,
                       VqMetric metric, int32_t* out, float* half) {
  constexpr int static_words = candidate_words + rest_span + 4 * tile_warps;
  static_assert((tile_floats(max_products_dim) + static_words) * sizeof(float) <= least_shared_per_block);
  launch(ctx,
         {.name = "vq_nearest_rest",
          .grid = blocks_for(rows, rest_span),
          .block = tile_threads,
          .shared_bytes = static_cast<size_t>(tile_floats(dim)) * sizeof(float)},
         vq_nearest_rest_kernel, x, rows, static_cast<int>(dim), prepared, static_cast<int>(padded_codes(codes)),
         metric, out, half);
}

}  // namespace nacre::cuda
