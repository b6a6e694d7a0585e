#include "nacre/ops/level.h"

#include "runtime/partials.cuh"

// Level on CUDA; level.cpp is the same on the CPU. nacre/ops/level.h gives the formulas.
//
// A block has a part of one item, 4096 samples; blocks of an item are adjacent. What joins the parts of an item is
// computed by every block of the item again, a few numbers from cache, instead of in one more launch.
//
//   level_sums     sum of the part, to scratch as double
//   level_peaks    mean of the item from all its sums; the part's peak and its position, to scratch as two words
//   level_forward  mean and peak of the item from all its parts; y; the item's first block writes the statistics
//
//   level_gradient_sums  sums of dy and of dy u of the part, to scratch as doubles
//   level_backward       their sums over the item; dx
//
// Kernels with `aligned` use accesses of 16 bytes. The order of sums is the same without.
namespace nacre::cuda {
namespace {

/// The item and the samples of a block.
struct Part {
  int64_t item, first;  ///< first sample in all samples
  int position, n;      ///< first sample in its item
  __device__ __forceinline__ Part(Shape x, int64_t parts) : item(blockIdx.x / parts) {
    const int64_t begin = (blockIdx.x - item * parts) * sum_part, rest = x.time - begin;
    first = item * x.time + begin;
    position = static_cast<int>(begin);
    n = static_cast<int>(rest < sum_part ? rest : sum_part);
  }
};
/// Calls f(offset) for the packs of this thread, which begin `offset` samples after the part's first. Thread i takes
/// samples 4 i to 4 i + 3 of each 1024, whether aligned or not, so that the order of sums does not depend on addresses.
/// Offsets may lie beyond the end of the item's last part.
template <class F>
__device__ __forceinline__ void each_pack(const F& f) {
  constexpr int P = pack_size<float>;
#pragma unroll
  for (int step = 0; step < sum_part / (P * sum_threads); ++step)
    f((step * sum_threads + static_cast<int>(threadIdx.x)) * P);
}
/// Four samples of the part; zeros beyond its end.
template <bool aligned>
__device__ __forceinline__ Pack<float> load_of(const float* x, const Part& p, int offset) {
  if (aligned && offset + pack_size<float> <= p.n) return load_pack(x + p.first + offset);
  return load_some(x + p.first + offset, p.n - offset);
}
/// Writes those of four samples that the part has.
template <bool aligned>
__device__ __forceinline__ void store_to(float* x, const Part& p, int offset, const Pack<float>& v) {
  if (aligned && offset + pack_size<float> <= p.n)
    store_pack(x + p.first + offset, v);
  else
    store_some(x + p.first + offset, v, p.n - offset);
}

/// The mean as two floats: its rounding error would otherwise be an error of all samples. removed(x) is u.
struct Mean {
  float mean, rest;
  __device__ __forceinline__ float size(float x) const { return fabsf(removed(x)); }
  __device__ __forceinline__ float removed(float x) const { return (x - mean) - rest; }
};
/// The mean of the block's item from the sums of its parts, the same bits in all blocks of the item. `buffer`: one
/// double per warp.
__device__ __forceinline__ Mean mean_of(const float* sums, const Part& p, int64_t parts, int64_t time, double* buffer) {
  const double mean = sum_partials(sums + 2 * p.item * parts, parts, buffer) / static_cast<double>(time);
  const float rounded = static_cast<float>(mean);
  return {rounded, static_cast<float>(mean - static_cast<double>(rounded))};
}

/// A size and its position as one number, larger for larger sizes and, of equal ones, for earlier positions. Bits of
/// floats that are not negative are in the order of the floats; NaN is the largest.
__device__ __forceinline__ uint64_t peak_key(float size, unsigned position) {
  return static_cast<uint64_t>(__float_as_uint(size)) << 32 | (0xffffffffu - position);
}
/// The largest key of the block, in every thread. `buffer`: one key per warp, used once per kernel.
__device__ __forceinline__ uint64_t largest_key(uint64_t key, uint64_t* buffer) {
#pragma unroll
  for (int lanes = 16; lanes > 0; lanes /= 2) {
    const uint64_t other = __shfl_xor_sync(full_warp, key, lanes);
    key = other > key ? other : key;
  }
  if (threadIdx.x % 32 == 0) buffer[threadIdx.x / 32] = key;
  __syncthreads();
#pragma unroll
  for (int w = 0; w < sum_threads / 32; ++w) key = buffer[w] > key ? buffer[w] : key;
  return key;
}

/// The sum of the block's part, which later kernels join. Samples beyond the part are loaded as zeros.
template <bool aligned>
__global__ void __launch_bounds__(sum_threads) level_sums_kernel(LevelForward a, int64_t parts) {
  NACRE_SHARED(double, buffer, sum_threads / 32);
  const Part p(a.x.shape, parts);
  double sum = 0;
  each_pack([&](int offset) {
    const Pack<float> x = load_of<aligned>(a.x.data, p, offset);
#pragma unroll
    for (int i = 0; i < pack_size<float>; ++i) sum += static_cast<double>(x.v[i]);
  });
  sum = block_sum<sum_threads>(sum, buffer);
  if (threadIdx.x == 0) put_partial(a.scratch.data, blockIdx.x, sum);
}

/// peaks [block][2] = the two words of the part's largest key. Samples beyond the part are zeros whose |u| would be
/// that of the mean; they are left out.
template <bool aligned>
__global__ void __launch_bounds__(sum_threads) level_peaks_kernel(LevelForward a, int64_t parts, float* peaks) {
  NACRE_SHARED(double, buffer, sum_threads / 32);
  NACRE_SHARED(uint64_t, keys, sum_threads / 32);
  const Part p(a.x.shape, parts);
  const Mean mean = mean_of(a.scratch.data, p, parts, a.x.shape.time, buffer);
  uint64_t key = 0;
  each_pack([&](int offset) {
    const Pack<float> x = load_of<aligned>(a.x.data, p, offset);
#pragma unroll
    for (int i = 0; i < pack_size<float>; ++i) {
      const uint64_t found = peak_key(mean.size(x.v[i]), static_cast<unsigned>(p.position + offset + i));
      if (offset + i < p.n && found > key) key = found;
    }
  });
  key = largest_key(key, keys);
  if (threadIdx.x != 0) return;
  peaks[2 * int64_t{blockIdx.x}] = __uint_as_float(static_cast<unsigned>(key >> 32));
  peaks[2 * int64_t{blockIdx.x} + 1] = __uint_as_float(static_cast<unsigned>(key));
}

/// y of the block's part. Every block finds the largest key of its item again: thread i reads the keys i, i + threads,
/// ...
template <bool aligned>
__global__ void __launch_bounds__(sum_threads) level_forward_kernel(LevelForward a, int64_t parts, const float* peaks) {
  NACRE_SHARED(double, buffer, sum_threads / 32);
  NACRE_SHARED(uint64_t, keys, sum_threads / 32);
  const Part p(a.x.shape, parts);
  const Mean mean = mean_of(a.scratch.data, p, parts, a.x.shape.time, buffer);
  uint64_t key = 0;
  for (int64_t i = threadIdx.x; i < parts; i += sum_threads) {
    const float* const of = peaks + 2 * (p.item * parts + i);
    const uint64_t found = static_cast<uint64_t>(__float_as_uint(of[0])) << 32 | __float_as_uint(of[1]);
    key = found > key ? found : key;
  }
  key = largest_key(key, keys);
  // NaN if a sample is NaN or infinite, because the mean then is.
  const float peak = __uint_as_float(static_cast<unsigned>(key >> 32)) + 0.0f * mean.mean;
  if (threadIdx.x == 0 && p.position == 0) {
    float* const to = a.statistics.data + 4 * p.item;
    to[0] = mean.mean, to[1] = peak;
    to[2] = __uint_as_float(0xffffffffu - static_cast<unsigned>(key)), to[3] = mean.rest;
  }
  const float scale =
      static_cast<float>(static_cast<double>(a.peak) / (static_cast<double>(peak) + static_cast<double>(a.eps)));
  each_pack([&](int offset) {
    if (offset >= p.n) return;
    Pack<float> v = load_of<aligned>(a.x.data, p, offset);
#pragma unroll
    for (int i = 0; i < pack_size<float>; ++i) v.v[i] = scale * mean.removed(v.v[i]);
    store_to<aligned>(a.y.data, p, offset, v);
  });
}

/// Sums of dy and of dy u over the block's part.
template <bool aligned>
__global__ void __launch_bounds__(sum_threads)
    level_gradient_sums_kernel(LevelBackward a, int64_t parts, float* products) {
  NACRE_SHARED(double, buffer, sum_threads / 32);
  const Part p(a.x.shape, parts);
  const float* const of = a.statistics.data + 4 * p.item;
  const Mean mean{of[0], of[3]};
  double sum = 0, product = 0;
  each_pack([&](int offset) {
    const Pack<float> x = load_of<aligned>(a.x.data, p, offset), dy = load_of<aligned>(a.dy.data, p, offset);
#pragma unroll
    for (int i = 0; i < pack_size<float>; ++i) {  // dy is zero behind the part
      const double d = static_cast<double>(dy.v[i]);
      sum += d;
      product += d * static_cast<double>(mean.removed(x.v[i]));
    }
  });
  sum = block_sum<sum_threads>(sum, buffer);
  product = block_sum<sum_threads>(product, buffer);
  if (threadIdx.x != 0) return;
  put_partial(a.scratch.data, blockIdx.x, sum);
  put_partial(products, blockIdx.x, product);
}

/// dx of the block's part; `at` is the offset of the peak's sample in it, outside of the part in all blocks but one.
template <bool aligned>
__global__ void __launch_bounds__(sum_threads)
    level_backward_kernel(LevelBackward a, int64_t parts, const float* products) {
  NACRE_SHARED(double, buffer, sum_threads / 32);
  const Part p(a.x.shape, parts);
  const int64_t time = a.x.shape.time, first = 2 * p.item * parts;
  const double sum = sum_partials(a.scratch.data + first, parts, buffer);
  const double product = sum_partials(products + first, parts, buffer);
  const float* const of = a.statistics.data + 4 * p.item;
  const int position = static_cast<int>(__float_as_uint(of[2])), at = position - p.position;
  const double whole = static_cast<double>(of[1]) + static_cast<double>(a.eps),
               scale = static_cast<double>(a.peak) / whole;
  const float u = Mean{of[0], of[3]}.removed(a.x.data[p.item * time + position]);
  // As in level.cpp: `taken` is what du has less at the sample of the peak; `mean` is the mean of du.
  const double taken = (u > 0 ? 1.0 : u < 0 ? -1.0 : 0.0) * scale / whole * product;
  const double mean = (scale * sum - taken) / static_cast<double>(time);
  const float rounded_scale = static_cast<float>(scale), rounded_mean = static_cast<float>(mean);
  each_pack([&](int offset) {
    if (offset >= p.n) return;
    const Pack<float> dy = load_of<aligned>(a.dy.data, p, offset);
    Pack<float> before{};
    if (a.add_dx) before = load_of<aligned>(a.dx.data, p, offset);
#pragma unroll
    for (int i = 0; i < pack_size<float>; ++i) {
      // The sample of the peak is rounded once, from numbers in double.
      const float d = offset + i == at ? static_cast<float>(scale * static_cast<double>(dy.v[i]) - taken - mean)
                                       : fmaf(rounded_scale, dy.v[i], -rounded_mean);
      before.v[i] += d;
    }
    store_to<aligned>(a.dx.data, p, offset, before);
  });
}

}  // namespace

/// Forward: a sum per block as double, then two words of its peak. Backward: two sums per block as doubles.
Shape level_scratch(Shape x) { return {.channels = 4 * x.batch * sum_parts(x.time)}; }

void level_forward(Context& ctx, const LevelForward& a) {
  const int64_t parts = sum_parts(a.x.shape.time), blocks = a.x.shape.batch * parts;
  const bool vectorized = a.x.shape.time % pack_size<float> == 0 && aligned16(a.x.data) && aligned16(a.y.data);
  float* const peaks = a.scratch.data + 2 * blocks;
  const unsigned grid = blocks_for(blocks, 1);
  launch(ctx, {.name = "level_sums", .grid = grid, .block = sum_threads},
         vectorized ? level_sums_kernel<true> : level_sums_kernel<false>, a, parts);
  launch(ctx, {.name = "level_peaks", .grid = grid, .block = sum_threads},
         vectorized ? level_peaks_kernel<true> : level_peaks_kernel<false>, a, parts, peaks);
  launch(ctx, {.name = "level_forward", .grid = grid, .block = sum_threads},
         vectorized ? level_forward_kernel<true> : level_forward_kernel<false>, a, parts, peaks);
}

void level_backward(Context& ctx, const LevelBackward& a) {
  const int64_t parts = sum_parts(a.x.shape.time), blocks = a.x.shape.batch * parts;
  const bool vectorized =
      a.x.shape.time % pack_size<float> == 0 && aligned16(a.x.data) && aligned16(a.dy.data) && aligned16(a.dx.data);
  float* const products = a.scratch.data + 2 * blocks;
  const unsigned grid = blocks_for(blocks, 1);
  launch(ctx, {.name = "level_gradient_sums", .grid = grid, .block = sum_threads},
         vectorized ? level_gradient_sums_kernel<true> : level_gradient_sums_kernel<false>, a, parts, products);
  launch(ctx, {.name = "level_backward", .grid = grid, .block = sum_threads},
         vectorized ? level_backward_kernel<true> : level_backward_kernel<false>, a, parts, products);
}

}  // namespace nacre::cuda
