#pragma once
// What every .cu file begins with: device names of whichever compiler reads it, 16-byte packs, warp and block sums in a
// fixed order, and PTX behind functions of one instruction each. Nothing else in kernels/ contains PTX.
#include <algorithm>

#include "runtime/runtime.h"

#if defined(NACRE_EMULATED)
#include "runtime/emulated/device.h"
#else
#include <cuda_runtime.h>

/// `count` elements of shared memory, the same for the whole block; content undefined (NaN when emulated).
#define NACRE_SHARED(T, name, count)                                        \
  __shared__ __align__(16) unsigned char name##_bytes[sizeof(T) * (count)]; \
  T* const name = reinterpret_cast<T*>(name##_bytes)
/// The shared memory that the launch asked for.
#define NACRE_DYNAMIC_SHARED(T, name)                                   \
  extern __shared__ __align__(16) unsigned char nacre_dynamic_shared[]; \
  T* const name = reinterpret_cast<T*>(nacre_dynamic_shared)

namespace nacre::cuda {

/// Copies 4, 8 or 16 bytes to shared memory in the background; what lies beyond bytes_from_global becomes zero.
template <int bytes>
__device__ __forceinline__ void cp_async(void* shared, const void* global, int bytes_from_global) {
  static_assert(bytes == 4 || bytes == 8 || bytes == 16);
  const unsigned to = static_cast<unsigned>(__cvta_generic_to_shared(shared));
  if constexpr (bytes == 16)
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(global), "r"(bytes_from_global)
                 : "memory");
  else
    asm volatile("cp.async.ca.shared.global [%0], [%1], %3, %2;" ::"r"(to), "l"(global), "r"(bytes_from_global),
                 "n"(bytes)
                 : "memory");
}
__device__ __forceinline__ void cp_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
/// 16 bytes, or zeros where there is nothing to copy; then nothing is read at `global`. Invariant: `global` is a multiple
/// of 16 in either case, as PTX asks of the address even of a copy without a source; it may then lie outside of any
/// buffer. Offsets that mean "zeros" are therefore zeros_here, not -1. A size that is chosen by a predicate in PTX is a
/// predicate in SASS; one that arrives in a register costs six instructions.
__device__ __forceinline__ void cp_async_or_zeros(void* shared, const void* global, bool there) {
  const unsigned to = static_cast<unsigned>(__cvta_generic_to_shared(shared));
  asm volatile(
      "{\n.reg .pred p;\n.reg .b32 size;\nsetp.ne.b32 p, %2, 0;\nselp.b32 size, 16, 0, p;\n"
      "cp.async.cg.shared.global [%0], [%1], 16, size;\n}" ::"r"(to),
      "l"(global), "r"(static_cast<int>(there))
      : "memory");
}
/// All but the newest `groups_left` groups of this thread have arrived; others see them after a barrier.
template <int groups_left>
__device__ __forceinline__ void cp_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(groups_left) : "memory");
}

/// d += a b for one warp, a 16 x 16 and b 16 x 8 of bf16; fragments as in the PTX manual.
__device__ __forceinline__ void mma_bf16_16x8x16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, "
      "%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
/// The same for 16 x 8 and 8 x 8 of tf32.
__device__ __forceinline__ void mma_tf32_16x8x8(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, "
      "%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
/// d = c + a b, where c stays: no moves to set the sums before the first product.
__device__ __forceinline__ void mma_tf32_16x8x8(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                                                const float (&c)[4]) {
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%10, %11, "
      "%12, %13};"
      : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]), "f"(c[0]), "f"(c[1]), "f"(c[2]), "f"(c[3]));
}
/// To nearest, ties away from zero, 10 bits of mantissa.
__device__ __forceinline__ uint32_t to_tf32(float x) {
  uint32_t r;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(r) : "f"(x));
  return r;
}
/// Four 8 x 8 matrices of 16-bit elements; lane i gives row i % 8 of matrix i / 8, 16-byte aligned.
__device__ __forceinline__ void ldmatrix_x4(uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(static_cast<unsigned>(__cvta_generic_to_shared(row)))
               : "memory");
}
__device__ __forceinline__ void ldmatrix_x4_trans(uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(static_cast<unsigned>(__cvta_generic_to_shared(row)))
               : "memory");
}

}  // namespace nacre::cuda
#endif

