#include "conv/conv1d_groups.cuh"

#include "conv/conv1d_cuda.h"

// Forward and input gradient of several groups (conv1d_groups.cuh has the idea, choose_groups.cpp the plan). A block
// has one slab of groups of one item and computes tiles_each tiles of its rows, one after the other. Shared memory:
//
//   tile      T      [remainders][phase_rows][pitch]     the source's rows, remainders of the stride apart
//   weights   float  [chunk][reduced][weight_pitch]      of the slab; backward: [reduced][chunk][weight_pitch]
//
// The pitch is an odd number of packs of 16 bytes, so eight neighbouring rows begin in different banks.
namespace nacre::cuda::groups {
namespace {

/// The operands: x and y of a forward; dy and dx of an input gradient.
template <class T>
struct Product {
  const T *source, *weight;
  const float* bias;
  const T* add;  ///< residual, or dx itself
  T* result;
};

/// Copies the samples of a tile that begins at `first` of the padded source. Those with one remainder by the stride lie
/// together, so neighbouring rows of the result read neighbouring rows of the tile.
template <class T>
__device__ __forceinline__ void copy_tile(const ProductPlan& s, const T* item, int64_t first, int remainders, T* tile) {
  const int packs = s.groups * s.reduced / pack_size<T>, pieces = s.staged * packs;
  for (int e = static_cast<int>(threadIdx.x); e < pieces; e += threads) {
    const int sample = e / packs, column = (e - sample * packs) * pack_size<T>;
    // Neighbouring threads copy neighbouring packs of a sample. Samples that do not exist become zeros.
    const int64_t at = source_sample(first + sample, s.source_time, s.reflect);
    const int quotient = sample / remainders, row = (sample - quotient * remainders) * s.phase_rows + quotient;
    cp_async_or_zeros(tile + row * s.pitch + column, item + (at < 0 ? 0 : at) * s.source_channels + column, at >= 0);
  }
}
/// Converts the weights of taps [begin, end) of the slab: row (tap, channel of the source in its group), column:
/// channel of the result. The order of the rows spreads the threads of a warp, which read neighbouring weights, over
/// the banks.
template <class T, bool backward>
__device__ __forceinline__ void load_weights(const ProductPlan& s, const T* slab, int begin, int end, float* weights) {
  const int taps = end - begin, count = s.groups * s.out * taps * s.in;
  for (int e = static_cast<int>(threadIdx.x); e < count; e += threads) {
    const int i = e % s.in, k = e / s.in % taps, o = e / s.in / taps, group = o / s.out;
    const int row = backward ? (o - group * s.out) * s.chunk + k : k * s.in + i,
              column = backward ? group * s.in + i : o;
    weights[row * s.weight_pitch + column] = to_float(slab[(int64_t{o} * s.taps + begin + k) * s.in + i]);
  }
}

/// Adds one tap to the sums. x: the source of the first row; rows follow at row_step. w: the weights of the tap's first
/// channel; those of the next follow at channel_step.
template <Pattern pattern, class T>
__device__ __forceinline__ void add_tap(float (&sum)[rows_each][4], const T* x, int row_step, const float* w,
                                        int channel_step, int channels, const int (&offset)[4]) {
  constexpr int C = channels_at_once(pattern);
#pragma unroll 1
  for (int c = 0; c < channels; c += C) {
    float factor[C][4];
#pragma unroll
    for (int e = 0; e < C; ++e) load_four(w + (c + e) * channel_step, factor[e]);
#pragma unroll
    for (int j = 0; j < rows_each; ++j) {
      const T* const row = x + j * row_step + c;
      float v[4];
      if constexpr (pattern == Pattern::mixed) {
#pragma unroll
        for (int n = 0; n < 4; ++n) v[n] = to_float(row[offset[n]]);
      } else {
        load_four(row, v);
      }
      // Of the four sources in v, result n takes those of its group: all of them (quads), its half (pairs), or its own
      // (others).
#pragma unroll
      for (int e = 0; e < C; ++e)
#pragma unroll
        for (int n = 0; n < 4; ++n) sum[j][n] += v[n / C * C + e] * factor[e][n];
    }
  }
}

/// Stores four channels of a sample. `index`: the first of these elements in the result; `channel`: its channel.
template <class T>
__device__ __forceinline__ void store_four(const Product<T>& a, int64_t index, int64_t channel, const float (&sum)[4]) {
  float v[4];
#pragma unroll
  for (int n = 0; n < 4; ++n) v[n] = sum[n] + (a.bias != nullptr ? a.bias[channel + n] : 0.0f);
  if (a.add != nullptr) {
    float more[4];
    load_four(a.add + index, more);
#pragma unroll
    for (int n = 0; n < 4; ++n) v[n] += more[n];
  }
  if constexpr (sizeof(T) == 4)
    *reinterpret_cast<float4*>(a.result + index) = make_float4(v[0], v[1], v[2], v[3]);
  else
    *reinterpret_cast<uint2*>(a.result + index) = make_uint2(pack_bf16(v[0], v[1]), pack_bf16(v[2], v[3]));
}

/// A warp computes rows_of_warp rows by lanes_across columns at a time; a column is four channels of one phase. Lane l
/// has column l % across and the rows l / across + j lane_rows, j < rows_each, of such a unit. Units run along the
/// columns first, and the warps of a block take them in turn.
///
/// Row r of the result is sample r result_step + phase - result_lead. Forward (one phase): tap k reads source row r
/// stride + k dilation, which lies at row r + k dilation / stride of the remainder k dilation % stride. Backward: a
/// phase has the taps with k dilation % stride = phase, every tap_step-th, and tap k reads source row r - k dilation /
/// stride, counted behind the halo; a phase without taps is stored as bias and previous content.
///
/// Blocks are numbered along the slabs first: blocks with neighbouring numbers read different channels of the same
/// rows. All loops with a barrier have the same bounds for all threads; `computes` only gates the products and the
/// stores.
template <class T, Pattern pattern, bool backward>
__global__ void __launch_bounds__(threads, 2) group_product_kernel(Product<T> a, ProductPlan s) {
  NACRE_DYNAMIC_SHARED(unsigned char, shared);
  constexpr int across = lanes_across(pattern), lane_rows = 32 / across, warp_rows = rows_of_warp(pattern);
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const int slab = static_cast<int>(blockIdx.x % static_cast<unsigned>(s.slabs));
  const int64_t block = blockIdx.x / static_cast<unsigned>(s.slabs), item = block / s.blocks;
  const int64_t first_tile = (block - item * s.blocks) * s.tiles_each;
  const int remainders = backward ? 1 : s.stride, columns = s.quads * s.phases;
  T* const tile = reinterpret_cast<T*>(shared);
  float* const weights = reinterpret_cast<float*>(tile + remainders * s.phase_rows * s.pitch);
  const T* const source = a.source + item * s.source_time * s.source_channels + int64_t{slab} * s.groups * s.reduced;
  const T* const slab_weight = a.weight + int64_t{slab} * s.groups * s.out * s.taps * s.in;
  const int64_t first_channel = int64_t{slab} * s.quads * 4;
  const int tap_step = backward ? 1 : s.in, channel_step = backward ? s.chunk : 1;
  const int column_blocks = ceil_div(columns, across), units = column_blocks * (s.tile_rows / warp_rows);
  const bool all_taps = s.chunk == s.taps;

  for (int64_t t = first_tile; t < first_tile + s.tiles_each && t < s.tiles; ++t) {
    const int64_t tile_row = t * s.tile_rows;
    __syncthreads();  // the tile before was read
    copy_tile(s, source, tile_row * s.row_step - s.lead, remainders, tile);
    cp_async_commit();
    if (all_taps && t == first_tile) load_weights<T, backward>(s, slab_weight, 0, s.taps, weights);
    cp_async_wait<0>();
    __syncthreads();
    for (int pass = 0; pass < units; pass += threads / 32) {
      const int unit = pass + warp;
      const int column = unit % column_blocks * across + lane % across,
                row = unit / column_blocks * warp_rows + lane / across;
      const bool computes = unit < units && tile_row + unit / column_blocks * warp_rows < s.rows && column < columns;
      const int phase = column / s.quads, quad = column - phase * s.quads;
      int offset[4];
#pragma unroll
      for (int n = 0; n < 4; ++n) {
        const int result = quad * 4 + n, of_group = backward ? s.in : s.out;
        offset[n] = result / of_group * s.reduced;
      }
      const T* const x = tile + row * s.pitch + (pattern == Pattern::mixed ? 0 : offset[0]);
      float sum[rows_each][4];
#pragma unroll
      for (int j = 0; j < rows_each; ++j)
#pragma unroll
        for (int n = 0; n < 4; ++n) sum[j][n] = 0;
      // The first tap of the phase; s.taps if there is none to add.
      int k = 0;
      if constexpr (backward)
        while (k < s.tap_step && k * s.dilation % s.stride != phase) ++k;
      if (!computes || k == s.tap_step) k = s.taps;  // the phase has no tap
      for (int begin = 0; begin < s.taps; begin += s.chunk) {
        const int end = min(begin + s.chunk, s.taps);
        // Weights that do not fit at once come chunk by chunk, again in every pass; the tile stays.
        if (!all_taps) {
          __syncthreads();  // the weights before were read
          load_weights<T, backward>(s, slab_weight, begin, end, weights);
          __syncthreads();
        }
        for (; k < end; k += backward ? s.tap_step : 1) {
          const int at = k * s.dilation, rows = at / s.stride;
          const int tile_offset =
              backward ? s.staged - s.tile_rows - rows : (at - rows * s.stride) * s.phase_rows + rows;
          add_tap<pattern>(sum, x + tile_offset * s.pitch, lane_rows * s.pitch,
                           weights + (k - begin) * tap_step * s.weight_pitch + quad * 4, channel_step * s.weight_pitch,
                           s.reduced, offset);
        }
      }
      if (!computes) continue;
#pragma unroll
      for (int j = 0; j < rows_each; ++j) {
        const int64_t r = tile_row + row + j * lane_rows, sample = r * s.result_step + phase - s.result_lead;
        if (r >= s.rows || sample < s.begin || sample >= s.end) continue;
        const int64_t channel = first_channel + quad * 4;
        store_four(a, (item * s.result_time + sample) * s.result_channels + channel, channel, sum[j]);
      }
    }
  }
}

template <class T, bool backward>
void product(Context& ctx, const char* name, const Product<T>& a, const ProductPlan& s) {
  with_pattern(s.pattern, [&]<Pattern pattern>() {
    launch(ctx,
           {.name = name,
            .grid = static_cast<unsigned>(s.items * s.blocks * s.slabs),
            .block = threads,
            .shared_bytes = static_cast<size_t>(shared_bytes(s, sizeof(T)))},
           group_product_kernel<T, pattern, backward>, a, s);
  });
}

}  // namespace

template <class T>
void forward(Context& ctx, const Conv1dForward<T>& a, const ProductPlan& s) {
  product<T, false>(ctx, "conv1d_forward_groups", {a.x.data, a.weight.data, a.bias.data, a.residual.data, a.y.data}, s);
}
template <class T>
void input_gradient(Context& ctx, const Conv1dInputGradient<T>& a, const ProductPlan& s) {
  product<T, true>(ctx, "conv1d_input_gradient_groups",
                   {a.dy.data, a.weight.data, a.bias.data, a.add_dx ? a.dx.data : nullptr, a.dx.data}, s);
}

template void forward<float>(Context&, const Conv1dForward<float>&, const ProductPlan&);
template void forward<bf16>(Context&, const Conv1dForward<bf16>&, const ProductPlan&);
template void input_gradient<float>(Context&, const Conv1dInputGradient<float>&, const ProductPlan&);
template void input_gradient<bf16>(Context&, const Conv1dInputGradient<bf16>&, const ProductPlan&);

}  // namespace nacre::cuda::groups
