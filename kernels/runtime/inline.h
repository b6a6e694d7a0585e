#pragma once
// Functions that are always inlined, on the host and on the device.
#if defined(__CUDACC__)
#define NACRE_INLINE __host__ __device__ __forceinline__
#else
/// Needed inside of NACRE_CLONES: a call that is not inlined would prevent vectorisation.
#define NACRE_INLINE __attribute__((always_inline)) inline
#endif
