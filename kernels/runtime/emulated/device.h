#pragma once
// CUDA's device functions for the emulated build: the subset that kernels/ uses. Uses that are undefined on a device
// are Faults.
//
// Kernels are plain C++ functions here: the qualifiers below are empty, and threadIdx and its like read the running
// thread and block (scheduler.h). C++ has no storage class for what the threads of a block share, so NACRE_SHARED and
// NACRE_DYNAMIC_SHARED ask the scheduler for these arrays. Arithmetic is the host's: fast functions such as __expf have
// the accuracy of the standard library's, and no operation is fused unless it is written as such (-ffp-contract=off).
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "runtime/emulated/scheduler.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __grid_constant__
#define __restrict__ __restrict

#define threadIdx (::nacre::emulation::self->index)
#define blockIdx (::nacre::emulation::block.index)
#define blockDim (::nacre::emulation::block.size)
#define gridDim (::nacre::emulation::block.grid)

#define __trap() ::nacre::emulation::trap()
#define __syncthreads() ::nacre::emulation::barrier(__FILE__, __LINE__)

#define NACRE_SHARED(T, name, count) \
  T* const name = static_cast<T*>(   \
      ::nacre::emulation::shared_array(__FILE__, __LINE__, sizeof(T) * (count), alignof(T) < 16 ? 16 : alignof(T)))
#define NACRE_DYNAMIC_SHARED(T, name) T* const name = static_cast<T*>(::nacre::emulation::dynamic_shared())

namespace nacre::emulation {

/// The place in the source that called a warp operation, found through default arguments instead of a macro.
struct CallSite {
  const char* file;
  int line;
  CallSite(const char* f = __builtin_FILE(), int l = __builtin_LINE()) : file(f), line(l) {}
};

/// Arguments of a warp operation lie on the stacks of the lanes. The last lane to arrive reads all of them and writes
/// the results, before any other lane goes on.
template <class T>
struct Exchange {
  T value;
  unsigned source_lane;
  T result;
};
/// Each lane reads the value of the lane that it names. On a device, that of a lane outside of the mask is undefined.
template <class T>
T exchange(const char* operation, uint32_t mask, T value, unsigned source_lane, CallSite p) {
  static_assert(std::is_trivially_copyable_v<T>);
  Exchange<T> argument{value, source_lane, value};
  warp_operation(
      operation, mask, &argument,
      [](void* const(&arguments)[32], uint32_t lanes) {
        for (unsigned i = 0; i < 32; ++i) {
          if ((lanes >> i & 1) == 0) continue;
          auto* e = static_cast<Exchange<T>*>(arguments[i]);
          if ((lanes >> e->source_lane & 1) == 0) fail("reads a lane that the mask of its shuffle leaves out");
          e->result = static_cast<Exchange<T>*>(arguments[e->source_lane])->value;
        }
      },
      false, p.file, p.line);
  return argument.result;
}
inline unsigned lane() { return self->linear % 32; }

/// The lanes of the mask whose predicate holds, as bits: the same word for all of them.
inline uint32_t vote(uint32_t mask, bool predicate, CallSite p) {
  struct Vote {
    bool predicate;
    uint32_t result;
  } argument{predicate, 0};
  warp_operation(
      "a vote", mask, &argument,
      [](void* const(&arguments)[32], uint32_t lanes) {
        uint32_t ballot = 0;
        for (unsigned i = 0; i < 32; ++i)
          if ((lanes >> i & 1) && static_cast<Vote*>(arguments[i])->predicate) ballot |= 1u << i;
        for (unsigned i = 0; i < 32; ++i)
          if (lanes >> i & 1) static_cast<Vote*>(arguments[i])->result = ballot;
      },
      false, p.file, p.line);
  return argument.result;
}

/// *at = next(*at), and returns the old value. Threads switch only where they wait, so nothing can come in between; the
/// section only tells the shadow that these accesses are atomic.
template <class T, class F>
T atomic(T* at, F&& next) {
  AtomicSection section;
  const T before = *at;
  *at = next(before);
  return before;
}

}  // namespace nacre::emulation

// ---- warps

