#pragma once
// bf16: a storage type that holds the upper 16 bits of a float. Its layout equals CUDA's __nv_bfloat16, but no CUDA
// header is needed. Arithmetic is always in float: load, compute, store.
#include <cstdint>

#include "nacre/cxx20.h"

#if defined(__CUDACC__)
#define NACRE_HD __host__ __device__
#else
#define NACRE_HD
#endif

namespace nacre {

struct bf16 {
  uint16_t bits;
};
static_assert(sizeof(bf16) == 2);

NACRE_HD inline float to_float(float x) { return x; }
NACRE_HD inline float to_float(bf16 x) { return __builtin_bit_cast(float, uint32_t{x.bits} << 16); }

/// Rounds to nearest, ties to even. A NaN becomes a quiet NaN.
NACRE_HD inline bf16 to_bf16(float x) {
#if defined(__CUDA_ARCH__)  // one instruction from sm_80 on; the bit operations below take eight
  uint16_t bits;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(bits) : "f"(x));
  return {bits};
#else
  const uint32_t u = __builtin_bit_cast(uint32_t, x);
  if ((u & 0x7fffffffu) > 0x7f800000u) return {static_cast<uint16_t>((u >> 16) | 0x40u)};
  return {static_cast<uint16_t>((u + 0x7fffu + ((u >> 16) & 1u)) >> 16)};
#endif
}

/// Converts a float to the storage type T.
template <class T>
NACRE_HD T store(float x);
template <>
NACRE_HD inline float store<float>(float x) {
  return x;
}
template <>
NACRE_HD inline bf16 store<bf16>(float x) {
  return to_bf16(x);
}

}  // namespace nacre
