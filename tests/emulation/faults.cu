// Kernels that are wrong on purpose, one per kind of mistake, and correct ones. host_faults.cu has faults in host code.
// The emulator must report each with the right words, at every block size in use. tests/CMakeLists.txt has the words.
//
//   nacre_emulation_faults KIND THREADS
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <optional>
#include <string>
#include <vector>

#include "runtime/device.cuh"
#include "runtime/emulated/scheduler.h"

using namespace nacre;
using namespace nacre::cuda;

namespace {

/// Each thread reads what its neighbour wrote to shared memory.
template <bool with_barrier>
__global__ void neighbour_kernel(const float* x, float* y) {
  NACRE_SHARED(float, shared, 1024);
  const unsigned i = threadIdx.x;
  shared[i] = x[i];
  if constexpr (with_barrier) __syncthreads();
  y[i] = shared[(i + 1) % blockDim.x];
}

/// The barrier depends on the data.
__global__ void barrier_by_data_kernel(const float* x, float* y) {
  NACRE_SHARED(float, shared, 1024);
  const unsigned i = threadIdx.x;
  shared[i] = x[i];
  if (x[blockDim.x] != 0) __syncthreads();
  y[i] = shared[(i + 1) % blockDim.x];
}

__global__ void early_return_kernel(const float* x, float* y) {
  if (threadIdx.x >= blockDim.x / 2) return;
  __syncthreads();
  y[threadIdx.x] = x[threadIdx.x];
}

__global__ void two_barriers_kernel(const float* x, float* y) {
  if (threadIdx.x % 2 == 0) {
    __syncthreads();
  } else {
    __syncthreads();
  }
  y[threadIdx.x] = x[threadIdx.x];
}

__global__ void short_mask_kernel(const float* x, float* y) {
  y[threadIdx.x] = __shfl_xor_sync(0x0000ffffu, x[threadIdx.x], 1);
}
__global__ void missing_lanes_kernel(const float* x, float* y) {
  float v = x[threadIdx.x];
  if (threadIdx.x % 32 < 16) v = __shfl_xor_sync(full_warp, v, 1);
  y[threadIdx.x] = v;
}

__global__ void missing_wait_kernel(const float* x, float* y) {
  NACRE_SHARED(float, shared, 4096);
  cp_async<16>(shared + 4 * threadIdx.x, x + 4 * threadIdx.x, 16);
  cp_async_commit();
  __syncthreads();
  y[threadIdx.x] = shared[4 * threadIdx.x];
  cp_async_wait<0>();
}
__global__ void never_waits_kernel(const float* x, float* y) {
  NACRE_SHARED(float, shared, 4096);
  cp_async<16>(shared + 4 * threadIdx.x, x + 4 * threadIdx.x, 16);
  y[threadIdx.x] = x[threadIdx.x];
}
/// The wait makes a copy visible to the thread that issued it. Its neighbour needs a barrier.
__global__ void copy_without_barrier_kernel(const float* x, float* y) {
  NACRE_SHARED(float, shared, 4096);
  cp_async<16>(shared + 4 * threadIdx.x, x + 4 * threadIdx.x, 16);
  cp_async_commit();
  cp_async_wait<0>();
  y[threadIdx.x] = shared[4 * ((threadIdx.x + 1) % blockDim.x)];
}

/// The source of an ignored copy is not read, but its address must still be valid and aligned.
template <int bytes_off>
__global__ void ignored_source_kernel(const float* x, float* y) {
  NACRE_SHARED(float, shared, 4096);
  cp_async<16>(shared + 4 * threadIdx.x, reinterpret_cast<const char*>(x) + bytes_off, 0);
  cp_async_commit();
  cp_async_wait<0>();
  y[threadIdx.x] = x[threadIdx.x] + shared[4 * threadIdx.x];
}
/// 32 KiB of static shared memory, besides the dynamic memory of the launch.
__global__ void large_array_kernel(const float* x, float* y) {
  NACRE_SHARED(float, own, 8192);
  NACRE_DYNAMIC_SHARED(float, shared);
  own[threadIdx.x] = x[threadIdx.x];
  shared[threadIdx.x] = own[threadIdx.x];
  y[threadIdx.x] = shared[threadIdx.x];
}
__global__ void trap_kernel(const float* x, float* y) {
  if (threadIdx.x == 7) __trap();
  y[threadIdx.x] = x[threadIdx.x];
}

__global__ void unwritten_kernel(const float* x, float* y) {
  if (threadIdx.x + 1 < blockDim.x) y[threadIdx.x] = x[threadIdx.x];
}
__global__ void unset_shared_kernel(const float* x, float* y) {
  NACRE_SHARED(float, shared, 1024);
  if (threadIdx.x != 3) shared[threadIdx.x] = x[threadIdx.x];
  __syncthreads();
  y[threadIdx.x] = shared[threadIdx.x];
}

__global__ void shared_overrun_kernel(const float* x, float* y) {
  NACRE_SHARED(float, shared, 32);
  if (threadIdx.x < 32) shared[threadIdx.x + (threadIdx.x == 31 ? 1 : 0)] = x[threadIdx.x];
  __syncthreads();
  y[threadIdx.x] = shared[threadIdx.x % 32];
}
__global__ void device_overrun_kernel(const float* x, float* y) {
  y[threadIdx.x + (threadIdx.x + 1 == blockDim.x ? 1 : 0)] = x[threadIdx.x];
}

/// Two bytes at an odd address, the second of them beyond the buffer.
__global__ void odd_overrun_kernel(const float* x, float* y) {
  y[threadIdx.x] = x[threadIdx.x];
  __syncthreads();
  if (threadIdx.x + 1 == blockDim.x)
    std::memcpy(reinterpret_cast<char*>(y + blockDim.x) - 1, reinterpret_cast<const char*>(x) + 1, 2);
}

/// A load of 16 bytes from an address that is a multiple of 4 only.
__global__ void misaligned_kernel(const float* x, float* y) {
  const float4 v = *reinterpret_cast<const float4*>(x + 3 * threadIdx.x);
  y[threadIdx.x] = v.x + v.y + v.z + v.w;
}
/// The fifth thread writes behind the end of an array of its own.
__global__ void own_array_overrun_kernel(const float* x, float* y) {
  float own[4] = {};
  own[threadIdx.x % 5] = x[threadIdx.x];
  y[threadIdx.x] = own[0] + own[1] + own[2] + own[3];
}

/// One line, two arrays on a device: the emulator would give both the memory of the first.
template <int count>
__device__ float* array_of() {
  NACRE_SHARED(float, shared, count);
  return shared;
}
__global__ void two_arrays_of_one_line_kernel(const float* x, float* y) {
  float *const small = array_of<1024>(), *const large = array_of<2048>();
  small[threadIdx.x] = x[threadIdx.x];
  large[threadIdx.x] = x[threadIdx.x];
  y[threadIdx.x] = small[threadIdx.x] + large[threadIdx.x];
}

/// Two blocks write one address.
template <bool with_atomics>
__global__ void one_address_kernel(const float* x, float* y) {
  const float sum = warp_sum(threadIdx.x < 32 ? x[threadIdx.x] : 0.0f);
  if (threadIdx.x == 0) {
    if constexpr (with_atomics)
      atomicAdd(reinterpret_cast<int*>(y), static_cast<int>(sum));  // integers: the order has no effect
    else
      y[0] = y[0] * 0.5f + sum * static_cast<float>(blockIdx.x + 1);
  }
  if (threadIdx.x > 0 && blockIdx.x == 0) y[threadIdx.x] = x[threadIdx.x];
}

int run(const std::string& kind, unsigned threads) {
  Context ctx({.device = {Device::cuda, 0}});
  std::optional<Memory> in(std::in_place, ctx, 4 * threads * sizeof(float));
  Memory out(ctx, threads * sizeof(float));
  const View<float> x(reinterpret_cast<float*>(in->data()), {.channels = 4 * threads}),
      y(reinterpret_cast<float*>(out.data()), {.channels = threads});
  std::vector<float> content(4 * threads), nothing(threads, NAN);
  for (size_t i = 0; i < content.size(); ++i) content[i] = static_cast<float>(i % 17);
  content[threads] = 1;
  if (kind == "atomics") nothing[0] = 0;
  if (kind == "one_address") nothing[0] = 1;
  ctx.write<float>(content, x);
  ctx.write<float>(nothing, y);
  using Kernel = void (*)(const float*, float*);
  struct Entry {
    const char* kind;
    Kernel kernel;
    unsigned blocks = 1;
    size_t shared_bytes = 0;
    int launches = 1;  // all with equal arguments
  };
  const size_t most = limits(ctx).shared_per_block;
  const Entry entries[] = {{"right", neighbour_kernel<true>},
                           {"atomics", one_address_kernel<true>, 2},
                           {"missing_barrier", neighbour_kernel<false>},
                           {"early_return", early_return_kernel},
                           {"divergent_barrier", two_barriers_kernel},
                           {"short_mask", short_mask_kernel},
                           {"missing_lanes", missing_lanes_kernel},
                           {"missing_wait", missing_wait_kernel},
                           {"never_waits", never_waits_kernel},
                           {"copy_without_barrier", copy_without_barrier_kernel},
                           {"unwritten", unwritten_kernel},
                           {"unset_shared", unset_shared_kernel},
                           {"shared_overrun", shared_overrun_kernel},
                           {"device_overrun", device_overrun_kernel},
                           {"odd_overrun", odd_overrun_kernel},
                           {"misaligned", misaligned_kernel},
                           {"own_array_overrun", own_array_overrun_kernel},
                           {"two_arrays_of_one_line", two_arrays_of_one_line_kernel},
                           {"one_address", one_address_kernel<false>, 2},
                           {"ignored_source", ignored_source_kernel<-16>},
                           {"ignored_odd_source", ignored_source_kernel<-1>},
                           {"shared_at_the_limit", large_array_kernel, 1, most - 32768},
                           {"shared_beyond_the_limit", large_array_kernel, 1, most - 32768 + 16},
                           {"shared_far_beyond", large_array_kernel, 1, most + 16},
                           {"grid_too_deep", neighbour_kernel<true>, 70000},
                           {"freed_before_a_repeat", neighbour_kernel<true>, 1, 0, 2},
                           {"race_by_data_in_a_repeat", barrier_by_data_kernel, 1, 0, 9},
                           {"trap", trap_kernel}};
  for (const Entry& e : entries) {
    if (kind != e.kind) continue;
    const dim3 grid = kind == "grid_too_deep" ? dim3(1, e.blocks) : dim3(e.blocks);
    for (int i = 0; i < e.launches; ++i) {
      if (i > 0 && i + 1 == e.launches) {
        if (kind == "freed_before_a_repeat") in.reset();
        content[threads] = 0;
        if (in) ctx.write<float>(content, x);
      }
      launch(ctx, {.name = e.kind, .grid = grid, .block = threads, .shared_bytes = e.shared_bytes}, e.kernel,
             static_cast<const float*>(x.data), y.data);
    }
    std::vector<float> found(threads);
    ctx.read<float>(y, found);
    for (size_t i = 0; i < found.size(); ++i)
      if (std::isnan(found[i])) {
        std::printf("unwritten output: element %zu\n", i);
        return 1;
      }
    std::printf("no fault\n");
    return 0;
  }
  std::printf("%s: no such kind\n", kind.c_str());
  return 2;
}

}  // namespace

int main(int argc, char** argv) try {
  if (argc != 3) return 2;
  return run(argv[1], static_cast<unsigned>(std::atoi(argv[2])));
} catch (const std::exception& e) {
  std::printf("%s\n", e.what());
  return 1;
}
