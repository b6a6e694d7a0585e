#include "ceilings_cuda.h"

#include "runtime/device.cuh"
#include "nacre/random.h"

// Each loop keeps one unit of a multiprocessor busy. The numbers never converge, because repeated values or zeros
// switch fewer transistors and allow a higher clock than real data does.
namespace nacre::bench::kernels {
namespace {

using cuda::launch;

constexpr int threads = arithmetic_threads;
constexpr int batch = 4;   // 16-byte loads in flight per thread
constexpr int chains = 8;  // independent results per thread, to hide latencies

/// Loads bypass the first-level cache. Otherwise, with many rounds, each multiprocessor's share of a small footprint
/// would stay in it.
__global__ void __launch_bounds__(threads) copy_kernel(const uint4* from, uint4* to, int64_t packs, int rounds) {
  const int64_t step = cuda::grid_threads();
  for (int r = 0; r < rounds; ++r)
    for (int64_t first = cuda::grid_thread(); first < packs; first += batch * step) {
      uint4 v[batch]{};
#pragma unroll
      for (int k = 0; k < batch; ++k)
        if (first + k * step < packs) v[k] = __ldcg(from + first + k * step);
#pragma unroll
      for (int k = 0; k < batch; ++k)
        if (first + k * step < packs) to[first + k * step] = v[k];
    }
}

template <class T>
__global__ void __launch_bounds__(threads) random_kernel(T* out, int64_t n) {
  const Philox draw{.seed = 1, .stream = 0};
  for (int64_t i = cuda::grid_thread() * 4; i < n; i += cuda::grid_threads() * 4) {
    const auto bits = draw(static_cast<uint64_t>(i / 4));
    const uint32_t words[4] = {bits[0], bits[1], bits[2], bits[3]};
#pragma unroll
    for (int k = 0; k < 4; ++k)
      if (i + k < n) out[i + k] = store<T>(static_cast<float>(words[k] >> 8) * 0x1p-23f - 1.0f);
  }
}

__global__ void nothing_kernel() {}

/// x = x x + c with c = -1.9 is chaotic and stays within [-1.9, 1.9].
__global__ void __launch_bounds__(threads, 8) multiply_add_kernel(const float* numbers, float* out, int rounds) {
  const int64_t me = cuda::grid_thread();
  const float c = -1.9f;
  float x[chains];
#pragma unroll
  for (int k = 0; k < chains; ++k) x[k] = numbers[(me * chains + k) % number_count];
#pragma unroll 16
  for (int r = 0; r < rounds; ++r)
#pragma unroll
    for (int k = 0; k < chains; ++k) x[k] = __fmaf_rn(x[k], x[k], c);
  float sum = 0;
#pragma unroll
  for (int k = 0; k < chains; ++k) sum += x[k];
  out[me] = sum;
}

/// One addition goes with each sine. The other units have eight times the throughput, so it costs no time.
__global__ void __launch_bounds__(threads, 8) special_kernel(const float* numbers, float* out, int rounds) {
  const int64_t me = cuda::grid_thread();
  float x[chains];
#pragma unroll
  for (int k = 0; k < chains; ++k) x[k] = numbers[(me * chains + k) % number_count];
#pragma unroll 4
  for (int r = 0; r < rounds; ++r)
#pragma unroll
    for (int k = 0; k < chains; ++k) x[k] = __sinf(__fmaf_rn(x[k], 3.1f, 1.0f));
  float sum = 0;
#pragma unroll
  for (int k = 0; k < chains; ++k) sum += x[k];
  out[me] = sum;
}

constexpr int mma_rows = 2, mma_columns = 4;  // fragments of a and b; each pair has its own sums

template <bool is_bf16>
__global__ void __launch_bounds__(threads) mma_kernel(const float* numbers, float* out, int rounds) {
  const int64_t me = cuda::grid_thread();
  uint32_t a[mma_rows][4], b[mma_columns][2];
  const auto word = [&](int i) {
    const float low = numbers[(me * 37 + 2 * i) % number_count], high = numbers[(me * 37 + 2 * i + 1) % number_count];
    if constexpr (is_bf16)
      return cuda::pack_bf16(low, high);
    else
      return cuda::to_tf32(low);
  };
#pragma unroll
  for (int i = 0; i < mma_rows * 4; ++i) a[i / 4][i % 4] = word(i);
#pragma unroll
  for (int i = 0; i < mma_columns * 2; ++i) b[i / 2][i % 2] = word(mma_rows * 4 + i);
  float d[mma_rows][mma_columns][4] = {};
  for (int r = 0; r < rounds; ++r)
#pragma unroll
    for (int i = 0; i < mma_rows; ++i)
#pragma unroll
      for (int j = 0; j < mma_columns; ++j)
        if constexpr (is_bf16)
          cuda::mma_bf16_16x8x16(d[i][j], a[i], b[j]);
        else
          cuda::mma_tf32_16x8x8(d[i][j], a[i], b[j]);
  float sum = 0;
#pragma unroll
  for (int i = 0; i < mma_rows; ++i)
#pragma unroll
    for (int j = 0; j < mma_columns; ++j) sum += d[i][j][0] + d[i][j][1] + d[i][j][2] + d[i][j][3];
  out[me] = sum;
}

/// Number of operations of a launch with `each` operations per round and thread.
double operations(unsigned blocks, int rounds, double each) { return each * rounds * threads * blocks; }

}  // namespace

unsigned copy_blocks(int64_t bytes) { return cuda::blocks_for(bytes / 16, batch * threads); }
void copy(Context& ctx, const void* from, void* to, int64_t bytes, unsigned blocks, int rounds) {
  launch(ctx, {.name = "ceiling_copy", .grid = blocks, .block = threads}, copy_kernel, static_cast<const uint4*>(from),
         static_cast<uint4*>(to), bytes / 16, rounds);
}
template <class T>
void random(Context& ctx, T* out, int64_t n) {
  launch(ctx, {.name = "ceiling_random", .grid = cuda::blocks_for(n, 4 * threads, 4096), .block = threads},
         random_kernel<T>, out, n);
}
template void random<float>(Context&, float*, int64_t);
template void random<bf16>(Context&, bf16*, int64_t);
void nothing(Context& ctx) { launch(ctx, {.name = "ceiling_nothing", .grid = 1, .block = 32}, nothing_kernel); }

double multiply_add(Context& ctx, const float* numbers, float* out, unsigned blocks, int rounds) {
  launch(ctx, {.name = "ceiling_multiply_add", .grid = blocks, .block = threads}, multiply_add_kernel, numbers, out,
         rounds);
  return operations(blocks, rounds, 2 * chains);
}
double special(Context& ctx, const float* numbers, float* out, unsigned blocks, int rounds) {
  launch(ctx, {.name = "ceiling_special", .grid = blocks, .block = threads}, special_kernel, numbers, out, rounds);
  return operations(blocks, rounds, chains);
}
// A warp's mma has 2 x 16 x 8 x 16 operations (or x 8 for tf32). A thread's share is a 32nd.
double mma_bf16(Context& ctx, const float* numbers, float* out, unsigned blocks, int rounds) {
  launch(ctx, {.name = "ceiling_mma_bf16", .grid = blocks, .block = threads}, mma_kernel<true>, numbers, out, rounds);
  return operations(blocks, rounds, mma_rows * mma_columns * 2.0 * 16 * 8 * 16 / 32);
}
double mma_tf32(Context& ctx, const float* numbers, float* out, unsigned blocks, int rounds) {
  launch(ctx, {.name = "ceiling_mma_tf32", .grid = blocks, .block = threads}, mma_kernel<false>, numbers, out, rounds);
  return operations(blocks, rounds, mma_rows * mma_columns * 2.0 * 16 * 8 * 8 / 32);
}

}  // namespace nacre::bench::kernels
