// Streams, events, graphs and launches of the emulated devices. cuda_runtime.h says when work is done, streams.h how.
#include "runtime/emulated/streams.h"

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include <dlfcn.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "runtime/emulated/devices.h"
#include "runtime/emulated/memory.h"
#include "runtime/emulated/orders.h"
#include "runtime/emulated/traffic.h"

namespace nacre::emulation {

using Work = std::function<void()>;

/// How often an event was recorded in a queue, how often the queue reached it, and when it last did.
struct EventState {
  uint64_t recorded = 0, reached = 0;
  CUstream_st* stream = nullptr;
  std::chrono::steady_clock::time_point at;
};
/// One entry of a queue: work, or an event that is reached or waited for.
struct Entry {
  enum Kind : uint8_t { work, reach, wait } kind;
  std::shared_ptr<const Work> run;
  std::shared_ptr<EventState> event;
  // Of events: which record of the event is meant. An event may be recorded again while an earlier record still waits
  // in a queue.
  uint64_t ticket;
};

}  // namespace nacre::emulation

using namespace nacre::emulation;

struct CUevent_st {
  std::shared_ptr<EventState> state = std::make_shared<EventState>();
  int device;
  bool timed;
};
struct CUgraph_st {
  std::vector<std::shared_ptr<const Work>> nodes;
};
struct CUgraphExec_st {
  std::vector<std::shared_ptr<const Work>> nodes;  // in the order of the capture, in which they run
  int device;
};
struct CUstream_st {
  int device;
  std::deque<Entry> queue;              // the front runs next
  std::unique_ptr<CUgraph_st> capture;  // null: not capturing
  bool invalidated = false;             // a call that is forbidden in a capture was made: its end fails
};

