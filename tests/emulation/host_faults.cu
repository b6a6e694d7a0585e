// Faults of host code around kernels, made on purpose, and correct host code. The emulated devices must tell them
// apart. Correct code ends with 0. Wrong code ends with 1 and prints what was found. tests/CMakeLists.txt has the
// words.
//
//   nacre_host_faults KIND
#include <algorithm>
#include <array>
#include <cstdio>
#include <cstring>
#include <exception>
#include <functional>
#include <map>
#include <optional>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "runtime/device.cuh"
#include "runtime/emulated/scheduler.h"

using namespace nacre;
using namespace nacre::cuda;

namespace {

__global__ void copy_kernel(const float* x, float* y) { y[threadIdx.x] = x[threadIdx.x]; }
__global__ void trap_kernel(const float* x, float* y) {
  if (x != nullptr) __trap();
  y[threadIdx.x] = 0;
}

void expect(cudaError_t e, const char* what) {
  if (e != cudaSuccess) throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(e));
}

/// Sends batches through pinned memory and a second stream, as Runtime::upload does, with one of its waits left out.
enum class Missing { nothing, pinned_memory, arrival, taking };
void uploads(Missing missing) {
  constexpr int batches = 8;
  cudaStream_t stream = nullptr, second = nullptr;
  cudaEvent_t arrived = nullptr, taken = nullptr;
  void *pinned = nullptr, *batch = nullptr, *all = nullptr;
  expect(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "stream");
  expect(cudaStreamCreateWithFlags(&second, cudaStreamNonBlocking), "stream");
  expect(cudaEventCreateWithFlags(&arrived, cudaEventDisableTiming), "event");
  expect(cudaEventCreateWithFlags(&taken, cudaEventDisableTiming), "event");
  expect(cudaMallocHost(&pinned, sizeof(int)), "pinned memory");
  expect(cudaMalloc(&batch, sizeof(int)), "memory");
  expect(cudaMalloc(&all, batches * sizeof(int)), "memory");
  for (int i = 0; i < batches; ++i) {
    if (missing != Missing::pinned_memory) expect(cudaEventSynchronize(arrived), "wait");
    std::memcpy(pinned, &i, sizeof i);
    if (missing != Missing::taking) expect(cudaStreamWaitEvent(second, taken, 0), "wait");
    expect(cudaMemcpyAsync(batch, pinned, sizeof i, cudaMemcpyHostToDevice, second), "copy");
    expect(cudaEventRecord(arrived, second), "record");
    if (missing != Missing::arrival) expect(cudaStreamWaitEvent(stream, arrived, 0), "wait");
    expect(cudaMemcpyAsync(static_cast<int*>(all) + i, batch, sizeof i, cudaMemcpyDeviceToDevice, stream), "copy");
    expect(cudaEventRecord(taken, stream), "record");
  }
  std::array<int, batches> found{};
  expect(cudaMemcpyAsync(found.data(), all, sizeof found, cudaMemcpyDeviceToHost, stream), "read");
  expect(cudaStreamSynchronize(stream), "wait");
  int wrong = 0;
  for (int i = 0; i < batches; ++i) wrong += found[static_cast<size_t>(i)] != i;
  if (wrong > 0)
    throw std::runtime_error(std::to_string(wrong) + " of " + std::to_string(batches) +
                             " batches are not those that were sent");
}

