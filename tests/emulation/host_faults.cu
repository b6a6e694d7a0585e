// What host code can do wrong around kernels, done on purpose, and what is right: the emulated devices must tell them
// apart. Each prints what was seen; see tests/CMakeLists.txt for the words.
//
//   nacre_host_faults KIND
#include <array>
#include <cstdio>
#include <cstring>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "device.cuh"
#include "emulation/scheduler.h"

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

/// Batches travel by pinned memory and a second stream, as Runtime::upload sends them, with one of its waits left out.
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
  std::printf(wrong == 0 ? "no fault\n" : "%d of %d batches are not those that were sent\n", wrong, batches);
}

struct Pair {
  Context ctx;
  Memory memory;
  explicit Pair(int device) : ctx({.device = {Device::cuda, device}}), memory(ctx, 64 * sizeof(float)) {}
  const float* x() const { return reinterpret_cast<const float*>(memory.data()); }
  float* y() const { return reinterpret_cast<float*>(memory.data()) + 32; }
};
std::string said(const std::function<void()>& f) {
  try {
    f();
  } catch (const Error& e) {
    return (e.kind() == ErrorKind::device ? "device error: " : "another error: ") + std::string(e.what());
  }
  return "nothing";
}
/// A kernel that failed is what every later call speaks of.
void sticky() {
  Pair p(0);
  std::vector<float> back(64);
  const View<const float> all(p.x(), {.channels = 64});
  launch(p.ctx, {.name = "well", .block = 32}, copy_kernel, p.x(), p.y());
  p.ctx.synchronize();
  launch(p.ctx, {.name = "failing", .block = 32}, trap_kernel, p.x(), p.y());
  launch(p.ctx, {.name = "behind", .block = 32}, copy_kernel, p.x(), p.y());
  const std::string first = said([&] { p.ctx.read<float>(all, back); });
  const std::string later[] = {said([&] { p.ctx.read<float>(all, back); }), said([&] { Memory more(p.ctx, 16); }),
                               said([&] { p.ctx.synchronize(); }),
                               said([&] { launch(p.ctx, {.name = "later", .block = 32}, copy_kernel, p.x(), p.y()); }),
                               said([&] { (void)p.ctx.capture([] {}); })};
  for (const std::string& l : later)
    if (l != first) return (void)std::printf("first: %s, then: %s\n", first.c_str(), l.c_str());
  std::printf("%s\n", first.c_str());
}

void two_devices() {
  Pair a(0), b(1);
  const std::vector<float> ones(64, 1.0f), twos(64, 2.0f);
  std::vector<float> one(64), two(64);
  const auto all = [](const Pair& p) {
    return View<float>(reinterpret_cast<float*>(p.memory.data()), {.channels = 64});
  };
  a.ctx.write<float>(ones, all(a));
  b.ctx.upload<float>(twos, all(b));
  Graph graph = b.ctx.capture([&] { launch(b.ctx, {.name = "copy", .block = 32}, copy_kernel, b.x(), b.y()); });
  std::thread([&] {  // whose current device is the first one
    graph.replay();
    launch(b.ctx, {.name = "copy", .block = 32}, copy_kernel, b.x(), b.y());
    b.ctx.read<float>(all(b), two);
  })
      .join();
  launch(a.ctx, {.name = "copy", .block = 32}, copy_kernel, a.x(), a.y());
  a.ctx.read<float>(all(a), one);
  std::printf(one == ones && two == twos ? "no fault\n" : "wrong values\n");
}
void graph_outlives_context() {
  Memory kept;
  std::optional<Graph> graph;
  {
    Context ctx({.device = {Device::cuda, 0}});
    kept = Memory(ctx, 64 * sizeof(float));
    float* const at = reinterpret_cast<float*>(kept.data());
    graph = ctx.capture([&] { launch(ctx, {.name = "copy", .block = 32}, copy_kernel, at, at + 32); });
  }
  graph->replay();
  std::printf("no fault\n");
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
  std::printf("no fault\n");
}
/// A call that CUDA forbids in a capture, and what becomes of the capture.
void in_capture(const std::function<cudaError_t(cudaStream_t)>& call) {
  cudaStream_t stream = nullptr;
  cudaGraph_t graph = nullptr;
  expect(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "stream");
  expect(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "capture");
  const cudaError_t first = call(stream), then = cudaStreamEndCapture(stream, &graph);
  std::printf("%s, then %s\n", cudaGetErrorName(first), cudaGetErrorName(then));
}

int run(const std::string& kind) {
  const std::map<std::string, std::function<void()>> kinds = {
      {"uploads", [] { uploads(Missing::nothing); }},
      {"upload_over_pinned_memory", [] { uploads(Missing::pinned_memory); }},
      {"upload_without_arrival", [] { uploads(Missing::arrival); }},
      {"upload_without_taking", [] { uploads(Missing::taking); }},
      {"sticky", sticky},
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