namespace nacre::emulation {
namespace {

// A queue that grows longer is run, to limit memory; a device may run it at any time.
constexpr size_t longest_queue = 4096;

std::recursive_mutex& mutex() {
  static auto* const m = new std::recursive_mutex;
  return *m;
}
thread_local int current_device = 0;
thread_local cudaError_t last_error = cudaSuccess;
thread_local std::vector<CUstream_st*> capturing;  // captures that this thread began, not in relaxed mode
thread_local cudaStreamCaptureMode thread_mode = cudaStreamCaptureModeThreadLocal;
thread_local const char* announced_name = nullptr;  // of the next cudaLaunchKernel; see announce()
thread_local const Signature* announced = nullptr;

struct KernelFacts {
  size_t arrays = 0;         // static shared memory, known once it ran
  size_t dynamic_limit = 0;  // set by cudaFuncSetAttribute; 0: not set
};
struct State {
  std::set<CUstream_st*> streams;
  std::map<std::pair<int, const void*>, KernelFacts> kernels;  // by device and function: attributes belong to a device
  cudaError_t broken[device_count] = {};                       // per device, the error that broke it
  uint64_t launches = 0, waits = 0;                            // kernels that ran; calls that waited
};
State& state() {
  static auto* const s = new State;
  return *s;
}
constexpr size_t shared_without_asking = 48 << 10;

/// Drops all work of a broken device. Its events count as reached, so that no wait is endless.
void drop(int device) {
  for (CUstream_st* s : state().streams) {
    if (s->device != device) continue;
    for (const Entry& e : s->queue)
      if (e.kind == Entry::reach) e.event->reached = std::max(e.event->reached, e.ticket);
    s->queue.clear();
  }
}
/// Every later call for this device returns the error.
void break_device(int device, cudaError_t e) {
  state().broken[device] = e;
  drop(device);
}

/// Runs the next entry of a queue. Returns false if it waits for an event that was not reached.
bool step(CUstream_st& s) {
  Entry e = std::move(s.queue.front());
  // A wait stays at the front, so the queue is blocked.
  if (e.kind == Entry::wait && e.event->reached < e.ticket) {
    s.queue.front() = std::move(e);
    return false;
  }
  s.queue.pop_front();
  if (e.kind == Entry::reach) {
    e.event->reached = e.ticket;
    e.event->at = std::chrono::steady_clock::now();
  }
  if (e.kind != Entry::work) return true;
  try {
    (*e.run)();
  } catch (const Trap& t) {
    std::fprintf(stderr, "emulated device: %s\n", t.what());
    break_device(s.device, cudaErrorLaunchFailure);
  } catch (const std::exception& fault) {
    // CUDA's functions do not throw. A caller that waits gets an error. If none waits, the process still fails at exit.
    std::fprintf(stderr, "emulated device: %s\n", fault.what());
    break_device(s.device, cudaErrorLaunchFailure);
    static const int registered = std::atexit([] {
      std::fflush(nullptr);
      _exit(70);
    });
    (void)registered;
  }
  return true;
}
/// Runs a queue to its end, or until the event was reached. Runs other queues as far as this one waits for them.
void run_until(CUstream_st& s, const EventState* event = nullptr, uint64_t ticket = 0) {
  while (!s.queue.empty() && (event == nullptr || event->reached < ticket)) {
    if (step(s)) continue;
    // The recursion ends: an event is recorded before it is waited for, so waits form no cycle.
    const Entry& blocked = s.queue.front();
    const std::shared_ptr<EventState> waited = blocked.event;
    run_until(*waited->stream, waited.get(), blocked.ticket);
  }
}
/// Called before a wait: every second time, all other queues run first as far as they can without this one.
void before_waiting(const CUstream_st* waited) {
  State& all = state();
  if (++all.waits % 2 == 0) return;
  for (bool progress = true; progress;) {
    progress = false;
    for (CUstream_st* s : all.streams)
      while (s != waited && !s->queue.empty() && step(*s)) progress = true;
  }
}

/// Queues work, or adds it to the graph that the stream captures.
cudaError_t add(const Api& api, cudaStream_t stream, Work work) {
  if (stream == nullptr || !state().streams.contains(stream)) return api.fails(cudaErrorInvalidResourceHandle);
  if (const cudaError_t e = api.broken(stream->device); e != cudaSuccess) return e;
  // Shared, because a captured node runs at every replay of its graph.
  auto shared = std::make_shared<const Work>(std::move(work));
  if (stream->capture) {
    stream->capture->nodes.push_back(std::move(shared));
    return cudaSuccess;
  }
  stream->queue.push_back({Entry::work, std::move(shared), nullptr, 0});
  if (stream->queue.size() > longest_queue) run_until(*stream);
  return cudaSuccess;
}

/// NACRE_EMULATION_LAUNCHES: writes the program, the offset of each kernel in it, and the most threads it was launched
/// with. scripts/check_kernels.sh compares these with the registers that nvcc assigned to the kernel.
class LaunchLog {
 public:
  LaunchLog() {
    const char* folder = std::getenv("NACRE_EMULATION_LAUNCHES");
    if (folder == nullptr) return;
    mkdir(folder, 0777);
    const std::string name = std::string(folder) + "/" + std::to_string(getpid());
    file_ = std::fopen(name.c_str(), "a");  // an earlier process may have had the same id
    if (file_ == nullptr) throw Error(ErrorKind::io, name + ": cannot write");
  }
  void note(const void* function, unsigned threads) {
    if (file_ == nullptr) return;
    unsigned& most = most_[function];
    if (threads <= most) return;
    most = threads;
    Dl_info program{};
    if (dladdr(function, &program) == 0) throw Fault("launch: the kernel is in no loaded program");
    std::fprintf(file_, "%s %zx %u\n", program.dli_fname,
                 static_cast<size_t>(static_cast<const char*>(function) - static_cast<const char*>(program.dli_fbase)),
                 threads);
    std::fflush(file_);
  }

 private:
  std::FILE* file_ = nullptr;
  std::map<const void*, unsigned> most_;
};

void expect_memory(const char* what, const void* at, size_t bytes) {
  if (!device_of(at, bytes)) throw Fault(std::string(what) + ": not device memory, or beyond its buffer");
}

/// A launch in a queue, with a copy of its arguments.
struct Queued {
  std::string name;
  const void* function;
  const Signature* signature;
  dim3 grid, block;
  size_t dynamic;
  unsigned edges;
  int device;
  std::vector<std::byte> values;  // of the parameters
  std::vector<void*> arguments;   // their addresses in `values`, as cudaLaunchKernel takes them
  std::string identity;           // the function's address and the parameters' bytes