/// 32 floats that a kernel reads, and 32 that it writes.
struct Pair {
  Context ctx;
  Memory memory;
  explicit Pair(int device) : ctx({.device = {Device::cuda, device}}), memory(ctx, 64 * sizeof(float)) {}
  const float* x() const { return reinterpret_cast<const float*>(memory.data()); }
  float* y() const { return reinterpret_cast<float*>(memory.data()) + 32; }
  View<float> all() const { return {reinterpret_cast<float*>(memory.data()), {.channels = 64}}; }
};
std::vector<float> half(float value) {
  std::vector<float> v(64);
  std::fill_n(v.begin(), 32, value);
  return v;
}
void expect_copied(Context& ctx, View<const float> all, float value) {
  std::vector<float> found(64);
  ctx.read<float>(all, found);
  if (found != std::vector<float>(64, value)) throw std::runtime_error("the kernel's output is not its input");
}
std::string said(const std::function<void()>& f) {
  try {
    f();
  } catch (const Error& e) {
    return (e.kind() == ErrorKind::device ? "device error: " : "another error: ") + std::string(e.what());
  }
  return "nothing";
}
/// After a kernel failed, every later call returns its error.
void sticky() {
  Pair p(0);
  std::vector<float> back(64);
  const View<const float> all(p.x(), {.channels = 64});
  launch(p.ctx, {.name = "well", .block = 32}, copy_kernel, p.x(), p.y());
  p.ctx.synchronize();
  launch(p.ctx, {.name = "failing", .block = 32}, trap_kernel, p.x(), p.y());
  launch(p.ctx, {.name = "behind", .block = 32}, copy_kernel, p.x(), p.y());
  const std::string first = said([&] { p.ctx.read<float>(all, back); });
  Pair other(1);  // this device works, and becomes this thread's current device
  other.ctx.synchronize();
  Event event;
  const std::string later[] = {said([&] { p.ctx.read<float>(all, back); }),
                               said([&] { Memory more(p.ctx, 16); }),
                               said([&] { p.ctx.synchronize(); }),
                               said([&] { launch(p.ctx, {.name = "later", .block = 32}, copy_kernel, p.x(), p.y()); }),
                               said([&] { (void)p.ctx.capture([] {}); }),
                               said([&] { p.ctx.upload<float>(back, p.all()); }),
                               said([&] { event.record(p.ctx); }),
                               said([&] { Fft transform(p.ctx, 8, 1); }),
                               said([&] { Pair again(0); })};
  for (const std::string& l : later)
    if (l != first) throw std::runtime_error("first: " + first + ", then: " + l);
  other.ctx.synchronize();
  throw std::runtime_error(first);
}
/// A call on an event is often the first one that returns the error of a kernel.
void seen_by_an_event() {
  Pair p(0);
  Event begin, end;
  begin.record(p.ctx);
  launch(p.ctx, {.name = "failing", .block = 32}, trap_kernel, p.x(), p.y());
  end.record(p.ctx);
  throw std::runtime_error(said([&] { (void)end.seconds_since(begin); }));
}

