#include "conv/conv1d_cuda.h"
#include "conv/conv1d_groups.cuh"

// The weight gradient of several groups (conv1d_groups.cuh, choose_groups.cpp): dweight[o, k, i] = sum over rows of
// dy[t, o] x[t stride + k dilation - left, i], and dbias. A block has one slab of groups, one part of the tiles of
// rows, and `share` of the slab's items of work. For each tile it copies the slab's channels of x and dy to shared
// memory:
//
//   x      T   [(tile_rows - 1) stride + (taps - 1) dilation + 1][pitch]
//   dy     T   [tile_rows][groups out]
//   ones   T   16 bytes, which take the place of x for the bias
//
// If a block has at most half as many items as threads, `lanes` threads share an item and add every lanes-th row; else
// a thread has up to items_each items and adds all rows. Sums are in float and stay in registers over all tiles of the
// block.
namespace nacre::cuda::groups {
namespace {

template <class T>
struct Weights {
  const T *x, *dy;
  float* to;           ///< parts of dweight, or dweight if there is one part
  float* bias_to;      ///< the same of dbias; null: not wanted
  bool add, bias_add;  ///< += instead of =
};

/// Copies `samples` samples of the slab's channels; column by column of 16 bytes, `pitch` elements from sample to
/// sample.
template <class T>
__device__ __forceinline__ void copy_samples(const T* item, int64_t first, int samples, int64_t time, bool reflect,
                                             int64_t channels, int slab_channels, T* tile, int pitch) {
  const int packs = slab_channels / pack_size<T>, pieces = samples * packs;
  for (int e = static_cast<int>(threadIdx.x); e < pieces; e += threads) {
    const int sample = e / packs, column = (e - sample * packs) * pack_size<T>;
    const int64_t at = source_sample(first + sample, time, reflect);
    cp_async_or_zeros(tile + sample * pitch + column, item + (at < 0 ? 0 : at) * channels + column, at >= 0);
  }
}

/// An item of work: outputs quad * 4 and the next three; channels channel and the next ones of a group; a tap. Taps run
/// fastest, so the lanes of a warp read one pack of dy, and different rows of x. taps: the item of the bias.
struct Work {
  int tap, channel, quad;
};
template <Pattern pattern>
__device__ __forceinline__ Work work(const WeightPlan& s, int index) {
  const int quads = s.groups * s.out / 4, of_bias = index - (s.work - quads);
  if (of_bias >= 0) return {s.taps, 0, of_bias};
  const int packs = pattern == Pattern::quads ? s.in / 4 : pattern == Pattern::mixed ? s.in : 1;
  const int pack = index / s.taps, quad = pack / packs;
  return {index - pack * s.taps, (pack - quad * packs) * channels_at_once(pattern), quad};
}

/// Stores the sums of an item of work in part `part`.
template <Pattern pattern, class T>
__device__ __forceinline__ void store_sums(const Weights<T>& a, const WeightPlan& s, int64_t part, int64_t slab,
                                           const Work& w, const float (&sum)[channels_at_once(pattern)][4]) {
  constexpr int C = channels_at_once(pattern);
  const int64_t first = slab * s.groups * s.out + w.quad * 4;
  if (w.tap == s.taps) {
    if (a.bias_to == nullptr) return;
#pragma unroll
    for (int n = 0; n < 4; ++n) {
      float* const at = a.bias_to + part * s.out_channels + first + n;
      *at = a.bias_add ? *at + sum[0][n] : sum[0][n];
    }
    return;
  }
  float* const to = a.to + part * s.out_channels * s.taps * s.in;
#pragma unroll
  for (int n = 0; n < 4; ++n) {
    float* const at = to + ((first + n) * s.taps + w.tap) * s.in + w.channel;
    if constexpr (pattern == Pattern::quads) {
      float4 v = make_float4(sum[0][n], sum[1][n], sum[2][n], sum[3][n]);
      if (a.add) {
        const float4 previous = load_four(at);
        v.x += previous.x, v.y += previous.y, v.z += previous.z, v.w += previous.w;
      }
      *reinterpret_cast<float4*>(at) = v;
    } else {
#pragma unroll
      for (int e = 0; e < C; ++e) at[e] = a.add ? at[e] + sum[e][n] : sum[e][n];
    }
  }
}

/// Adds rows `lane`, lane + lanes, ... of a tile to the sums of an item of work: sum[e][n] += x[row, channel + e]
/// dy[row, output n], where with several groups in a pack each output takes the channels of its own group. The item of
/// the bias takes ones, and does not advance.
template <Pattern pattern, class T>
__device__ __forceinline__ void add_rows(const WeightPlan& s, const Work& w, const T* x, const T* dy, const T* ones,
                                         int lane, int rows, float (&sum)[channels_at_once(pattern)][4]) {
  constexpr int C = channels_at_once(pattern);
  const bool bias = w.tap == s.taps;
  const int dy_pitch = s.groups * s.out, x_step = bias ? 0 : s.lanes * s.stride * s.pitch;
  int offset[4];
#pragma unroll
  for (int n = 0; n < 4; ++n) offset[n] = bias ? 0 : (w.quad * 4 + n) / s.out * s.in;
  const T* from = bias ? ones
                       : x + (lane * s.stride + w.tap * s.dilation) * s.pitch + w.channel +
                             (pattern == Pattern::mixed ? 0 : offset[0]);
  const T* dy_from = dy + lane * dy_pitch + w.quad * 4;
#pragma unroll 4
  for (int r = lane; r < rows; r += s.lanes, from += x_step, dy_from += s.lanes * dy_pitch) {
    float v[4], d[4];
    load_four(dy_from, d);
    if constexpr (pattern == Pattern::mixed) {
#pragma unroll
      for (int n = 0; n < 4; ++n) v[n] = to_float(from[offset[n]]);
    } else {
      load_four(from, v);
    }
    // Of the four x in v, output n takes those of its group: all of them (quads), its half (pairs), or its own
    // (others).
#pragma unroll
    for (int e = 0; e < C; ++e)
#pragma unroll
      for (int n = 0; n < 4; ++n) sum[e][n] += v[n / C * C + e] * d[n];
  }
}

/// Blocks are numbered along the slabs first, then along the splits, then along the parts, so blocks with neighbouring
/// numbers read the same rows at the same time. Behind the tiles the lanes' sums of an item go through shared memory,
/// in the place of the tiles, [4 C sums][lanes][share] floats, and lane 0 adds them in order, in double.
template <class T, Pattern pattern>
__global__ void __launch_bounds__(threads, 2) group_weights_kernel(Weights<T> a, WeightPlan s) {
  NACRE_DYNAMIC_SHARED(unsigned char, shared);
  constexpr int C = channels_at_once(pattern);
  const int thread = static_cast<int>(threadIdx.x);
  const auto slabs = static_cast<unsigned>(s.slabs), splits = static_cast<unsigned>(s.splits);
  const int64_t slab = blockIdx.x % slabs, split = blockIdx.x / slabs % splits, part = blockIdx.x / slabs / splits;
  const int slab_in = s.groups * s.in, slab_out = s.groups * s.out,
            x_rows = (s.tile_rows - 1) * s.stride + (s.taps - 1) * s.dilation + 1;
  T* const x = reinterpret_cast<T*>(shared);
  T* const dy = x + x_rows * s.pitch;
  T* const ones = dy + s.tile_rows * slab_out;
  if (thread < 16 / static_cast<int>(sizeof(T))) ones[thread] = store<T>(1.0f);

  // A thread has one row out of `lanes` of one item, or all rows of up to items_each items.
  const int first_work = static_cast<int>(split) * s.share, last_work = min(first_work + s.share, s.work);
  const int lane = s.lanes > 1 ? thread / s.share : 0, index = s.lanes > 1 ? thread - lane * s.share : thread;
  const bool takes_part = lane < s.lanes;
  float sum[items_each][C][4];
#pragma unroll
  for (int i = 0; i < items_each; ++i)
#pragma unroll
    for (int e = 0; e < C; ++e)
#pragma unroll
      for (int n = 0; n < 4; ++n) sum[i][e][n] = 0;

  const int64_t tiles = s.items * s.tiles, end = tiles * (part + 1) / s.parts;
  for (int64_t t = tiles * part / s.parts; t < end; ++t) {
    const int64_t item = t / s.tiles, first = (t - item * s.tiles) * s.tile_rows;
    __syncthreads();  // the tile before was read
    copy_samples(a.x + item * s.time * s.in_channels + slab * slab_in, first * s.stride - s.left, x_rows, s.time,
                 s.reflect, s.in_channels, slab_in, x, s.pitch);
    copy_samples(a.dy + item * s.length * s.out_channels + slab * slab_out, first, s.tile_rows, s.length, false,
                 s.out_channels, slab_out, dy, slab_out);
    cp_async_commit();
    cp_async_wait<0>();
    __syncthreads();
    // Rows of dy behind the end are zeros in shared memory; they are not added either.
    const int rows = s.length - first < s.tile_rows ? static_cast<int>(s.length - first) : s.tile_rows;
#pragma unroll
    for (int i = 0; i < items_each; ++i) {
      const int of_work = first_work + index + i * threads;
      if (takes_part && of_work < last_work && (i == 0 || s.lanes == 1))
        add_rows<pattern>(s, work<pattern>(s, of_work), x, dy, ones, lane, rows, sum[i]);
    }
  }

  if (s.lanes > 1) {  // adds the lanes' sums in double
    float* const sums = reinterpret_cast<float*>(shared);
    // All threads have read the last tile before it is overwritten.
    __syncthreads();
    if (takes_part) {
#pragma unroll
      for (int e = 0; e < C; ++e)
#pragma unroll
        for (int n = 0; n < 4; ++n) sums[((e * 4 + n) * s.lanes + lane) * s.share + index] = sum[0][e][n];
    }
    __syncthreads();
    if (lane != 0) return;
#pragma unroll
    for (int e = 0; e < C; ++e)
#pragma unroll
      for (int n = 0; n < 4; ++n) {
        double total = 0;
        for (int l = 0; l < s.lanes; ++l)
          total += static_cast<double>(sums[((e * 4 + n) * s.lanes + l) * s.share + index]);
        sum[0][e][n] = static_cast<float>(total);
      }
  }
#pragma unroll
  for (int i = 0; i < items_each; ++i) {
    const int of_work = first_work + index + i * threads;
    if (of_work < last_work && (i == 0 || s.lanes == 1))
      store_sums<pattern>(a, s, part, slab, work<pattern>(s, of_work), sum[i]);
  }
}

}  // namespace

/// One part goes to dweight and dbias themselves; several parts go to scratch and are added in double by a second
/// stage, at once or by finish_gradient_sums().
template <class T>
void weight_gradient(Context& ctx, const Conv1dWeightGradient<T>& a, const WeightPlan& s) {
  const int64_t weights = a.dweight.elements();
  Weights<T> w{a.x.data, a.dy.data, a.dweight.data, a.dbias.data, a.add_dweight, true};
  if (s.parts > 1) {
    w.to = a.scratch.data, w.add = w.bias_add = false;
    if (a.dbias) w.bias_to = a.scratch.data + s.parts * weights;
  }
  with_pattern(s.pattern, [&]<Pattern pattern>() {
    launch(ctx,
           {.name = "conv1d_weight_gradient_groups",
            .grid = static_cast<unsigned>(s.parts * s.splits * s.slabs),
            .block = threads,
            .shared_bytes = static_cast<size_t>(shared_bytes(s, sizeof(T)))},
           group_weights_kernel<T, pattern>, w, s);
  });
  if (s.parts == 1) return;
  const bool later = static_cast<bool>(a.parts);
  add_parts(ctx, w.to, s.parts, weights, a.dweight.data, a.add_dweight, later);
  if (a.dbias) add_parts(ctx, w.bias_to, s.parts, s.out_channels, a.dbias.data, true, later);
}

template void weight_gradient<float>(Context&, const Conv1dWeightGradient<float>&, const WeightPlan&);
template void weight_gradient<bf16>(Context&, const Conv1dWeightGradient<bf16>&, const WeightPlan&);

}  // namespace nacre::cuda::groups
