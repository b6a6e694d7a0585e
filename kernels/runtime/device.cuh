#pragma once
// Included by every .cu file: CUDA's device functions (nvcc's or the emulator's), 16-byte packs, warp and block sums in
// a fixed order, and functions that wrap one PTX instruction each. The rest of kernels/ has no PTX but for one
// instruction in vector_math.h.
#include <algorithm>

#include "runtime/runtime.h"

#if defined(NACRE_EMULATED)
#include "runtime/emulated/device.h"
#else
#include <cuda_runtime.h>

/// Static shared memory: `count` elements for the block. Its content is undefined (NaN when emulated).
#define NACRE_SHARED(T, name, count)                                        \
  __shared__ __align__(16) unsigned char name##_bytes[sizeof(T) * (count)]; \
  T* const name = reinterpret_cast<T*>(name##_bytes)
/// The dynamic shared memory that the launch requested.
#define NACRE_DYNAMIC_SHARED(T, name)                                   \
  extern __shared__ __align__(16) unsigned char nacre_dynamic_shared[]; \
  T* const name = reinterpret_cast<T*>(nacre_dynamic_shared)

namespace nacre::cuda {

/// Starts an asynchronous copy of 4, 8 or 16 bytes to shared memory. Bytes beyond bytes_from_global are set to zero and
/// not read.
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
/// Starts an asynchronous copy of 16 bytes, or writes 16 zeros if !exists; then `global` is not read and may be outside
/// of any buffer. Invariant: `global` is a multiple of 16 in both cases, because PTX requires alignment even of a copy
/// of size 0. So an offset that stands for zeros is zeros_here, not -1. The size is selected by a predicate inside the
/// PTX, which becomes a predicate in SASS; a size in a register costs six instructions.
__device__ __forceinline__ void cp_async_or_zeros(void* shared, const void* global, bool exists) {
  const unsigned to = static_cast<unsigned>(__cvta_generic_to_shared(shared));
  asm volatile(
      "{\n.reg .pred p;\n.reg .b32 size;\nsetp.ne.b32 p, %2, 0;\nselp.b32 size, 16, 0, p;\n"
      "cp.async.cg.shared.global [%0], [%1], 16, size;\n}" ::"r"(to),
      "l"(global), "r"(static_cast<int>(exists))
      : "memory");
}
/// Waits until all but the newest `groups_left` groups of this thread's copies have arrived. Other threads see the data
/// after a barrier.
template <int groups_left>
__device__ __forceinline__ void cp_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(groups_left) : "memory");
}

/// d += a b for one warp, with a 16 x 16 and b 16 x 8 in bf16. Fragments as in the PTX manual.
__device__ __forceinline__ void mma_bf16_16x8x16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, "
      "%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
/// The same with a 16 x 8 and b 8 x 8 in tf32.
__device__ __forceinline__ void mma_tf32_16x8x8(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, "
      "%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
/// d = c + a b, c unchanged: saves the moves that would initialise d before the first product.
__device__ __forceinline__ void mma_tf32_16x8x8(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                                                const float (&c)[4]) {
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%10, %11, "
      "%12, %13};"
      : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]), "f"(c[0]), "f"(c[1]), "f"(c[2]), "f"(c[3]));
}
/// Rounds to tf32: 10 bits of mantissa, to nearest, ties away from zero.
__device__ __forceinline__ uint32_t to_tf32(float x) {
  uint32_t r;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(r) : "f"(x));
  return r;
}
/// Loads four 8 x 8 matrices of 16-bit elements. Lane i passes the address of row i % 8 of matrix i / 8, 16-byte
/// aligned.
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

/// The offset in bytes that stands for "no source" in tables for cp_async_or_zeros: negative, and a multiple of 16.
inline constexpr int64_t zeros_here = -16;

// ---- 16-byte packs

/// The elements of 16 bytes of T, as floats.
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
  const uint4 raw =
      *reinterpret_cast<const uint4*>(p);  // copied first: through a reference nvcc would load the members in pairs
  unpack(raw, out);
  return out;
}
template <class T>
__device__ __forceinline__ void store_pack(T* p, const Pack<T>& v) {
  *reinterpret_cast<uint4*>(p) = packed(v);
}
/// Loads the first n elements one by one, for addresses that are not aligned. The rest is zero.
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
/// P elements, one or a pack.
template <int P, class T>
__device__ __forceinline__ Pack<T> load_elements(const T* p) {
  if constexpr (P == 1)
    return load_some(p, 1);
  else
    return load_pack(p);
}
template <int P, class T>
__device__ __forceinline__ void store_elements(T* p, const Pack<T>& v) {
  if constexpr (P == 1)
    store_some(p, v, 1);
  else
    store_pack(p, v);
}
/// Whether p allows 16-byte accesses. Called on the host to choose a kernel.
template <class T>
bool aligned16(const T* p) {
  return reinterpret_cast<uintptr_t>(p) % 16 == 0;
}

// ---- sums in a fixed order

/// Sum over the warp, the same bits in every lane. All 32 lanes take part.
template <class T>
__device__ __forceinline__ T warp_sum(T v) {
#pragma unroll
  for (int lanes = 16; lanes > 0; lanes /= 2) v += __shfl_xor_sync(full_warp, v, lanes);
  return v;
}
/// Sum over a block of `threads` threads (whole warps, one dimension), valid in every thread. `buffer`: shared memory
/// for one T per warp. A barrier before it is written protects earlier uses; a caller that reuses it needs one
/// afterwards.
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

/// The first element of this thread in a grid-stride loop, and the stride.
__device__ __forceinline__ int64_t grid_thread() { return int64_t{blockIdx.x} * blockDim.x + threadIdx.x; }
__device__ __forceinline__ int64_t grid_threads() { return int64_t{gridDim.x} * blockDim.x; }

}  // namespace nacre::cuda