  void copy(void* const* from) {
    // The parameters, one after the other as the ABI aligns them, in one block of bytes.
    size_t bytes = 0;
    std::vector<size_t> at;
    for (const Signature::Parameter& p : signature->parameters) {
      bytes = (bytes + p.alignment - 1) / p.alignment * p.alignment;
      at.push_back(bytes);
      bytes += p.bytes;
    }
    constexpr size_t most_alignment = 64;
    values.resize(bytes + most_alignment);
    const auto base =
        (reinterpret_cast<uintptr_t>(values.data()) + most_alignment - 1) / most_alignment * most_alignment;
    for (size_t i = 0; i < at.size(); ++i) {
      arguments.push_back(reinterpret_cast<void*>(base + at[i]));
      std::memcpy(arguments.back(), from[i], signature->parameters[i].bytes);
    }
    identity.assign(reinterpret_cast<const char*>(&function), sizeof(function));
    for (size_t i = 0; i < at.size(); ++i)
      identity.append(static_cast<const char*>(from[i]), signature->parameters[i].bytes);
  }
  static void one_thread(const void* self) {
    const auto& q = *static_cast<const Queued*>(self);
    q.signature->run(q.function, q.arguments.data());
  }
  void run() const {
    static const char* const to_break = std::getenv("NACRE_EMULATION_BREAK");
    if (to_break != nullptr && name == to_break) return break_device(device, cudaErrorIllegalAddress);
    KernelFacts& facts = state().kernels[{device, function}];
    const Open memory(device);
    // What is left for static arrays: of 48 KiB without the opt-in attribute, else of the whole limit of a block, of
    // which the attribute reserves its part. The arrays become known only now; their size is kept for the next launch's
    // check.
    const size_t asked = facts.dynamic_limit;
    run_in_orders(
        {name.c_str(), one_thread, this, identity}, grid, block,
        {dynamic, asked == 0 ? shared_without_asking - dynamic : emulation::device().limits.shared_per_block - asked,
         &facts.arrays, device},
        edges, state().launches++);
  }
};

}  // namespace

Api::Api() : lock_(mutex()) {}
int Api::device() const { return current_device; }
cudaError_t Api::broken(int device) const {
  const cudaError_t e = state().broken[device];
  if (e != cudaSuccess) last_error = e;
  return e;
}
cudaError_t Api::fails(cudaError_t e) const {
  last_error = e;
  return e;
}
cudaError_t Api::unsafe_in_capture() const {
  if (capturing.empty() || thread_mode == cudaStreamCaptureModeRelaxed) return cudaSuccess;
  for (CUstream_st* s : capturing) s->invalidated = true;
  return fails(cudaErrorStreamCaptureUnsupported);
}

void finish_device(int device) {
  for (CUstream_st* s : state().streams)
    if (device < 0 || s->device == device) run_until(*s);
}
void announce(const char* name, const Signature& signature) {
  announced_name = name;
  announced = &signature;
}
cudaError_t enqueue(cudaStream_t stream, Work work) {
  const Api api;
  return add(api, stream, [work = std::move(work)] {
    const Open memory(-1);
    work();
  });
}

}  // namespace nacre::emulation

// ---- devices and errors