// Shuffles and votes pass `orders_memory` false: on a device only __syncwarp orders memory. A source lane outside of
// the segment of `width` lanes gives the lane's own value, as on a device.
inline void __syncwarp(uint32_t mask = 0xffffffffu, ::nacre::emulation::CallSite p = {}) {
  ::nacre::emulation::warp_operation("__syncwarp", mask, nullptr, nullptr, true, p.file, p.line);
}
template <class T>
T __shfl_sync(uint32_t mask, T v, int source, int width = 32, ::nacre::emulation::CallSite p = {}) {
  const unsigned l = ::nacre::emulation::lane();
  return ::nacre::emulation::exchange(
      "__shfl_sync", mask, v,
      (l & ~static_cast<unsigned>(width - 1)) | (static_cast<unsigned>(source) & static_cast<unsigned>(width - 1)), p);
}
template <class T>
T __shfl_xor_sync(uint32_t mask, T v, int lanes, int width = 32, ::nacre::emulation::CallSite p = {}) {
  const unsigned l = ::nacre::emulation::lane(), source = l ^ static_cast<unsigned>(lanes);
  return ::nacre::emulation::exchange("__shfl_xor_sync", mask, v, source / width == l / width ? source : l, p);
}
template <class T>
T __shfl_down_sync(uint32_t mask, T v, unsigned delta, int width = 32, ::nacre::emulation::CallSite p = {}) {
  const unsigned l = ::nacre::emulation::lane(), w = static_cast<unsigned>(width);
  return ::nacre::emulation::exchange("__shfl_down_sync", mask, v, l % w + delta < w ? l + delta : l, p);
}
template <class T>
T __shfl_up_sync(uint32_t mask, T v, unsigned delta, int width = 32, ::nacre::emulation::CallSite p = {}) {
  const unsigned l = ::nacre::emulation::lane(), w = static_cast<unsigned>(width);
  return ::nacre::emulation::exchange("__shfl_up_sync", mask, v, l % w >= delta ? l - delta : l, p);
}
inline uint32_t __ballot_sync(uint32_t mask, bool predicate, ::nacre::emulation::CallSite p = {}) {
  return ::nacre::emulation::vote(mask, predicate, p);
}
inline unsigned __reduce_min_sync(uint32_t mask, unsigned v, ::nacre::emulation::CallSite p = {}) {
  struct Least {
    unsigned value, result;
  } argument{v, v};
  ::nacre::emulation::warp_operation(
      "__reduce_min_sync", mask, &argument,
      [](void* const(&arguments)[32], uint32_t lanes) {
        unsigned least = 0xffffffffu;
        for (unsigned i = 0; i < 32; ++i)
          if (lanes >> i & 1) least = std::min(least, static_cast<Least*>(arguments[i])->value);
        for (unsigned i = 0; i < 32; ++i)
          if (lanes >> i & 1) static_cast<Least*>(arguments[i])->result = least;
      },
      false, p.file, p.line);
  return argument.result;
}
inline bool __any_sync(uint32_t mask, bool predicate, ::nacre::emulation::CallSite p = {}) {
  return ::nacre::emulation::vote(mask, predicate, p) != 0;
}
inline bool __all_sync(uint32_t mask, bool predicate, ::nacre::emulation::CallSite p = {}) {
  return ::nacre::emulation::vote(mask, predicate, p) == mask;
}

// ---- atomics
template <class T>
T atomicAdd(T* at, std::type_identity_t<T> v) {
  return ::nacre::emulation::atomic(at, [v](T x) { return static_cast<T>(x + v); });
}
template <class T>
T atomicMax(T* at, std::type_identity_t<T> v) {
  return ::nacre::emulation::atomic(at, [v](T x) { return x < v ? v : x; });
}
template <class T>
T atomicMin(T* at, std::type_identity_t<T> v) {
  return ::nacre::emulation::atomic(at, [v](T x) { return v < x ? v : x; });
}
template <class T>
T atomicOr(T* at, std::type_identity_t<T> v) {
  return ::nacre::emulation::atomic(at, [v](T x) { return static_cast<T>(x | v); });
}
template <class T>
T atomicCAS(T* at, std::type_identity_t<T> expected, std::type_identity_t<T> v) {
  return ::nacre::emulation::atomic(at, [=](T x) { return x == expected ? v : x; });
}

