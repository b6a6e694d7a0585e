#pragma once
// The products of the tiled convolutions: float fused multiply-adds, or tensor cores on tf32 or bf16. A warp computes
// 64 rows by 32 or 64 columns of a result from tiles in shared memory. One step covers 128 bytes of the reduced
// dimension k.
//
// GEMM notation: the left operand a is m x k, the right operand b is n x k, the result is m x n.
#include "conv/conv1d_sizes.h"
#include "runtime/device.cuh"

namespace nacre::cuda::tile {

__device__ __forceinline__ float4 load4(const unsigned char* p) { return *reinterpret_cast<const float4*>(p); }
__device__ __forceinline__ float2 load2(const unsigned char* p) { return *reinterpret_cast<const float2*>(p); }
__device__ __forceinline__ float load1(const unsigned char* p) { return *reinterpret_cast<const float*>(p); }

/// Float fused multiply-adds: 64 rows by 32 columns per warp, 8 x 8 results per thread, 8 x 4 lanes (ty, tx) = (lane /
/// 4, lane % 4). Which rows and columns a thread has depends on how the operands lie, so that it loads 16 bytes at a
/// time:
///
///   a K-major     rows ty + 8 i                  loads 4 elements of k per row
///   a MN-major    rows 4 ty + 0..3, + 32         loads 4 rows per element of k
///   b K-major     columns tx + 4 j               loads 4 elements of k per column
///   b MN-major    columns 4 tx + 0..3, + 16      loads 4 columns per element of k
///
/// With a K-major a and an MN-major b only 2 elements of k are loaded per row. Lanes of equal ty read the same a, lanes
/// of equal tx the same b. Eight rows at `pitch` begin in different banks.
struct FmaEngine {
  using T = float;
  static constexpr int depth = 32;
  float sum[8][8];

  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int i = 0; i < 8; ++i)
#pragma unroll
      for (int j = 0; j < 8; ++j) sum[i][j] = 0;
  }
  /// Where the warp's rows of a K-major tile of a begin: row_offset(r) is in bytes from the start of the tile. This
  /// engine needs rows at a fixed pitch, so the first offset is enough.
  struct Rows {
    int first;
  };
  template <class Offset>
  static __device__ __forceinline__ Rows rows(const Offset& row_offset, int) {
    return {row_offset(0)};
  }
  /// Adds one step's products. a: the start of the tile, with `rows` (K-major), or the warp's first column (MN-major).
  /// b: the warp's first row or column. Only the first `valid_depth` elements of k may be non-zero. prefetch() starts
  /// the copies of a later step and is called exactly once.
  template <Major A, Major B, class Prefetch>
  __device__ __forceinline__ void multiply(const unsigned char* a, const Rows& rows, int a_pitch,
                                           const unsigned char* b, int b_pitch, int lane, int valid_depth,
                                           Prefetch&& prefetch) {
    prefetch();
    const int ty = lane / 4, tx = lane % 4;
    if constexpr (A == Major::k) a += rows.first;
    if constexpr (A == Major::k && B == Major::k) {
      a += ty * a_pitch, b += tx * b_pitch;
#pragma unroll 1
      for (int k = 0; k < valid_depth; k += 4) {
        float4 row[8];
#pragma unroll
        for (int i = 0; i < 8; ++i) row[i] = load4(a + 8 * i * a_pitch + k * 4);
#pragma unroll
        for (int j = 0; j < 8; ++j) {
          const float4 w = load4(b + 4 * j * b_pitch + k * 4);
#pragma unroll
          for (int i = 0; i < 8; ++i) {
            sum[i][j] += row[i].x * w.x;
            sum[i][j] += row[i].y * w.y;
            sum[i][j] += row[i].z * w.z;
            sum[i][j] += row[i].w * w.w;
          }
        }
      }
    } else if constexpr (A == Major::k) {
      a += ty * a_pitch, b += tx * 16;
      // Pairs: with four elements of k the rows would not fit into registers.
#pragma unroll 2
      for (int k = 0; k < valid_depth; k += 2) {
        float2 row[8];
#pragma unroll
        for (int i = 0; i < 8; ++i) row[i] = load2(a + 8 * i * a_pitch + k * 4);
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          const float4 low = load4(b + (k + e) * b_pitch), high = load4(b + (k + e) * b_pitch + 64);
#pragma unroll
          for (int i = 0; i < 8; ++i) add(sum[i], e == 0 ? row[i].x : row[i].y, low, high);
        }
      }
    } else {
      static_assert(B == Major::mn);
#pragma unroll 2
      for (int k = 0; k < valid_depth; ++k) {
        const float4 top = load4(a + k * a_pitch + ty * 16), bottom = load4(a + k * a_pitch + 128 + ty * 16);
        const float4 low = load4(b + k * b_pitch + tx * 16), high = load4(b + k * b_pitch + 64 + tx * 16);
        add(sum[0], top.x, low, high), add(sum[1], top.y, low, high);
        add(sum[2], top.z, low, high), add(sum[3], top.w, low, high);
        add(sum[4], bottom.x, low, high), add(sum[5], bottom.y, low, high);
        add(sum[6], bottom.z, low, high), add(sum[7], bottom.w, low, high);
      }
    }
  }
  /// Writes the warp's sums to shared memory, `stride` floats from row to row.
  template <Major A, Major B>
  __device__ __forceinline__ void save(float* to, int stride, int lane) const {
    const int ty = lane / 4, tx = lane % 4;
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const int row = A == Major::k ? ty + 8 * i : i / 4 * 32 + ty * 4 + i % 4;
#pragma unroll
      for (int j = 0; j < 8; ++j) {
        const int column = B == Major::k ? tx + 4 * j : j / 4 * 16 + tx * 4 + j % 4;
        to[row * stride + column] = sum[i][j];
      }
    }
  }
  static __device__ __forceinline__ void add(float (&to)[8], float x, const float4& low, const float4& high) {
    to[0] += x * low.x, to[1] += x * low.y, to[2] += x * low.z, to[3] += x * low.w;
    to[4] += x * high.x, to[5] += x * high.y, to[6] += x * high.z, to[7] += x * high.w;
  }
};