namespace nacre::cuda {

inline constexpr uint32_t full_warp = 0xffffffffu;

/// An offset in bytes for cp_async_or_zeros where there is nothing to copy: below zero, and as aligned as the others.
inline constexpr int64_t zeros_here = -16;

template <class T>
__host__ __device__ constexpr T ceil_div(T a, T b) {
  return (a + b - 1) / b;
}

// ---- 16-byte packs
// ------------------------------------------------------------------------------------------------------

/// Elements of T in 16 bytes: 4 floats, 8 bf16.
template <class T>
inline constexpr int pack_size = 16 / static_cast<int>(sizeof(T));

/// Up to 16 bytes of T as floats.
template <class T>
struct Pack {
  float v[pack_size<T>];
};

__device__ __forceinline__ void unpack(const uint4& raw, Pack<float>& p) {
  p.v[0] = __uint_as_float(raw.x), p.v[1] = __uint_as_float(raw.y);
  p.v[2] = __uint_as_float(raw.z), p.v[3] = __uint_as_float(raw.w);
}
__device__ __forceinline__ void unpack(const uint4& raw, Pack<bf16>& p) {
  const unsigned words[4] = {raw.x, raw.y, raw.z, raw.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    p.v[2 * i] = __uint_as_float(words[i] << 16);
    p.v[2 * i + 1] = __uint_as_float(words[i] & 0xffff0000u);
  }
}
/// Two floats, each rounded to nearest even, in one word.
__device__ __forceinline__ unsigned pack_bf16(float low, float high) {
#if defined(__CUDA_ARCH__)
  unsigned word;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
  return word;
#else
  return static_cast<unsigned>(to_bf16(low).bits) | static_cast<unsigned>(to_bf16(high).bits) << 16;
#endif
}
__device__ __forceinline__ uint4 packed(const Pack<float>& p) {
  return make_uint4(__float_as_uint(p.v[0]), __float_as_uint(p.v[1]), __float_as_uint(p.v[2]), __float_as_uint(p.v[3]));
}
__device__ __forceinline__ uint4 packed(const Pack<bf16>& p) {
  return make_uint4(pack_bf16(p.v[0], p.v[1]), pack_bf16(p.v[2], p.v[3]), pack_bf16(p.v[4], p.v[5]),
                    pack_bf16(p.v[6], p.v[7]));
}
/// One 16-byte access; p must be 16-byte aligned.
template <class T>
__device__ __forceinline__ Pack<T> load_pack(const T* p) {
  Pack<T> out;
  const uint4 raw = *reinterpret_cast<const uint4*>(p);  // a value: nvcc loads members of a reference by pairs
  unpack(raw, out);
  return out;
}
template <class T>
__device__ __forceinline__ void store_pack(T* p, const Pack<T>& v) {
  *reinterpret_cast<uint4*>(p) = packed(v);
}
/// The first n elements, one by one; the rest is zero.
template <class T>
__device__ __forceinline__ Pack<T> load_some(const T* p, int n) {
  Pack<T> out;
#pragma unroll
  for (int i = 0; i < pack_size<T>; ++i) out.v[i] = i < n ? to_float(p[i]) : 0.0f;
  return out;
}
template <class T>
__device__ __forceinline__ void store_some(T* p, const Pack<T>& v, int n) {
#pragma unroll
  for (int i = 0; i < pack_size<T>; ++i)
    if (i < n) p[i] = store<T>(v.v[i]);
}
/// Whether 16-byte accesses may begin here; on the host, to choose a kernel.
template <class T>
bool aligned16(const T* p) {
  return reinterpret_cast<uintptr_t>(p) % 16 == 0;
}

// ---- sums in a fixed order
// ------------------------------------------------------------------------------------------------

/// Sum over the warp, the same bits in every lane. All 32 lanes take part.
template <class T>
__device__ __forceinline__ T warp_sum(T v) {
#pragma unroll
  for (int lanes = 16; lanes > 0; lanes /= 2) v += __shfl_xor_sync(full_warp, v, lanes);
  return v;
}
/// Sum over a block of `threads` threads (whole warps, one dimension), valid in every thread. `buffer`: one T per warp
/// of shared memory; the block meets before it is written and after it was read.
template <int threads, class T>
__device__ __forceinline__ T block_sum(T v, T* buffer) {
  constexpr int warps = threads / 32;
  v = warp_sum(v);
  if constexpr (warps == 1) return v;
  __syncthreads();
  if (threadIdx.x % 32 == 0) buffer[threadIdx.x / 32] = v;
  __syncthreads();
  T total = buffer[0];
#pragma unroll
  for (int w = 1; w < warps; ++w) total += buffer[w];
  return total;
}

// ---- grids
// ----------------------------------------------------------------------------------------------------------------

/// Bytes that every device from compute capability 8.0 on has. What needs no more, static and dynamic together, runs on
/// all of them; what may need more is chosen by DeviceLimits::shared_per_block.
inline constexpr size_t least_shared_per_block = 99 << 10;

/// As many blocks as give two to every multiprocessor: one computes while the other waits for memory. Work whose blocks
/// get cheaper the more of it they take is cut into no fewer.
inline int64_t two_blocks_each(const DeviceLimits& d) { return int64_t{2} * d.multiprocessors; }
/// How many blocks with so much shared memory (static and dynamic) a multiprocessor holds at once, 1 to `most`: as many
/// as the kernel's launch bounds leave registers for.
inline int blocks_that_share(const DeviceLimits& d, size_t shared_bytes, int most) {
  const size_t reserved = 1 << 10;  // by the driver, per block
  const auto fit = static_cast<int>(d.shared_per_multiprocessor / (shared_bytes + reserved));
  return std::clamp(fit, 1, most);
}

/// Blocks for n pieces of work of `each`, at most `most` (kernels then take several turns).
inline unsigned blocks_for(int64_t n, int64_t each, int64_t most = 0x7fffffff) {
  const int64_t blocks = (n + each - 1) / each;
  return static_cast<unsigned>(blocks < most ? blocks : most);
}
/// The first of this thread's elements in a grid-stride loop, and the step.
__device__ __forceinline__ int64_t grid_thread() { return int64_t{blockIdx.x} * blockDim.x + threadIdx.x; }
__device__ __forceinline__ int64_t grid_threads() { return int64_t{gridDim.x} * blockDim.x; }

}  // namespace nacre::cuda