cudaError_t cudaGetLastError() {
  const Api api;
  // The error of a broken device stays; all others are returned once.
  return std::exchange(last_error, state().broken[current_device]);
}
namespace {
struct ErrorText {
  cudaError_t code;
  const char *name, *text;
};
const ErrorText& error_text(cudaError_t e) {
  static constexpr ErrorText known[] = {
      {cudaErrorUnknown, "cudaErrorUnknown", "unknown error"},
      {cudaSuccess, "cudaSuccess", "no error"},
      {cudaErrorInvalidValue, "cudaErrorInvalidValue", "invalid argument"},
      {cudaErrorMemoryAllocation, "cudaErrorMemoryAllocation", "out of memory"},
      {cudaErrorInvalidConfiguration, "cudaErrorInvalidConfiguration", "invalid configuration argument"},
      {cudaErrorNoDevice, "cudaErrorNoDevice", "no CUDA-capable device is detected"},
      {cudaErrorInvalidDevice, "cudaErrorInvalidDevice", "invalid device ordinal"},
      {cudaErrorInvalidResourceHandle, "cudaErrorInvalidResourceHandle", "invalid resource handle"},
      {cudaErrorIllegalAddress, "cudaErrorIllegalAddress", "an illegal memory access was encountered"},
      {cudaErrorLaunchFailure, "cudaErrorLaunchFailure", "unspecified launch failure"},
      {cudaErrorStreamCaptureUnsupported, "cudaErrorStreamCaptureUnsupported",
       "operation not permitted when stream is capturing"},
      {cudaErrorStreamCaptureInvalidated, "cudaErrorStreamCaptureInvalidated",
       "operation failed due to a previous error during capture"},
      {cudaErrorStreamCaptureIsolation, "cudaErrorStreamCaptureIsolation",
       "dependency created on uncaptured work in another stream"},
  };
  for (const ErrorText& k : known)
    if (k.code == e) return k;
  return known[0];
}
}  // namespace
const char* cudaGetErrorName(cudaError_t e) { return error_text(e).name; }
const char* cudaGetErrorString(cudaError_t e) { return error_text(e).text; }
cudaError_t cudaDriverGetVersion(int* v) { return *v = CUDART_VERSION, cudaSuccess; }
cudaError_t cudaRuntimeGetVersion(int* v) { return *v = CUDART_VERSION, cudaSuccess; }
cudaError_t cudaGetDeviceCount(int* n) { return *n = device_count, cudaSuccess; }
cudaError_t cudaGetDevice(int* index) { return *index = current_device, cudaSuccess; }
cudaError_t cudaSetDevice(int index) {
  const Api api;
  if (index < 0 || index >= device_count) return api.fails(cudaErrorInvalidDevice);
  current_device = index;
  return api.broken(index);
}
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* p, int index) {
  const Api api;
  if (index < 0 || index >= device_count) return api.fails(cudaErrorInvalidDevice);
  const EmulatedDevice& d = device();
  *p = {.name = {},
        .major = d.limits.major,
        .minor = d.limits.minor,
        .multiProcessorCount = d.limits.multiprocessors,
        .regsPerBlock = d.limits.registers_per_block,
        .maxThreadsPerMultiProcessor = d.limits.threads_per_multiprocessor,
        .sharedMemPerBlockOptin = d.limits.shared_per_block,
        .sharedMemPerMultiprocessor = d.limits.shared_per_multiprocessor,
        .totalGlobalMem = d.memory};
  std::snprintf(p->name, sizeof p->name, "%s, emulated on the CPU", d.name);
  return cudaSuccess;
}

// ---- copies

cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind kind, cudaStream_t stream) {
  const Api api;
  if (kind == cudaMemcpyDeviceToDevice)
    return add(api, stream, [=] {
      const Open memory(-1);
      expect_memory("copy to", to, bytes), expect_memory("copy from", from, bytes);
      std::memmove(to, from, bytes);
      traffic_moved("copy", bytes, bytes);
    });
  if (kind == cudaMemcpyHostToDevice) {
    // Pinned memory is read when the copy runs; other memory is copied immediately.
    std::shared_ptr<std::vector<std::byte>> staged;
    const auto* p = static_cast<const std::byte*>(from);
    if (!pinned(from)) staged = std::make_shared<std::vector<std::byte>>(p, p + bytes);
    return add(api, stream, [=] {
      const Open memory(-1);
      expect_memory("write to", to, bytes);
      std::memcpy(to, staged ? staged->data() : from, bytes);
      traffic_moved("copy to device", 0, bytes);
    });
  }
  const cudaError_t e = add(api, stream, [=] {
    const Open memory(-1);
    expect_memory("read from", from, bytes), std::memcpy(to, from, bytes);
    traffic_moved("copy to host", bytes, 0);
  });
  // Pageable memory: the call returns when the bytes are there. Pinned memory: the caller must wait.
  if (e != cudaSuccess || stream->capture || pinned(to)) return e;
  run_until(*stream);
  return api.broken(stream->device);
}
cudaError_t cudaMemsetAsync(void* to, int value, size_t bytes, cudaStream_t stream) {
  const Api api;
  return add(api, stream, [=] {
    const Open memory(-1);
    expect_memory("zero", to, bytes);
    const auto found = buffers().find(static_cast<std::byte*>(to));
    // Returns the pages instead of writing zeros: tests of large shapes use more memory than the machine has.
    if (value == 0 && found != buffers().end() && found->second.kind == Buffer::mapped && found->second.bytes == bytes)
      madvise(to, bytes, MADV_DONTNEED);
    else
      std::memset(to, value, bytes);
    traffic_moved("memset", 0, bytes);
  });
}

