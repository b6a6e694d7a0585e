#pragma once
// What multiplies in the tiled convolutions: float fused multiply-adds, or the tensor cores on tf32 or bf16. A warp makes
// 64 rows by 32 or 64 columns of a result from tiles in shared memory, one step of 128 bytes of the reduced dimension at
// a time.
#include "runtime/device.cuh"

namespace nacre::cuda::tile {

inline constexpr int step_bytes = 128;         // of the reduced dimension
inline constexpr int stages = 3;               // of weights in flight or in use
inline constexpr int pitch = step_bytes + 16;  // of a row of them: eight rows lie in different banks
inline constexpr int packs = step_bytes / 16;

enum class Product : uint8_t { fma, tf32, bf16 };
/// How an operand's tile lies in shared memory: rows of the reduced dimension (as weights do for the forward, and x),
/// or with the reduced dimension going down.
enum class Lies : uint8_t { along, across };

__device__ __forceinline__ float4 load4(const unsigned char* p) { return *reinterpret_cast<const float4*>(p); }
__device__ __forceinline__ float2 load2(const unsigned char* p) { return *reinterpret_cast<const float2*>(p); }
__device__ __forceinline__ float word(const unsigned char* p) { return *reinterpret_cast<const float*>(p); }

/// Float fused multiply-adds: 8 x 8 per thread, lanes 8 down and 4 across.
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
  /// Where the warp's rows of a tile begin that lies along: at(r) bytes behind the tile. Here they lie one below the other.
  struct Rows {
    int first;
  };
  template <class At>
  static __device__ __forceinline__ Rows rows(const At& at, int) {
    return {at(0)};
  }
  /// a: the tile and its rows (along), or the warp's first column (across); b: the warp's first row or column. The first
  /// `here` of the depth are not zero. meanwhile() is what else the thread has to do, and is called once.
  template <Lies A, Lies B, class Meanwhile>
  __device__ __forceinline__ void multiply(const unsigned char* a, const Rows& rows, int a_pitch,
                                           const unsigned char* b, int b_pitch, int lane, int here,
                                           Meanwhile&& meanwhile) {
    meanwhile();
    const int ty = lane / 4, tx = lane % 4;
    if constexpr (A == Lies::along) a += rows.first;
    if constexpr (A == Lies::along && B == Lies::along) {
      a += ty * a_pitch, b += tx * b_pitch;
#pragma unroll 1
      for (int k = 0; k < here; k += 4) {
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
    } else if constexpr (A == Lies::along) {
      a += ty * a_pitch, b += tx * 16;
#pragma unroll 2
      for (int k = 0; k < here; k += 2) {  // pairs: four rows more would not fit the registers
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
      static_assert(B == Lies::across);
#pragma unroll 2
      for (int k = 0; k < here; ++k) {
        const float4 top = load4(a + k * a_pitch + ty * 16), bottom = load4(a + k * a_pitch + 128 + ty * 16);
        const float4 low = load4(b + k * b_pitch + tx * 16), high = load4(b + k * b_pitch + 64 + tx * 16);
        add(sum[0], top.x, low, high), add(sum[1], top.y, low, high);
        add(sum[2], top.z, low, high), add(sum[3], top.w, low, high);
        add(sum[4], bottom.x, low, high), add(sum[5], bottom.y, low, high);
        add(sum[6], bottom.z, low, high), add(sum[7], bottom.w, low, high);
      }
    }
  }
  /// The warp's sums to shared memory, as rows of `stride` floats.
  template <Lies A, Lies B>
  __device__ __forceinline__ void save(float* to, int stride, int lane) const {
    const int ty = lane / 4, tx = lane % 4;
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const int row = A == Lies::along ? ty + 8 * i : i / 4 * 32 + ty * 4 + i % 4;
#pragma unroll
      for (int j = 0; j < 8; ++j) {
        const int column = B == Lies::along ? tx + 4 * j : j / 4 * 16 + tx * 4 + j % 4;
        to[row * stride + column] = sum[i][j];
      }
    }
  }
  static __device__ __forceinline__ void add(float (&to)[8], float x, const float4& low, const float4& high) {
    to[0] += x * low.x, to[1] += x * low.y, to[2] += x * low.z, to[3] += x * low.w;
    to[4] += x * high.x, to[5] += x * high.y, to[6] += x * high.z, to[7] += x * high.w;
  }
};

/// Tensor cores: products of 16 x 8, four down and N / 8 across. A step of 32 bytes is one instruction's depth, 8 of
/// tf32 or 16 of bf16. Per such step a warp reads (64 + N) 32 bytes of shared memory for 64 N products of that depth:
/// 32 columns take 1.5 times the bytes of 64, and more than an H200's tensor cores leave time for at full rate.
template <class T_, int N>
struct MmaEngine {
  using T = T_;
  static constexpr int across = N / 8;
  static constexpr int depth = step_bytes / static_cast<int>(sizeof(T));
  static constexpr bool tf32 = sizeof(T) == 4;
  float sum[4][across][4];

  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int i = 0; i < 4; ++i)
#pragma unroll
      for (int j = 0; j < across; ++j)
#pragma unroll
        for (int e = 0; e < 4; ++e) sum[i][j][e] = 0;
  }
  /// Of 64 columns each lane knows where the four rows begin that it reads, so that they may lie anywhere. Of 32, where
  /// registers are short (two blocks per multiprocessor), they lie one below the other.
  static constexpr int places = N == 64 ? 4 : 1;
  struct Rows {
    int at[places];
  };
  template <class At>
  static __device__ __forceinline__ Rows rows(const At& at, int lane) {
    Rows r;
#pragma unroll
    for (int i = 0; i < places; ++i) r.at[i] = at(16 * i + lane % 16) + lane / 16 * 16;
    return r;
  }
  /// meanwhile() comes between the first products and the next, whose operands are on their way: nothing waits for it.
  template <Lies A, Lies B, class Meanwhile>
  __device__ __forceinline__ void multiply(const unsigned char* a, const Rows& rows, int a_pitch,
                                           const unsigned char* b, int b_pitch, int lane, int, Meanwhile&& meanwhile) {
#pragma unroll
    for (int step = 0; step < 4; ++step) {
      uint32_t left[4][4], right[across][2];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        if constexpr (A == Lies::along) {
          const int at = places == 4 ? rows.at[i % places] : rows.at[0] + 16 * i * a_pitch;
          ldmatrix_x4(left[i], a + at + step * 32);
        } else if constexpr (tf32) {
          const unsigned char* const p = a + (step * 8 + lane % 4) * a_pitch + (16 * i + lane / 4) * 4;
          left[i][0] = __float_as_uint(word(p)), left[i][1] = __float_as_uint(word(p + 32));
          left[i][2] = __float_as_uint(word(p + 4 * a_pitch)), left[i][3] = __float_as_uint(word(p + 4 * a_pitch + 32));
        } else {
          ldmatrix_x4_trans(left[i],
                            a + (step * 16 + lane % 8 + lane / 16 * 8) * a_pitch + (16 * i + lane / 8 % 2 * 8) * 2);
        }
      }
#pragma unroll
      for (int j = 0; j < across; j += 2) {
        uint32_t two[4];
        if constexpr (B == Lies::along) {
          ldmatrix_x4(two, b + (8 * j + lane / 16 * 8 + lane % 8) * b_pitch + step * 32 + lane / 8 % 2 * 16);
        } else if constexpr (tf32) {
          const unsigned char* const p = b + (step * 8 + lane % 4) * b_pitch + (8 * j + lane / 4) * 4;
          two[0] = __float_as_uint(word(p)), two[1] = __float_as_uint(word(p + 4 * b_pitch));
          two[2] = __float_as_uint(word(p + 32)), two[3] = __float_as_uint(word(p + 4 * b_pitch + 32));
        } else {
          ldmatrix_x4_trans(two, b + (step * 16 + lane % 16) * b_pitch + (8 * j + lane / 16 * 8) * 2);
        }
        right[j][0] = two[0], right[j][1] = two[1], right[j + 1][0] = two[2], right[j + 1][1] = two[3];
      }
      if (step == 1) meanwhile();
#pragma unroll
      for (int i = 0; i < 4; ++i)
#pragma unroll
        for (int j = 0; j < across; ++j) {
          if constexpr (tf32)
            mma_tf32_16x8x8(sum[i][j], left[i], right[j]);
          else
            mma_bf16_16x8x16(sum[i][j], left[i], right[j]);
        }
    }
  }
  template <Lies, Lies>
  __device__ __forceinline__ void save(float* to, int stride, int lane) const {
#pragma unroll
    for (int i = 0; i < 4; ++i)
#pragma unroll
      for (int j = 0; j < across; ++j)
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
/// Columns per warp: as many as there are registers for, if enough warps are left.
constexpr int warp_columns(Product p, int rows, int columns) {
  return p != Product::fma && rows >= 128 && columns % 128 == 0 ? 64 : 32;
}
constexpr int block_threads(Product p, int rows, int columns) {
  return rows / 64 * (columns / warp_columns(p, rows, columns)) * 32;
}
/// Blocks that should fit a multiprocessor's shared memory and, at 128 to 250 registers a thread, its registers.
constexpr int blocks_at_once(Product p, int rows, int columns) {
  const int threads = block_threads(p, rows, columns);
  if (warp_columns(p, rows, columns) == 64) return threads > 128 ? 1 : 2;
  return threads > 256 ? 1 : (threads > 128 ? 2 : 3);
}

/// Rounds a pack that has arrived to what the tensor core takes.
__device__ __forceinline__ void round_pack(Pack<float>& p) {
#pragma unroll
  for (int i = 0; i < 4; ++i) p.v[i] = __uint_as_float(to_tf32(p.v[i]));
}

}  // namespace nacre::cuda::tile
