// The emulator counts the bytes that kernels, copies and transforms move (kernels/runtime/emulated/traffic.h): compared
// here with figures found by hand, for accesses of every kind. Prints what differs.
//
//   nacre_traffic
#include <cstdint>
#include <cstdio>
#include <string>
#include <vector>

#include "runtime/device.cuh"
#include "runtime/emulated/scheduler.h"
#include "runtime/emulated/traffic.h"

using namespace nacre;
using namespace nacre::cuda;

namespace {

constexpr int n = 1000, threads = 256, blocks = (n + threads - 1) / threads;

__global__ void add_kernel(const float* x, const float* y, float* z) {
  if (const unsigned i = blockIdx.x * blockDim.x + threadIdx.x; i < n) z[i] = x[i] + y[i];
}
/// Every thread of every block reads the same element.
__global__ void broadcast_kernel(const float* x, float* z) {
  if (const unsigned i = blockIdx.x * blockDim.x + threadIdx.x; i < n) z[i] = x[3];
}
/// Every thread adds to its element twice.
__global__ void twice_kernel(float* z) {
  const unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  volatile float* const at = z + i;
  *at = *at + 1;
  *at = *at + 1;
}
__global__ void parts_kernel(const float* x, float* parts) {
  NACRE_SHARED(float, shared, threads);
  const unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
  shared[threadIdx.x] = i < n ? x[i] : 0;
  __syncthreads();
  if (threadIdx.x > 0) return;
  float sum = 0;
  for (unsigned k = 0; k < threads; ++k) sum += shared[k];
  parts[blockIdx.x] = sum;
}
__global__ void sum_kernel(const float* parts, float* z) {
  if (threadIdx.x > 0) return;
  float sum = 0;
  for (unsigned k = 0; k < blocks; ++k) sum += parts[k];
  *z = sum;
}
/// One byte of every three, none of which has a granule of the shadow for itself.
__global__ void bytes_kernel(const uint8_t* x, uint8_t* z) {
  const unsigned i = threadIdx.x;
  if (i % 2 == 0) z[i] = x[3 * i];
}
/// The first warp copies 16 bytes per thread, the second 8 and zeros, the third zeros.
__global__ void async_kernel(const float* x, float* z) {
  NACRE_SHARED(float, shared, 4 * threads);
  const unsigned i = threadIdx.x, warp = i / 32;
  cp_async<16>(shared + 4 * i, x + 4 * (i % 32), warp == 0 ? 16 : warp == 1 ? 8 : 0);
  cp_async_commit();
  cp_async_wait<0>();
  if (warp < 3) z[i] = shared[4 * i];
}
__global__ void async_second_kernel(const float* x, float* z) {
  NACRE_SHARED(float, shared, 4 * threads);
  const unsigned i = threadIdx.x;
  cp_async<16>(shared + 4 * i, x + 4 * i, i / 32 == 1 ? 8 : 0);
  cp_async_commit();
  cp_async_wait<0>();
  z[i] = shared[4 * i];
}
__global__ void atomic_kernel(int* z) { atomicAdd(z, 1); }

int failures = 0;
void expect(const char* name, int64_t launches, int64_t read, int64_t written) {
  const auto all = emulation::traffic();
  const auto found = all.find(name);
  const emulation::Traffic t = found == all.end() ? emulation::Traffic{} : found->second;
  if (t.launches == launches && t.read == read && t.written == written) return;
  ++failures;
  std::printf("%s: %lld launches, %lld bytes read, %lld written, expected %lld, %lld, %lld\n", name,
              static_cast<long long>(t.launches), static_cast<long long>(t.read), static_cast<long long>(t.written),
              static_cast<long long>(launches), static_cast<long long>(read), static_cast<long long>(written));
}

void run() {
  Context ctx({.device = {Device::cuda, 0}});
  // Made while nothing is counted, as buffers of a test mostly are.
  Memory memory(ctx, 4 * 4 * 1024 * sizeof(float));
  float *const x = reinterpret_cast<float*>(memory.data()), *const y = x + 4096, *const z = y + 4096;
  Runtime& r = runtime(ctx);
  const auto add = [&] { launch(ctx, {.name = "add", .grid = blocks, .block = threads}, add_kernel, x, y, z); };
  add();
  ctx.synchronize();
  emulation::reset_traffic();
  emulation::count_traffic(true);
  add();
  launch(ctx, {.name = "broadcast", .grid = blocks, .block = threads}, broadcast_kernel, x, z);
  launch(ctx, {.name = "twice", .grid = blocks, .block = threads}, twice_kernel, z);
  launch(ctx, {.name = "parts", .grid = blocks, .block = threads}, parts_kernel, x, z);
  launch(ctx, {.name = "sum", .grid = 1, .block = 32}, sum_kernel, z, z + 64);
  launch(ctx, {.name = "bytes", .grid = 1, .block = 32}, bytes_kernel, reinterpret_cast<const uint8_t*>(x) + 1,
         reinterpret_cast<uint8_t*>(z));
  launch(ctx, {.name = "async", .grid = 1, .block = threads}, async_kernel, x, z);
  launch(ctx, {.name = "async_second", .grid = 1, .block = threads}, async_second_kernel, x, z);
  launch(ctx, {.name = "atomic", .grid = 4, .block = 64}, atomic_kernel, reinterpret_cast<int*>(z));
  r.zero(z, 100);
  r.copy_on_device(z, x, 40);
  r.copy_to_device(z, std::vector<float>(8).data(), 32);
  std::vector<float> back(4);
  r.copy_to_host(back.data(), z, 16);
  ctx.synchronize();
  expect("add", 1, 8 * n, 4 * n);
  expect("broadcast", 1, 4, 4 * n);
  expect("twice", 1, 4 * n, 4 * n);
  expect("parts", 1, 4 * n, 4 * blocks);
  expect("sum", 1, 4 * blocks, 4);
  expect("bytes", 1, 16, 16);
  expect("async", 1, 32 * 16, 3 * 32 * 4);
  expect("async_second", 1, 32 * 8, threads * 4);
  expect("atomic", 1, 4, 4);
  expect("memset", 1, 0, 100);
  expect("copy", 1, 40, 40);
  expect("copy to device", 1, 0, 32);
  expect("copy to host", 1, 16, 0);

  // Sums over launches, over the replays of a graph, and from the last reset only.
  Graph graph = ctx.capture([&] { add(), add(); });
  graph.replay(), graph.replay();
  ctx.synchronize();
  expect("add", 5, 5 * 8 * n, 5 * 4 * n);
  emulation::reset_traffic();
  expect("add", 0, 0, 0);
  // Five signals of 24 samples: 13 complex bins each.
  Fft fft(ctx, 24, 5);
  fft.forward(ctx, x, z);
  ctx.synchronize();
  expect("cufft", 1, 5 * 24 * 4, 5 * 13 * 8);
  fft.inverse(ctx, z, x);
  ctx.synchronize();
  expect("cufft", 2, 5 * 24 * 4 + 5 * 13 * 8, 5 * 13 * 8 + 5 * 24 * 4);
  // A buffer of 64 MiB is watched if it was made while bytes were counted.
  constexpr size_t large = size_t{64} << 20;
  {
    Memory more(ctx, large);
    auto* const at = reinterpret_cast<float*>(more.data() + large) - n;
    emulation::reset_traffic();
    launch(ctx, {.name = "add", .grid = blocks, .block = threads}, add_kernel, x, at, z);
    ctx.synchronize();
    expect("add", 1, 8 * n, 4 * n);
  }
  emulation::count_traffic(false);
  add();
  ctx.synchronize();
  expect("add", 1, 8 * n, 4 * n);
  const Memory unwatched(ctx, large);
  try {
    emulation::count_traffic(true);
    ++failures, std::printf("count_traffic accepts a buffer that is not watched\n");
  } catch (const emulation::Fault&) {
  }
}

}  // namespace

int main() try {
  run();
  return failures == 0 ? 0 : 1;
} catch (const std::exception& e) {
  std::printf("%s\n", e.what());
  return 1;
}