// ---- streams and events

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned flags) {
  const Api api;
  if (const cudaError_t e = api.broken(current_device); e != cudaSuccess) return e;
  if (flags != cudaStreamNonBlocking) return api.fails(cudaErrorInvalidValue);  // the default stream is not modelled
  *stream = new CUstream_st{.device = current_device, .queue = {}, .capture = nullptr};
  state().streams.insert(*stream);
  return cudaSuccess;
}
cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  const Api api;
  if (!state().streams.contains(stream)) return api.fails(cudaErrorInvalidResourceHandle);
  run_until(*stream);
  state().streams.erase(stream);
  delete stream;
  return cudaSuccess;
}
cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  const Api api;
  if (!state().streams.contains(stream)) return api.fails(cudaErrorInvalidResourceHandle);
  if (const cudaError_t e = api.broken(stream->device); e != cudaSuccess) return e;
  if (stream->capture) {
    stream->invalidated = true;
    return api.fails(cudaErrorStreamCaptureUnsupported);
  }
  before_waiting(stream);
  run_until(*stream);
  return api.broken(stream->device);
}
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned) {
  const Api api;
  if (!state().streams.contains(stream)) return api.fails(cudaErrorInvalidResourceHandle);
  if (const cudaError_t e = api.broken(stream->device); e != cudaSuccess) return e;
  if (stream->capture) {
    stream->invalidated = true;
    return api.fails(cudaErrorStreamCaptureIsolation);
  }
  // As in CUDA: the wait is for the last record before this call; an event that was never recorded is not waited for.
  if (event->state->reached < event->state->recorded)
    stream->queue.push_back({Entry::wait, nullptr, event->state, event->state->recorded});
  return cudaSuccess;
}
cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned flags) {
  const Api api;
  if (const cudaError_t e = api.broken(current_device); e != cudaSuccess) return e;
  *event = new CUevent_st{.device = current_device, .timed = (flags & cudaEventDisableTiming) == 0};
  return cudaSuccess;
}
cudaError_t cudaEventCreate(cudaEvent_t* event) { return cudaEventCreateWithFlags(event, 0); }
cudaError_t cudaEventDestroy(cudaEvent_t event) {
  const Api api;
  delete event;
  return cudaSuccess;
}
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  const Api api;
  if (!state().streams.contains(stream) || event->device != stream->device)
    return api.fails(cudaErrorInvalidResourceHandle);
  if (const cudaError_t e = api.broken(stream->device); e != cudaSuccess) return e;
  if (stream->capture) {
    stream->invalidated = true;
    return api.fails(cudaErrorStreamCaptureUnsupported);
  }
  event->state->stream = stream;
  stream->queue.push_back({Entry::reach, nullptr, event->state, ++event->state->recorded});
  return cudaSuccess;
}
cudaError_t cudaEventSynchronize(cudaEvent_t event) {
  const Api api;
  if (const cudaError_t e = api.broken(event->device); e != cudaSuccess) return e;
  EventState& state = *event->state;
  if (state.reached < state.recorded) {
    before_waiting(state.stream);
    run_until(*state.stream, &state, state.recorded);
  }
  return api.broken(event->device);
}
cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t start, cudaEvent_t end) {
  const Api api;
  if (start->device != end->device || !start->timed || !end->timed || start->state->recorded == 0 ||
      end->state->recorded == 0)
    return api.fails(cudaErrorInvalidResourceHandle);
  *milliseconds = std::chrono::duration<float, std::milli>(end->state->at - start->state->at).count();
  return cudaSuccess;
}

// ---- launches and graphs

