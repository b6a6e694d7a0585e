#pragma once
// Functions that are part of every loop they are called in, on the host and on the device.
#if defined(__CUDACC__)
#define NACRE_INLINE __host__ __device__ __forceinline__
#else
/// Survives NACRE_CLONES: a call that stays a call would keep the loop from becoming vectors.
#define NACRE_INLINE __attribute__((always_inline)) inline
#endif