void two_devices() {
  Pair a(0), b(1);
  a.ctx.write<float>(half(1), a.all());
  b.ctx.upload<float>(half(2), b.all());
  Graph graph = b.ctx.capture([&] { launch(b.ctx, {.name = "copy", .block = 32}, copy_kernel, b.x(), b.y()); });
  std::exception_ptr failed;
  std::thread([&] {  // the current device of this thread is the first one
    try {
      graph.replay();
      expect_copied(b.ctx, b.all(), 2);
      b.ctx.write<float>(half(3), b.all());
      launch(b.ctx, {.name = "copy", .block = 32}, copy_kernel, b.x(), b.y());
      expect_copied(b.ctx, b.all(), 3);
    } catch (...) {
      failed = std::current_exception();
    }
  })
      .join();
  if (failed) std::rethrow_exception(failed);
  launch(a.ctx, {.name = "copy", .block = 32}, copy_kernel, a.x(), a.y());
  expect_copied(a.ctx, a.all(), 1);
}
void graph_outlives_context() {
  Context later({.device = {Device::cuda, 0}});
  const Memory kept(later, 64 * sizeof(float));
  float* const at = reinterpret_cast<float*>(kept.data());
  const View<float> all(at, {.channels = 64});
  later.write<float>(half(4), all);
  std::optional<Graph> graph;
  {
    Context ctx({.device = {Device::cuda, 0}});
    graph = ctx.capture([&] { launch(ctx, {.name = "copy", .block = 32}, copy_kernel, at, at + 32); });
  }
  graph->replay();
  graph.reset();  // the graph's stream ends, and with it all work in it
  expect_copied(later, all, 4);
}
__global__ void dynamic_kernel(float* y, unsigned last) {
  NACRE_DYNAMIC_SHARED(float, shared);
  if (threadIdx.x == 0) shared[last] = static_cast<float>(last);
  __syncthreads();
  y[threadIdx.x] = shared[last];
}
/// The shared-memory limit of a kernel belongs to the kernel and not to the context. A smaller launch in another
/// context must not lower it.
void two_contexts_one_kernel() {
  Pair a(0), b(0);
  const auto run = [](Pair& p, unsigned kib) {
    launch(p.ctx, {.name = "dynamic", .block = 32, .shared_bytes = size_t{kib} << 10}, dynamic_kernel, p.y(),
           kib * 256 - 1);
    p.ctx.synchronize();
  };
  run(a, 90);
  run(b, 50);
  run(a, 90);
  run(b, 60);
}
void stream_of_another_device() {
  cudaStream_t stream = nullptr;
  expect(cudaSetDevice(1), "device");
  expect(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "stream");
  expect(cudaSetDevice(0), "device");
  const float* x = nullptr;
  float* y = nullptr;
  void* arguments[] = {&x, &y};
  emulation::announce("copy", emulation::signature<const float*, float*>);
  expect(cudaLaunchKernel(reinterpret_cast<const void*>(copy_kernel), 1, 32, arguments, 0, stream), "launch");
}
void memory_of_another_device() {
  Pair a(0), b(1);
  launch(b.ctx, {.name = "copy", .block = 32}, copy_kernel, a.x(), b.y());
  b.ctx.synchronize();
}
/// Makes a call that CUDA forbids in a capture, and checks the state of the capture after it.
void in_capture(const std::function<cudaError_t(cudaStream_t)>& call) {
  cudaStream_t stream = nullptr;
  cudaGraph_t graph = nullptr;
  expect(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "stream");
  expect(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "capture");
  const cudaError_t first = call(stream), then = cudaStreamEndCapture(stream, &graph);
  if (first == cudaSuccess && then == cudaSuccess) return;
  throw std::runtime_error(std::string(cudaGetErrorName(first)) + ", then " + cudaGetErrorName(then));
}

/// Host code of a .cu file that reads device memory, or behind the end of its own. AddressSanitizer ends the process.
[[gnu::noinline]] void print(const int* numbers, size_t i) { std::printf("%d\n", numbers[i]); }
void device_memory_on_the_host() {
  void* p = nullptr;
  expect(cudaMalloc(&p, 16), "memory");
  print(static_cast<const int*>(p), 0);
}
void overrun_on_the_host() {
  const std::vector<int> numbers(4, 1);
  print(numbers.data(), numbers.size());
}

int run(const std::string& kind) {
  const std::map<std::string, std::function<void()>> kinds = {
      {"uploads", [] { uploads(Missing::nothing); }},
      {"upload_over_pinned_memory", [] { uploads(Missing::pinned_memory); }},
      {"upload_without_arrival", [] { uploads(Missing::arrival); }},
      {"upload_without_taking", [] { uploads(Missing::taking); }},
      {"device_memory_on_the_host", device_memory_on_the_host},
      {"overrun_on_the_host", overrun_on_the_host},
      {"sticky", sticky},
      {"seen_by_an_event", seen_by_an_event},
      {"two_contexts_one_kernel", two_contexts_one_kernel},
      {"two_devices", two_devices},
      {"graph_outlives_context", graph_outlives_context},
      {"stream_of_another_device", stream_of_another_device},
      {"memory_of_another_device", memory_of_another_device},
      {"nothing_in_capture", [] { in_capture([](cudaStream_t) { return cudaSuccess; }); }},
      {"allocation_in_capture",
       [] {
         in_capture([](cudaStream_t) {
           void* p = nullptr;
           return cudaMalloc(&p, 16);
         });
       }},
      {"synchronize_in_capture", [] { in_capture(cudaStreamSynchronize); }},
  };
  const auto found = kinds.find(kind);
  if (found == kinds.end()) return std::printf("%s: no such kind\n", kind.c_str()), 2;
  found->second();
  return 0;
}

}  // namespace

int main(int argc, char** argv) try {
  if (argc != 2) return 2;
  return run(argv[1]);
} catch (const std::exception& e) {
  std::printf("%s\n", e.what());
  return 1;
}