cudaError_t cudaFuncSetAttribute(const void* function, cudaFuncAttribute, int value) {
  const Api api;
  if (const cudaError_t e = api.broken(current_device); e != cudaSuccess) return e;
  KernelFacts& facts = state().kernels[{current_device, function}];
  if (value < 0 || static_cast<size_t>(value) + facts.arrays > device().limits.shared_per_block)
    return api.fails(cudaErrorInvalidValue);
  facts.dynamic_limit = static_cast<size_t>(value);
  return cudaSuccess;
}
cudaError_t cudaLaunchKernel(const void* function, dim3 grid, dim3 block, void** arguments, size_t shared,
                             cudaStream_t stream) {
  const Api api;
  // nvcc generates host code that knows the parameters. Here launch() announces them just before, on the same thread.
  const Signature* const signature = std::exchange(announced, nullptr);
  if (signature == nullptr) return api.fails(cudaErrorInvalidValue);
  if (!state().streams.contains(stream) || stream->device != current_device)
    return api.fails(cudaErrorInvalidResourceHandle);
  if (const cudaError_t e = api.broken(current_device); e != cudaSuccess) return e;
  // CUDA's limits of blocks and grids, for all compute capabilities that are supported.
  const uint64_t threads = uint64_t{block.x} * block.y * block.z;
  if (threads == 0 || threads > 1024 || block.z > 64 || grid.x == 0 || grid.y == 0 || grid.z == 0 ||
      grid.x > 0x7fffffffu || grid.y > 65535 || grid.z > 65535)
    return api.fails(cudaErrorInvalidConfiguration);
  const KernelFacts& facts = state().kernels[{current_device, function}];
  if (shared + facts.arrays > (facts.dynamic_limit > 0 ? facts.dynamic_limit + facts.arrays : shared_without_asking))
    return api.fails(cudaErrorInvalidValue);
  static auto* const log = new LaunchLog;
  log->note(function, static_cast<unsigned>(threads));
  auto queued = std::make_shared<Queued>();
  queued->name = announced_name;
  queued->function = function;
  queued->signature = signature;
  queued->grid = grid, queued->block = block;
  queued->dynamic = shared;
  // Everything that the launch depends on is copied, because it runs later.
  queued->edges = edge_blocks;
  queued->device = current_device;
  queued->copy(arguments);
  const cudaError_t e = add(api, stream, [queued] { queued->run(); });
  static const char* const blocking = std::getenv("CUDA_LAUNCH_BLOCKING");
  if (e != cudaSuccess || stream->capture || blocking == nullptr || std::strcmp(blocking, "1") != 0) return e;
  run_until(*stream);
  return api.broken(stream->device);
}

cudaError_t cudaThreadExchangeStreamCaptureMode(cudaStreamCaptureMode* mode) {
  std::swap(*mode, thread_mode);
  return cudaSuccess;
}
cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode mode) {
  const Api api;
  if (const cudaError_t e = api.broken(stream->device); e != cudaSuccess) return e;
  if (stream->capture) return api.fails(cudaErrorStreamCaptureUnsupported);
  stream->capture = std::make_unique<CUgraph_st>();
  stream->invalidated = false;
  if (mode != cudaStreamCaptureModeRelaxed) capturing.push_back(stream);
  return cudaSuccess;
}
cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
  const Api api;
  if (!stream->capture) return api.fails(cudaErrorInvalidValue);
  std::erase(capturing, stream);
  std::unique_ptr<CUgraph_st> made = std::move(stream->capture);
  *graph = nullptr;
  if (const cudaError_t e = api.broken(stream->device); e != cudaSuccess) return e;
  if (stream->invalidated) return api.fails(cudaErrorStreamCaptureInvalidated);
  *graph = made.release();
  return cudaSuccess;
}
cudaError_t cudaGraphInstantiate(cudaGraphExec_t* exec, cudaGraph_t graph, unsigned long long) {
  const Api api;
  // The nodes are shared, so the graph may be destroyed before its executables.
  *exec = new CUgraphExec_st{graph->nodes, current_device};
  return cudaSuccess;
}
cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  const Api api;
  delete graph;
  return cudaSuccess;
}
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec) {
  const Api api;
  delete exec;
  return cudaSuccess;
}
cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t stream) {
  const Api api;
  if (!state().streams.contains(stream) || exec->device != stream->device)
    return api.fails(cudaErrorInvalidResourceHandle);
  if (const cudaError_t e = api.broken(stream->device); e != cudaSuccess) return e;
  for (const auto& node : exec->nodes) stream->queue.push_back({Entry::work, node, nullptr, 0});
  if (stream->queue.size() > longest_queue) run_until(*stream);
  return cudaSuccess;
}
