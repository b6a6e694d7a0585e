#pragma once
// The kernels of ceilings.cu and the functions of ceilings_cuda.cpp that measure the ceilings of a CUDA device.
#include <functional>

#include "ceilings.h"

namespace nacre::bench {

void measure_cuda_ceilings(Context&, Ceilings&);
/// The least seconds of one `step`. `steps` of them form a graph. A measured graph is always queued behind one that
/// still runs, so that the time contains no launch by the host.
double best_time(Context&, int steps, int measurements, const std::function<void()>& step);

namespace kernels {

/// Copies `bytes` from `from` to `to`, `rounds` times in one launch. `bytes` is a multiple of 16.
void copy(Context&, const void* from, void* to, int64_t bytes, unsigned blocks, int rounds);
/// The number of blocks with which each thread of copy() runs its loop once.
unsigned copy_blocks(int64_t bytes);
/// Fills with uniform values in [-1, 1).
template <class T>
void random(Context&, T* out, int64_t n);
/// One block of one warp that does nothing.
void nothing(Context&);

// Arithmetic on registers. `numbers` holds number_count random start values. `out` holds one float per thread, so that
// the compiler keeps the results. Each function returns the number of operations that it queued.
inline constexpr int64_t number_count = 4096;
inline constexpr int arithmetic_threads = 256;
double multiply_add(Context&, const float* numbers, float* out, unsigned blocks, int rounds);
double special(Context&, const float* numbers, float* out, unsigned blocks, int rounds);
double mma_bf16(Context&, const float* numbers, float* out, unsigned blocks, int rounds);
double mma_tf32(Context&, const float* numbers, float* out, unsigned blocks, int rounds);

}  // namespace kernels
}  // namespace nacre::bench