/// Tensor cores: a warp computes 64 x N as 4 by N / 8 instructions of 16 x 8. An instruction covers 32 bytes of k: 8
/// elements of tf32 or 16 of bf16. For each 32 bytes of k a warp reads (64 + N) * 32 bytes of shared memory and makes
/// 64 N products of that depth. So 32 columns read 1.5 times the bytes per product of 64 columns, which is more than
/// shared memory delivers at the full rate of an H200's tensor cores; 48 columns read 1.17 times, which is not.
template <class T_, int N>
struct MmaEngine {
  using T = T_;
  static constexpr int n_tiles = N / 8;
  static constexpr int depth = step_bytes / static_cast<int>(sizeof(T));
  static constexpr bool tf32 = sizeof(T) == 4;
  float sum[4][n_tiles][4];

  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int i = 0; i < 4; ++i)
#pragma unroll
      for (int j = 0; j < n_tiles; ++j)
#pragma unroll
        for (int e = 0; e < 4; ++e) sum[i][j][e] = 0;
  }
  /// With 64 columns each lane holds the offsets of the four rows that it reads, so rows may lie anywhere. With
  /// fewer, rows must lie at a fixed pitch: at 32 columns registers are short (two blocks per multiprocessor).
  static constexpr int row_offsets = N == 64 ? 4 : 1;
  struct Rows {
    int offset[row_offsets];
  };
  template <class Offset>
  static __device__ __forceinline__ Rows rows(const Offset& row_offset, int lane) {
    Rows r;
#pragma unroll
    for (int i = 0; i < row_offsets; ++i) r.offset[i] = row_offset(16 * i + lane % 16) + lane / 16 * 16;
    return r;
  }
  /// As FmaEngine::multiply, four quarters of 32 bytes of k each, but always the whole depth: what lies behind the last
  /// channel must be zeros in both tiles. Fragments are those of the PTX manual. K-major operands come by ldmatrix,
  /// MN-major bf16 by its transposing form. That form moves 16-bit elements, so MN-major tf32 comes by single loads:
  /// lane l takes element l % 4 of k (and l % 4 + 4) of row l / 4 (and l / 4 + 8). prefetch() runs after the first
  /// quarter's products were issued and the second quarter's operands were requested: its instructions fill the time
  /// that the tensor cores need.
  template <Major A, Major B, class Prefetch>
  __device__ __forceinline__ void multiply(const unsigned char* a, const Rows& rows, int a_pitch,
                                           const unsigned char* b, int b_pitch, int lane, int, Prefetch&& prefetch) {
#pragma unroll
    for (int step = 0; step < 4; ++step) {
      uint32_t left[4][4], right[n_tiles][2];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        if constexpr (A == Major::k) {
          const int offset = row_offsets == 4 ? rows.offset[i % row_offsets] : rows.offset[0] + 16 * i * a_pitch;
          ldmatrix_x4(left[i], a + offset + step * 32);
        } else if constexpr (tf32) {
          const unsigned char* const p = a + (step * 8 + lane % 4) * a_pitch + (16 * i + lane / 4) * 4;
          left[i][0] = __float_as_uint(load1(p)), left[i][1] = __float_as_uint(load1(p + 32));
          left[i][2] = __float_as_uint(load1(p + 4 * a_pitch)),
          left[i][3] = __float_as_uint(load1(p + 4 * a_pitch + 32));
        } else {
          ldmatrix_x4_trans(left[i],
                            a + (step * 16 + lane % 8 + lane / 16 * 8) * a_pitch + (16 * i + lane / 8 % 2 * 8) * 2);
        }
      }
#pragma unroll
      for (int j = 0; j < n_tiles; j += 2) {
        // Two tiles of 8 columns per load: the first two registers are those of tile j.
        uint32_t pair[4];
        if constexpr (B == Major::k) {
          ldmatrix_x4(pair, b + (8 * j + lane / 16 * 8 + lane % 8) * b_pitch + step * 32 + lane / 8 % 2 * 16);
        } else if constexpr (tf32) {
          const unsigned char* const p = b + (step * 8 + lane % 4) * b_pitch + (8 * j + lane / 4) * 4;
          pair[0] = __float_as_uint(load1(p)), pair[1] = __float_as_uint(load1(p + 4 * b_pitch));
          pair[2] = __float_as_uint(load1(p + 32)), pair[3] = __float_as_uint(load1(p + 4 * b_pitch + 32));
        } else {
          ldmatrix_x4_trans(pair, b + (step * 16 + lane % 16) * b_pitch + (8 * j + lane / 16 * 8) * 2);
        }
        right[j][0] = pair[0], right[j][1] = pair[1], right[j + 1][0] = pair[2], right[j + 1][1] = pair[3];
      }
      if (step == 1) prefetch();
#pragma unroll
      for (int i = 0; i < 4; ++i)
#pragma unroll
        for (int j = 0; j < n_tiles; ++j) {
          if constexpr (tf32)
            mma_tf32_16x8x8(sum[i][j], left[i], right[j]);
          else
            mma_bf16_16x8x16(sum[i][j], left[i], right[j]);
        }
    }
  }
  /// Writes the warp's sums as FmaEngine::save. A lane has two neighbouring columns of the rows lane / 4 and lane / 4 +
  /// 8 of each 16 x 8 tile.
  template <Major, Major>
  __device__ __forceinline__ void save(float* to, int stride, int lane) const {
#pragma unroll
    for (int i = 0; i < 4; ++i)
#pragma unroll
      for (int j = 0; j < n_tiles; ++j)
#pragma unroll
        for (int e = 0; e < 4; e += 2)
          *reinterpret_cast<float2*>(to + (16 * i + lane / 4 + e / 2 * 8) * stride + 8 * j + lane % 4 * 2) =
              make_float2(sum[i][j][e], sum[i][j][e + 1]);
  }
};

