#pragma once
// The kernels behind the ceilings of a CUDA device (ceilings.cu), and what measures with them (ceilings_cuda.cpp).
#include <functional>

#include "ceilings.h"

namespace nacre::bench {

void measure_cuda_ceilings(Context&, Ceilings&);
/// Best seconds of one `step`: graphs of `steps` of them, a measured one always queued behind one that still runs, so
/// that no launch by the host is in it.
double best_time(Context&, int steps, int measurements, const std::function<void()>& step);

namespace kernels {

/// to = from, `rounds` times within one launch; bytes is a multiple of 16.
void copy(Context&, const void* from, void* to, int64_t bytes, unsigned blocks, int rounds);
/// Blocks with which copy() gives every thread one turn.
unsigned copy_blocks(int64_t bytes);
/// Uniform in [-1, 1).
template <class T>
void random(Context&, T* out, int64_t n);
/// One block of one warp that does nothing.
void nothing(Context&);

// Arithmetic on registers. `numbers` are `number_count` random ones to begin with, `out` takes a float per thread so
// that nothing is dropped. Each returns how many operations it queued.
inline constexpr int64_t number_count = 4096;
inline constexpr int arithmetic_threads = 256;
double multiply_add(Context&, const float* numbers, float* out, unsigned blocks, int rounds);
double special(Context&, const float* numbers, float* out, unsigned blocks, int rounds);
double mma_bf16(Context&, const float* numbers, float* out, unsigned blocks, int rounds);
double mma_tf32(Context&, const float* numbers, float* out, unsigned blocks, int rounds);

}  // namespace kernels
}  // namespace nacre::bench
