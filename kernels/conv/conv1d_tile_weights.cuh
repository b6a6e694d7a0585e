#pragma once
// The weight gradient as a matrix product: dweight [out][taps in] = dy^T x', where row r of x' is the window of x that
// row r of y was computed from. Rows are the reduced dimension and both operands are MN-major, so tiles are copied
// without a transpose. A block computes BM outputs by BN weights over one part of the rows. The number of parts is
// fixed by shape and device. Each part leaves its partial sums, which are added in order.
#include "conv/conv1d_bias_sums.cuh"
#include "conv/conv1d_tile.cuh"

namespace nacre::cuda::tile {

template <int BM, int BN, Product P>
struct WeightLayout {
  using T = typename EngineOf<P, warp_columns(P, BM, BN)>::type::T;
  static constexpr int threads = block_threads(P, BM, BN);
  static constexpr int depth = step_bytes / static_cast<int>(sizeof(T));
  static constexpr int spare = sizeof(T) == 4 ? 32 : 16;
  static constexpr int a_pitch = BM * static_cast<int>(sizeof(T)) + spare,
                       b_pitch = BN * static_cast<int>(sizeof(T)) + spare;
  static constexpr int a_bytes = depth * a_pitch, b_bytes = depth * b_pitch;
  static constexpr int out_stride = BN + 4;
  static constexpr size_t loop_bytes = stages * (a_bytes + b_bytes), out_bytes = BM * out_stride * 4;
  static constexpr size_t shared_bytes = loop_bytes > out_bytes ? loop_bytes : out_bytes;
};

/// `to` is dweight itself if there is one part (+= with s.add), else partial sums [parts][out][weights]. For Input see
/// PlainInput in conv1d_tile.cuh; it is called with channels of x. bias.of_x: not with an active input. The samples of x
/// are then those of the taps [left, left + stride), which hold each of them exactly once (Windows::sums_x).
template <int BM, int BN, Product P, class Input>
__global__ void __launch_bounds__(block_threads(P, BM, BN), blocks_at_once(P, BM, BN))
    weight_product_kernel(Windows s, const typename EngineOf<P>::type::T* dy, const typename EngineOf<P>::type::T* x,
                          Input input, float* to, BiasSums bias) {
  constexpr int WN = warp_columns(P, BM, BN);
  using Engine = typename EngineOf<P, WN>::type;
  using T = typename Engine::T;
  using L = WeightLayout<BM, BN, P>;
  constexpr int pack = pack_size<T>, depth = Engine::depth, threads = L::threads;
  NACRE_DYNAMIC_SHARED(unsigned char, shared);
  const int thread = static_cast<int>(threadIdx.x), lane = thread % 32, warp = thread / 32;
  const int64_t first_weight = int64_t{blockIdx.x} * BN, first_out = int64_t{blockIdx.y} * BM;
  const int64_t begin = s.rows * blockIdx.z / s.parts, end = s.rows * (int64_t{blockIdx.z} + 1) / s.parts;
  unsigned char* const a_shared = shared;
  unsigned char* const b_shared = shared + stages * L::a_bytes;

  constexpr int a_packs = BM / pack, a_at_once = threads / a_packs, b_packs = BN / pack, b_at_once = threads / b_packs;
  const int a_column = thread % a_packs * pack, a_row = thread / a_packs, b_column = thread % b_packs * pack,
            b_row = thread / b_packs;
  const bool a_exists = first_out + a_column < s.out;
  // A thread always copies the same pack of weights (tap, channel): window_offset is where that pack lies in a window.
  const int64_t weight = first_weight + b_column, tap = weight / s.in;
  const int channel = static_cast<int>(weight - tap * s.in);
  const bool b_exists = weight < s.weights;
  const int64_t window_offset = (tap * s.dilation - s.left) * s.in + channel;
  const int rows = static_cast<int>(end - begin), length = static_cast<int>(s.length);
  const T* next_dy = dy + (begin + a_row) * s.out + first_out + a_column;
  const T* next_item = x + begin / s.length * s.item;
  int next_t = static_cast<int>(begin % s.length);
  const auto fetch = [&](int next_row, int slot) {
    unsigned char* to_a = a_shared + slot * L::a_bytes + a_row * L::a_pitch + thread % a_packs * 16;
#pragma unroll
    for (int i = 0; i < depth / a_at_once; ++i, to_a += a_at_once * L::a_pitch, next_dy += a_at_once * s.out) {
      cp_async_or_zeros(to_a, next_dy, a_exists && next_row + a_row + i * a_at_once < rows);
    }
    unsigned char* to_b = b_shared + slot * L::b_bytes + b_row * L::b_pitch + thread % b_packs * 16;
    const T* item = next_item;
    int t = next_t + b_row;
#pragma unroll
    for (int i = 0; i < depth / b_at_once; ++i, to_b += b_at_once * L::b_pitch, t += b_at_once) {
      while (t >= length) t -= length, item += s.item;
      int64_t offset = t * s.step + window_offset;
      const bool inside = static_cast<uint64_t>(offset) < static_cast<uint64_t>(s.item);
      if (s.reflect && !inside) offset = 2 * (offset < 0 ? channel : s.item - s.in + channel) - offset;
      cp_async_or_zeros(to_b, item + offset,
                        b_exists && (inside || s.reflect) && next_row + b_row + i * b_at_once < rows);
    }
    next_t += depth;
    while (next_t >= length) next_t -= length, next_item += s.item;
  };
  const auto parameters = input.column(b_exists ? channel : 0);
  const auto transform = [&](int slot) {
    if constexpr (P == Product::tf32) {
      unsigned char* at = a_shared + slot * L::a_bytes + a_row * L::a_pitch + thread % a_packs * 16;
#pragma unroll
      for (int i = 0; i < depth / a_at_once; ++i, at += a_at_once * L::a_pitch) {
        Pack<T> v = load_pack(reinterpret_cast<T*>(at));
        round_pack(v);
        store_pack(reinterpret_cast<T*>(at), v);
      }
    }
    if constexpr (P == Product::tf32 || Input::active) {
      unsigned char* at = b_shared + slot * L::b_bytes + b_row * L::b_pitch + thread % b_packs * 16;
#pragma unroll
      for (int i = 0; i < depth / b_at_once; ++i, at += b_at_once * L::b_pitch) {
        Pack<T> v = load_pack(reinterpret_cast<T*>(at));
        if constexpr (Input::active) input.apply(parameters, v);
        if constexpr (P == Product::tf32) round_pack(v);
        store_pack(reinterpret_cast<T*>(at), v);
      }
    }
  };

  // Sums for the bias of dy's columns, or of those columns of x that hold each sample once.
  const bool of_x = !Input::active && bias.of_x;
  const int64_t first_once = s.left * s.in, end_once = first_once + s.step;
  ColumnSums<T> bias_sums(bias.to != nullptr && (!of_x || (first_weight < end_once && first_weight + BN > first_once)),
                          of_x ? blockIdx.y : blockIdx.x);
  const auto add_to_bias = [&](int slot) {
    if (!bias_sums.has_turn(of_x ? gridDim.y : gridDim.x)) return;
    if (of_x) {
      const unsigned char* at = b_shared + slot * L::b_bytes + b_row * L::b_pitch + thread % b_packs * 16;
#pragma unroll 4
      for (int i = 0; i < depth / b_at_once; ++i, at += b_at_once * L::b_pitch) bias_sums.add(at);
    } else {
      const unsigned char* at = a_shared + slot * L::a_bytes + a_row * L::a_pitch + thread % a_packs * 16;
#pragma unroll 4
      for (int i = 0; i < depth / a_at_once; ++i, at += a_at_once * L::a_pitch) bias_sums.add(at);
    }
  };

  Engine sums;
  sums.clear();
  int slot = 1;  // of this iteration; the slot before it is free
  const int warp_row = warp / (BN / WN) * 64, warp_column = warp % (BN / WN) * WN;
  for (int row = (1 - stages) * depth; row < rows; row += depth) {  // the first iterations only fetch
    if (row >= 0) {
      cp_async_wait<stages - 2>();
      add_to_bias(slot);
      transform(slot);
      __syncthreads();
    }
    const int next_row = row + (stages - 1) * depth;
    if (next_row < rows) fetch(next_row, slot == 0 ? stages - 1 : slot - 1);
    cp_async_commit();
    if (row >= 0)
      sums.template multiply<Major::mn, Major::mn>(
          a_shared + slot * L::a_bytes + warp_row * static_cast<int>(sizeof(T)), {}, L::a_pitch,
          b_shared + slot * L::b_bytes + warp_column * static_cast<int>(sizeof(T)), L::b_pitch, lane,
          min(depth, rows - row), [] {});
    if (++slot == stages) slot = 0;
  }

  cp_async_wait<0>();
  __syncthreads();
  float* const result = reinterpret_cast<float*>(shared);
  if (bias.to != nullptr && of_x) {
    float* const part = bias.to + (int64_t{blockIdx.z} * gridDim.y + blockIdx.y) * s.step;
    bias_sums.template finish<BN>(result, threads, [&](int c, float sum) {
      const int64_t w = first_weight + c;
      if (w >= first_once && w < end_once) part[w - first_once] = sum;
    });
  } else if (bias.to != nullptr) {
    float* const part = bias.to + (int64_t{blockIdx.z} * gridDim.x + blockIdx.x) * s.out + first_out;
    bias_sums.template finish<BM>(result, threads, [&](int c, float sum) {
      if (first_out + c < s.out) part[c] = sum;
    });
  }
  sums.template save<Major::mn, Major::mn>(result + warp_row * L::out_stride + warp_column, L::out_stride, lane);
  __syncthreads();
  constexpr int out_packs = BN / 4, out_at_once = threads / out_packs;
  const int out_column = thread % out_packs * 4;
  const int64_t w = first_weight + out_column;
  if (w >= s.weights) return;
  float* const part = to + (s.parts > 1 ? int64_t{blockIdx.z} * s.out * s.weights : 0) + w;
  for (int r = thread / out_packs; r < BM && first_out + r < s.out; r += out_at_once) {
    Pack<float> v = load_pack(result + r * L::out_stride + out_column);
    float* const at = part + (first_out + r) * s.weights;
    if (s.parts == 1 && s.add) {
      const Pack<float> previous = load_pack(at);
#pragma unroll
      for (int i = 0; i < 4; ++i) v.v[i] += previous.v[i];
    }
    store_pack(at, v);
  }
}

template <int BM, int BN, Product P, class T, class Input>
void launch_weight_blocks(Context& ctx, const char* name, const Windows& s, const T* dy, const T* x, const Input& input,
                          float* to, const BiasSums& bias) {
  using L = WeightLayout<BM, BN, P>;
  launch(ctx,
         {.name = name,
          .grid = {blocks_for(s.weights, BN), blocks_for(s.out, BM), static_cast<unsigned>(s.parts)},
          .block = L::threads,
          .shared_bytes = L::shared_bytes},
         weight_product_kernel<BM, BN, P, Input>, s, dy, x, input, to, bias);
}
/// Launches the product in blocks of this size; s.parts must be set. `to` and `bias` as for the kernel.
template <Product P, class T, class Input>
void launch_weight_product(Context& ctx, const char* name, const Windows& s, Blocking b, const T* dy, const T* x,
                           const Input& input, float* to, const BiasSums& bias) {
  if (b.rows == 256) return launch_weight_blocks<256, 128, P>(ctx, name, s, dy, x, input, to, bias);
  if (b.rows == 128 && b.columns == 128) return launch_weight_blocks<128, 128, P>(ctx, name, s, dy, x, input, to, bias);
  if (b.rows == 128) return launch_weight_blocks<128, 64, P>(ctx, name, s, dy, x, input, to, bias);
  if (b.columns == 128) return launch_weight_blocks<64, 128, P>(ctx, name, s, dy, x, input, to, bias);
  return launch_weight_blocks<64, 64, P>(ctx, name, s, dy, x, input, to, bias);
}

}  // namespace nacre::cuda::tile