template <Product, int N = 32>
struct EngineOf {
  static_assert(N == 32);
  using type = FmaEngine;
};
template <int N>
struct EngineOf<Product::tf32, N> {
  using type = MmaEngine<float, N>;
};
template <int N>
struct EngineOf<Product::bf16, N> {
  using type = MmaEngine<bf16, N>;
};

/// A string literal as a template argument.
template <size_t size>
struct Literal {
  char text[size];
  consteval Literal(const char (&from)[size]) {
    for (size_t i = 0; i < size; ++i) text[i] = from[i];
  }
};
template <Literal kernel, Product P>
struct ProductName {
  static constexpr size_t length = sizeof(kernel.text) - 1;
  char text[length + sizeof("_bf16")] = {};
  consteval ProductName() {
    const char* const suffix = P == Product::fma ? "_fma" : P == Product::tf32 ? "_tf32" : "_bf16";
    for (size_t i = 0; i < length; ++i) text[i] = kernel.text[i];
    for (size_t i = 0; suffix[i] != 0; ++i) text[length + i] = suffix[i];
  }
};
template <Literal kernel, Product P>
inline constexpr ProductName<kernel, P> product_name_of{};
/// A kernel's name with its product: product_name<"conv1d_forward", Product::fma> is "conv1d_forward_fma".
template <Literal kernel, Product P>
inline constexpr const char* product_name = product_name_of<kernel, P>.text;
/// Calls f<P>() with the product that multiplies tensors of T in this context.
template <class T, class F>
void with_product(const Context& ctx, F&& f) {
  if constexpr (sizeof(T) == 2)
    f.template operator()<Product::bf16>();
  else if (ctx.precision() == Precision::tf32)
    f.template operator()<Product::tf32>();
  else
    f.template operator()<Product::fma>();
}

/// Rounds a pack to tf32, the precision of the tensor cores' inputs.
__device__ __forceinline__ void round_pack(Pack<float>& p) {
#pragma unroll
  for (int i = 0; i < 4; ++i) p.v[i] = __uint_as_float(to_tf32(p.v[i]));
}

}  // namespace nacre::cuda::tile