// ---- arithmetic
inline float __int_as_float(int x) { return std::bit_cast<float>(x); }
inline int __float_as_int(float x) { return std::bit_cast<int>(x); }
inline float __uint_as_float(unsigned x) { return std::bit_cast<float>(x); }
inline unsigned __float_as_uint(float x) { return std::bit_cast<unsigned>(x); }
inline float __fmaf_rn(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
// Rounded separately: an empty asm keeps the compiler from fusing the operation with a following one.
inline float __fmul_rn(float a, float b) {
  float p = a * b;
  asm("" : "+x"(p));
  return p;
}
inline float __fadd_rn(float a, float b) {
  float s = a + b;
  asm("" : "+x"(s));
  return s;
}
inline double __dmul_rn(double a, double b) {
  double p = a * b;
  asm("" : "+x"(p));
  return p;
}
inline double __dadd_rn(double a, double b) {
  double s = a + b;
  asm("" : "+x"(s));
  return s;
}
// On a device, __fsqrt_rn and __frcp_rn are rounded correctly, too; rsqrtf and those from __sinf to __logf, and
// __fdividef, are approximations there.
inline float __fdividef(float a, float b) { return a / b; }
inline float __fsqrt_rn(float x) { return std::sqrt(x); }
inline float __frcp_rn(float x) { return 1.0f / x; }
inline float rsqrtf(float x) { return 1.0f / std::sqrt(x); }
inline float __sinf(float x) { return std::sin(x); }
inline float __cosf(float x) { return std::cos(x); }
inline float __expf(float x) { return std::exp(x); }
inline float __logf(float x) { return std::log(x); }
inline int __popc(unsigned x) { return std::popcount(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __clz(int x) { return std::countl_zero(static_cast<unsigned>(x)); }
inline uint64_t __umul64hi(uint64_t a, uint64_t b) {
  return static_cast<uint64_t>((static_cast<unsigned __int128>(a) * b) >> 64);
}
inline unsigned __umulhi(unsigned a, unsigned b) { return static_cast<unsigned>((uint64_t{a} * b) >> 32); }
// Which cache a load goes through changes no value.
template <class T>
T __ldg(const T* p) {
  return *p;
}
template <class T>
T __ldcg(const T* p) {
  return *p;
}
inline int min(int a, int b) { return a < b ? a : b; }
inline int max(int a, int b) { return a > b ? a : b; }
inline unsigned min(unsigned a, unsigned b) { return a < b ? a : b; }
inline unsigned max(unsigned a, unsigned b) { return a > b ? a : b; }
inline int64_t min(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t max(int64_t a, int64_t b) { return a > b ? a : b; }

// ---- the functions that kernels/runtime/device.cuh defines as one PTX instruction each
namespace nacre::cuda {

template <int bytes>
inline void cp_async(void* shared, const void* global, int bytes_from_global) {
  static_assert(bytes == 4 || bytes == 8 || bytes == 16);
  emulation::copy_async(shared, global, bytes, static_cast<unsigned>(bytes_from_global));
}
inline void cp_async_or_zeros(void* shared, const void* global, bool exists) {
  cp_async<16>(shared, global, exists ? 16 : 0);
}
inline void cp_async_commit() { emulation::copy_commit(); }
template <int groups_left>
inline void cp_async_wait() {
  emulation::copy_wait(groups_left);
}

namespace emulated {

/// One lane's registers of the fragments of d += a b. tensor.cpp has the layouts.
struct Mma {
  float* d;               ///< 4 floats, read and written
  const uint32_t *a, *b;  ///< 4 and 2 registers: pairs of bf16, or tf32
};
/// One lane's part of ldmatrix: lane 8 m + r gives the address of row r of matrix m, and gets one register of each.
struct LoadMatrix {
  uint32_t* to;
  const void* row;
  int matrices;  ///< how many, of 8 x 8 elements of 16 bits
  bool transposed;
};
void mma_bf16(void* const (&arguments)[32], uint32_t);
void mma_tf32(void* const (&arguments)[32], uint32_t);
void load_matrix(void* const (&arguments)[32], uint32_t);

}  // namespace emulated

inline void mma_bf16_16x8x16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                             emulation::CallSite p = {}) {
  emulated::Mma argument{d, a, b};
  emulation::warp_operation("mma.sync", 0xffffffffu, &argument, emulated::mma_bf16, false, p.file, p.line);
}
inline void mma_tf32_16x8x8(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], emulation::CallSite p = {}) {
  emulated::Mma argument{d, a, b};
  emulation::warp_operation("mma.sync", 0xffffffffu, &argument, emulated::mma_tf32, false, p.file, p.line);
}
inline void mma_tf32_16x8x8(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], const float (&c)[4],
                            emulation::CallSite p = {}) {
  for (int i = 0; i < 4; ++i) d[i] = c[i];
  mma_tf32_16x8x8(d, a, b, p);
}
/// cvt.rna: to nearest, ties away from zero, 10 bits of mantissa. A carry from the mantissa into the exponent is right.
/// Infinities and NaN stay as they are.
inline uint32_t to_tf32(float x) {
  const uint32_t u = __float_as_uint(x);
  if ((u & 0x7f800000u) == 0x7f800000u) return u;
  return (u + 0x1000u) & ~0x1fffu;
}
inline void ldmatrix_x4(uint32_t (&r)[4], const void* row, emulation::CallSite p = {}) {
  emulated::LoadMatrix argument{r, row, 4, false};
  emulation::warp_operation("ldmatrix", 0xffffffffu, &argument, emulated::load_matrix, false, p.file, p.line);
}
inline void ldmatrix_x4_trans(uint32_t (&r)[4], const void* row, emulation::CallSite p = {}) {
  emulated::LoadMatrix argument{r, row, 4, true};
  emulation::warp_operation("ldmatrix", 0xffffffffu, &argument, emulated::load_matrix, false, p.file, p.line);
}

}  // namespace nacre::cuda
