// Implements runtime.h with CUDA's runtime library. The library is linked statically and finds the driver at run time,
// so programs also start on machines without CUDA. The emulated build has functions of the same names
// (emulated/cuda_runtime.h), so tests run this file without a GPU.
#include "runtime/runtime.h"

#if !defined(NACRE_EMULATED)
#include <cuda_runtime.h>
#endif

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <string>
#include <vector>

#include "runtime/gradient_sums.h"
#include "runtime/host.h"
#include "runtime/thread_pool.h"

namespace nacre::cuda {
namespace {

[[noreturn]] void throw_device(const std::string& what) { throw Error(ErrorKind::device, what); }

std::string words(cudaError_t e) { return std::string(cudaGetErrorString(e)) + " (" + cudaGetErrorName(e) + ")"; }

void check(cudaError_t e, const char* what) {
  if (e == cudaSuccess) [[likely]]
    return;
  (void)cudaGetLastError();  // clears the error, which the next call would report again
  throw_device(std::string("CUDA: ") + what + ": " + words(e));
}

/// Whether this process cannot use the device any more after the error. By number, because older toolkits lack some
/// names.
bool breaks_device(cudaError_t e) {
  switch (static_cast<int>(e)) {
    case 214:  // cudaErrorECCUncorrectable
    case 220:  // cudaErrorNvlinkUncorrectable
    case 226:  // cudaErrorContained
    case 700:  // cudaErrorIllegalAddress
    case 702:  // cudaErrorLaunchTimeout
    case 710:  // cudaErrorAssert
    case 714:  // cudaErrorHardwareStackError
    case 715:  // cudaErrorIllegalInstruction
    case 716:  // cudaErrorMisalignedAddress
    case 717:  // cudaErrorInvalidAddressSpace
    case 718:  // cudaErrorInvalidPc
    case 719:  // cudaErrorLaunchFailure
    case 721:  // cudaErrorTensorMemoryLeak
    case 810:  // cudaErrorMpsClientTerminated
    case 911:  // cudaErrorExternalDevice
    case 999:  // cudaErrorUnknown
      return true;
    default:
      return false;
  }
}

/// The limit of dynamic shared memory that was set for a kernel.
struct SharedLimit {
  const void* kernel;
  size_t bytes;
};
size_t& shared_limit_of(std::vector<SharedLimit>& all, const void* kernel) {
  for (SharedLimit& a : all)
    if (a.kernel == kernel) return a.bytes;
  return all.emplace_back(SharedLimit{kernel, 0}).bytes;
}
constexpr size_t max_kernels = 1024;  // reserved in tables, so that a launch does not allocate

/// CUDA's own environment variable: a launch returns when its kernel has ended, with that kernel's error.
const bool launches_block = [] {
  const char* text = std::getenv("CUDA_LAUNCH_BLOCKING");
  return text != nullptr && std::strcmp(text, "1") == 0;
}();

/// State shared by all contexts on a device, until the process ends.
struct DeviceState {
  std::atomic<bool> is_broken{false};
  std::mutex mutex;
  std::string broken_message;              // the error of every call after a kernel failed
  std::vector<SharedLimit> shared_limits;  // entries are never removed
};
DeviceState& device_state(int index) {
  static std::mutex mutex;
  // Never destroyed: a Runtime in a static object may be destroyed after it. Addresses in a map stay valid.
  static auto* const states = new std::map<int, DeviceState>;
  const std::lock_guard lock(mutex);
  DeviceState& state = (*states)[index];
  state.shared_limits.reserve(max_kernels);
  return state;
}

/// Makes the device current. The current device belongs to the thread, and the caller may have set another.
cudaError_t make_current(int index) {
  int current = -1;
  if (cudaGetDevice(&current) == cudaSuccess && current == index) return cudaSuccess;
  return cudaSetDevice(index);
}

std::string version(int v) { return std::to_string(v / 1000) + "." + std::to_string(v % 1000 / 10); }

std::string text(dim3 d) { return std::to_string(d.x) + " x " + std::to_string(d.y) + " x " + std::to_string(d.z); }

std::string capability(const cudaDeviceProp& p) { return std::to_string(p.major) + "." + std::to_string(p.minor); }

/// The reason why the kernels do not run on a device, worded to follow its name; empty if they run.
std::string unusable(const cudaDeviceProp& p, int driver) {
  if (p.major < 8) return "has compute capability " + capability(p) + "; expected 8.0 or newer";
  // The library has machine code for 8.x and 9.0. For other devices the driver compiles PTX. Any driver of the same
  // major version supports the runtime, but it reads PTX only up to its own version.
  if ((p.major > 9 || (p.major == 9 && p.minor > 0)) && driver / 10 < CUDART_VERSION / 10)
    return "has compute capability " + capability(p) +
           ", for which the driver compiles the kernels: expected a driver for CUDA " + version(CUDART_VERSION) +
           " or newer, this one is for " + version(driver);
  return "";
}

}  // namespace

// ---- Runtime

struct Runtime::Impl {
  struct Count {
    const char* name = nullptr;
    int64_t launches = 0;
  };
  /// An upload: host and device staging memory, and the events of its arrival there and of the copy out of it.
  struct Upload {
    void* pinned = nullptr;
    void* device = nullptr;
    size_t bytes = 0;
    cudaEvent_t arrived = nullptr, taken = nullptr;
  };
  /// The last kernels queued since the stream was last synchronised without an error: candidates for a later error.
  struct Suspects {
    static constexpr size_t most = 8;
    const char* names[most] = {};
    size_t count = 0;
    void add(const char* name) { names[count++ % most] = name; }
    std::string words() const {
      std::string out = count > most ? "... " : "";
      for (size_t i = count > most ? count - most : 0; i < count; ++i)
        out += std::string(out.empty() || out.ends_with(' ') ? "" : ", ") + names[i % most];
      return out;
    }
  };

  int index = 0;
  cudaStream_t stream = nullptr, upload_stream = nullptr;
  std::string description;
  DeviceLimits limits;
  // counts: launches by name since the start. recording: where those of the capture in progress go; null outside of
  // one.
  std::vector<Count> counts;
  std::vector<Count>* recording = nullptr;
  std::vector<SharedLimit> shared_limits;  // lower bounds of the device's limits, readable without its lock
  std::map<void*, Upload> uploads;         // by destination; freed with the Runtime
  Suspects suspects;
  SumBatch noted_sums;
  DeviceState* device = nullptr;
  std::recursive_mutex call_mutex;  // recursive: the steps of a capture call enter() again
  const uint32_t born = fork_generation();

  ~Impl() {
    if (stream == nullptr || born != fork_generation()) return;
    const OnDevice on_device(index);
    (void)cudaStreamSynchronize(stream);
    for (auto& [to, upload] : uploads) release(upload);
    if (upload_stream != nullptr) (void)cudaStreamDestroy(upload_stream);
    (void)cudaStreamDestroy(stream);
  }
  /// Called first by every member: excludes other threads until the result is destroyed. Checks for a fork before it
  /// locks, because a child may have copied the mutex while another thread held it.
  [[nodiscard]] std::unique_lock<std::recursive_mutex> enter() {
    if (born != fork_generation()) [[unlikely]]
      throw Error(
          ErrorKind::usage,
          "CUDA: this process was forked after the context was created, and CUDA does not work in such a process; "
          "fork before the first context, or start a new program (exec)");
    if (device->is_broken.load(std::memory_order_acquire)) [[unlikely]]
      throw_device(device->broken_message);
    std::unique_lock lock(call_mutex);
    expect(make_current(index), "cudaSetDevice");
    return lock;
  }
  void count(std::vector<Count>& where, const char* name, int64_t n) {
    for (Count& c : where)
      // Names are literals, so the comparison of pointers mostly decides. The table is short, so the search is linear.
      if (c.name == name || std::strcmp(c.name, name) == 0) {
        c.launches += n;
        return;
      }
    where.push_back({name, n});
  }
  void count(const char* name) { count(recording != nullptr ? *recording : counts, name, 1); }
  void refuse_in_capture(const char* what) const {
    if (recording != nullptr)
      throw Error(ErrorKind::usage,
                  std::string("capture: the step calls ") + what + ", which cannot be part of a graph");
  }
  /// Throws for an error. Any call may return the error of a kernel that was launched before.
  void expect(cudaError_t e, const char* what) {
    if (e == cudaSuccess) [[likely]]
      return;
    (void)cudaGetLastError();
    const std::string text = std::string("CUDA: ") + what + ": " + words(e);
    if (e == cudaErrorMemoryAllocation) throw Error(ErrorKind::memory, text + "; lower batch_size or segment_length");
    // The first error that broke the device is kept. Later calls, also of other contexts, report it instead of their
    // own.
    if (!breaks_device(e)) throw_device(text);
    const std::lock_guard lock(device->mutex);
    if (device->broken_message.empty()) {
      device->broken_message = "CUDA: " + words(e) + ", seen by " + what;
      if (suspects.count > 0)
        device->broken_message +=
            "; the failed kernel is one of those that this context launched before: " + suspects.words();
      if (suspects.count > 1) device->broken_message += " (CUDA_LAUNCH_BLOCKING=1 in the environment shows which)";
      device->is_broken.store(true, std::memory_order_release);
    }
    throw_device(device->broken_message);
  }
  /// Waits for the stream. Afterwards no launched kernel is under suspicion.
  void wait(const char* what) {
    expect(cudaStreamSynchronize(stream), what);
    suspects.count = 0;
  }
  /// Sets a kernel's limit of dynamic shared memory, which CUDA requires beyond 48 KiB. Throws if the device has less.
  void raise_shared_limit(const Launch& how, const void* kernel) {
    if (how.shared_bytes == 0) return;
    // Two tables: this Runtime's is read under its own lock at every launch; the device's is locked only when the limit
    // grows.
    size_t& limit = shared_limit_of(shared_limits, kernel);
    if (limit >= how.shared_bytes) return;
    // The limit belongs to the kernel on this device, and all contexts share it.
    const std::lock_guard lock(device->mutex);
    size_t& bytes = shared_limit_of(device->shared_limits, kernel);
    if (bytes < how.shared_bytes) {
      const cudaError_t e =
          cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(how.shared_bytes));
      if (e == cudaErrorInvalidValue) {
        (void)cudaGetLastError();
        throw_device(std::string("CUDA: ") + how.name + ": " + std::to_string(how.shared_bytes) +
                     " bytes of dynamic shared memory, expected at most " + std::to_string(limits.shared_per_block) +
                     " per block");
      }
      if (e != cudaSuccess) return;  // the launch will fail and report it
      bytes = how.shared_bytes;
    }
    limit = bytes;
  }
  void prepare_upload(Upload& u, size_t bytes) {
    // A destination that gets more bytes than before gets new staging memory; the caller has waited for all work on the
    // old.
    if (u.bytes >= bytes) return;
    release(u);
    expect(cudaMallocHost(&u.pinned, bytes), "upload: pinned memory");
    expect(cudaMalloc(&u.device, bytes), "upload: device memory");
    expect(cudaEventCreateWithFlags(&u.arrived, cudaEventDisableTiming), "upload: event");
    expect(cudaEventCreateWithFlags(&u.taken, cudaEventDisableTiming), "upload: event");
    u.bytes = bytes;
  }
  static void release(Upload& u) noexcept {
    if (u.pinned != nullptr) (void)cudaFreeHost(u.pinned);
    if (u.device != nullptr) (void)cudaFree(u.device);
    if (u.arrived != nullptr) (void)cudaEventDestroy(u.arrived);
    if (u.taken != nullptr) (void)cudaEventDestroy(u.taken);
    u = {};
  }
};

Runtime::Runtime(int index) : impl_(std::make_shared<Impl>()) {
  std::string why;
  const int devices = device_count(&why), wanted = index;
  const std::string name = wanted == 0 ? "cuda" : "cuda:" + std::to_string(wanted);
  if (devices == 0) throw_device("device " + name + ": " + why + "; use --device cpu");
  if (wanted < 0 || wanted >= devices)
    throw_device("device " + name + ": this machine has " + std::to_string(devices) +
                 "; expected cuda:0 to cuda:" + std::to_string(devices - 1));
  Impl& r = *impl_;
  r.index = wanted;
  r.device = &device_state(wanted);
  const auto lock = r.enter();
  cudaDeviceProp p{};
  check(cudaGetDeviceProperties(&p, wanted), "cudaGetDeviceProperties");
  int driver = 0, runtime_version = 0;
  (void)cudaDriverGetVersion(&driver);
  (void)cudaRuntimeGetVersion(&runtime_version);
  if (const std::string reason = unusable(p, driver); !reason.empty())
    throw_device("device " + name + ": " + p.name + " " + reason);
  r.description = std::string(p.name) + ", compute capability " + capability(p) + ", driver for CUDA " +
                  version(driver) + ", CUDA runtime " + version(runtime_version);
  r.limits = {.major = p.major,
              .minor = p.minor,
              .multiprocessors = p.multiProcessorCount,
              .shared_per_block = p.sharedMemPerBlockOptin,
              .shared_per_multiprocessor = p.sharedMemPerMultiprocessor,
              .registers_per_block = p.regsPerBlock,
              .threads_per_multiprocessor = p.maxThreadsPerMultiProcessor};
  // Non-blocking: these streams do not wait for the legacy default stream, which other code of the process may use.
  check(cudaStreamCreateWithFlags(&r.stream, cudaStreamNonBlocking), "stream");
  check(cudaStreamCreateWithFlags(&r.upload_stream, cudaStreamNonBlocking), "stream");
  // So that a launch does not allocate.
  r.counts.reserve(256);
  r.shared_limits.reserve(max_kernels);
}
Runtime::~Runtime() = default;

void Runtime::launch(const Launch& how, const KernelCall& call) {
  if (how.grid.x == 0 || how.grid.y == 0 || how.grid.z == 0) return;
  Impl& r = *impl_;
  const auto lock = r.enter();
  // A kernel is a suspect before it is queued: with CUDA_LAUNCH_BLOCKING the launch itself returns its error. It is
  // counted after, so that the counts hold what was really queued. In a capture nothing runs yet.
  r.raise_shared_limit(how, call.function);
  if (r.recording == nullptr) r.suspects.add(how.name);
  const cudaError_t e =
      cudaLaunchKernel(call.function, how.grid, how.block, call.arguments, how.shared_bytes, r.stream);
  if (e != cudaSuccess) [[unlikely]]
    r.expect(e, (std::string(how.name) + " (grid " + text(how.grid) + ", block " + text(how.block) + ", " +
                 std::to_string(how.shared_bytes) + " bytes of shared memory)")
                    .c_str());
  r.count(how.name);
  if (launches_block && r.recording == nullptr) r.suspects.count = 0;
}

void Runtime::zero(void* to, size_t bytes) {
  Impl& r = *impl_;
  const auto lock = r.enter();
  if (bytes > 0) r.expect(cudaMemsetAsync(to, 0, bytes, r.stream), "zero");
}
void Runtime::copy_on_device(void* to, const void* from, size_t bytes) {
  Impl& r = *impl_;
  const auto lock = r.enter();
  if (bytes > 0) r.expect(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, r.stream), "copy");
}
void Runtime::copy_to_device(void* to, const void* from, size_t bytes) {
  Impl& r = *impl_;
  const auto lock = r.enter();
  r.refuse_in_capture("write");
  if (bytes == 0) return;
  r.expect(cudaMemcpyAsync(to, from, bytes, cudaMemcpyHostToDevice, r.stream), "write");
  r.wait("write");  // `from` may be pinned memory, for which the copy returns early
}
void Runtime::copy_to_host(void* to, const void* from, size_t bytes) {
  Impl& r = *impl_;
  const auto lock = r.enter();
  r.refuse_in_capture("read");
  if (bytes == 0) return;
  r.expect(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToHost, r.stream), "read");
  r.wait("read");
}
void Runtime::synchronize() {
  const auto lock = impl_->enter();
  impl_->refuse_in_capture("synchronize");
  impl_->wait("synchronize");
}

void Runtime::upload(void* to, const void* from, size_t bytes) {
  Impl& r = *impl_;
  const auto lock = r.enter();
  r.refuse_in_capture("upload");
  if (bytes == 0) return;
  //   host --memcpy--> pinned --upload stream--> staging --first stream--> destination
  //
  // The first copy on the device overlaps with kernels. The second one is in the order of the first stream, because
  // kernels queued earlier may still read the destination.
  Impl::Upload& u = r.uploads[to];
  const bool first = u.bytes < bytes;
  if (first) r.wait("upload");
  r.prepare_upload(u, bytes);
  // The pinned memory is free once the previous batch has arrived, the device's staging memory once it was taken.
  if (!first) r.expect(cudaEventSynchronize(u.arrived), "upload");
  std::memcpy(u.pinned, from, bytes);
  if (!first) r.expect(cudaStreamWaitEvent(r.upload_stream, u.taken, 0), "upload");
  r.expect(cudaMemcpyAsync(u.device, u.pinned, bytes, cudaMemcpyHostToDevice, r.upload_stream), "upload");
  r.expect(cudaEventRecord(u.arrived, r.upload_stream), "upload");
  r.expect(cudaStreamWaitEvent(r.stream, u.arrived, 0), "upload");
  r.expect(cudaMemcpyAsync(to, u.device, bytes, cudaMemcpyDeviceToDevice, r.stream), "upload");
  r.expect(cudaEventRecord(u.taken, r.stream), "upload");
}

void* Runtime::allocate(size_t bytes) {
  Impl& r = *impl_;
  const auto lock = r.enter();
  r.refuse_in_capture("Memory's constructor");
  void* p = nullptr;
  // Lack of memory is an answer, not an error: Memory's constructor names the sizes that the user can change.
  const cudaError_t e = cudaMalloc(&p, bytes);
  if (e == cudaErrorMemoryAllocation) {
    (void)cudaGetLastError();
    return nullptr;
  }
  r.expect(e, "allocation");
  try {
    r.expect(cudaMemsetAsync(p, 0, bytes, r.stream), "allocation");
    r.wait("allocation");  // other streams and contexts may use the memory immediately
  } catch (...) {
    device_release(p, r.index);
    throw;
  }
  return p;
}
void device_release(void* p, int index) noexcept {
  if (p == nullptr) return;
  const OnDevice on_device(index);
  (void)cudaFree(p);
}
OnDevice::OnDevice(int index) noexcept : mode_(cudaStreamCaptureModeRelaxed) {
  // Relaxed mode: otherwise a cudaFree on this thread would invalidate the capture of another Runtime. The destructor
  // restores the previous mode.
  if (make_current(index) != cudaSuccess) (void)cudaGetLastError();
  auto mode = static_cast<cudaStreamCaptureMode>(mode_);
  (void)cudaThreadExchangeStreamCaptureMode(&mode);
  mode_ = mode;
}
OnDevice::~OnDevice() {
  auto mode = static_cast<cudaStreamCaptureMode>(mode_);
  (void)cudaThreadExchangeStreamCaptureMode(&mode);
}

std::function<void()> Runtime::capture(const std::function<void()>& step) {
  Impl& r = *impl_;
  const auto lock = r.enter();
  if (r.recording != nullptr) throw Error(ErrorKind::usage, "capture: called inside another capture");
  // Launches of the step are counted in `recorded` and added to the totals at every replay. Thread-local mode: calls of
  // other threads that a capture forbids, such as cudaMalloc, do not invalidate it. If the step throws, the capture is
  // ended and its graph destroyed, and the stream works as before.
  auto recorded = std::make_shared<std::vector<Impl::Count>>();
  r.expect(cudaStreamBeginCapture(r.stream, cudaStreamCaptureModeThreadLocal), "capture");
  r.recording = recorded.get();
  cudaGraph_t graph = nullptr;
  try {
    step();
  } catch (...) {
    r.recording = nullptr;
    (void)make_current(r.index);
    (void)cudaStreamEndCapture(r.stream, &graph);
    if (graph != nullptr) (void)cudaGraphDestroy(graph);
    (void)cudaGetLastError();  // clears the error of an invalidated capture
    throw;
  }
  r.recording = nullptr;
  (void)r.enter();  // the step may have made another device current
  r.expect(cudaStreamEndCapture(r.stream, &graph), "capture");
  cudaGraphExec_t made = nullptr;
  const cudaError_t e = cudaGraphInstantiate(&made, graph, 0);
  (void)cudaGraphDestroy(graph);
  r.expect(e, "capture");
  const std::shared_ptr<CUgraphExec_st> exec(made, [index = r.index](cudaGraphExec_t g) {
    const OnDevice on_device(index);
    (void)cudaGraphExecDestroy(g);
  });
  // The closure shares the Impl, so the stream lives as long as the graph does.
  return [impl = impl_, exec, recorded] {
    const auto replay_lock = impl->enter();
    impl->refuse_in_capture("replay");
    for (const Impl::Count& c : *recorded) impl->count(impl->counts, c.name, c.launches);
    impl->suspects.add("a captured step");
    impl->expect(cudaGraphLaunch(exec.get(), impl->stream), "replay");
  };
}

int64_t Runtime::launches(std::string_view name) const {
  const std::lock_guard lock(impl_->call_mutex);
  int64_t n = 0;
  for (const Impl::Count& c : (impl_->recording != nullptr ? *impl_->recording : impl_->counts))
    if (name.empty() || name == c.name) n += c.launches;
  return n;
}
const char* Runtime::description() const { return impl_->description.c_str(); }
const DeviceLimits& Runtime::limits() const { return impl_->limits; }
SumBatch& Runtime::noted_sums() { return impl_->noted_sums; }
void* Runtime::stream() const { return impl_->stream; }
std::unique_lock<std::recursive_mutex> Runtime::enter() { return impl_->enter(); }
void Runtime::library_failed(const std::string& what, bool memory) {
  const auto lock = impl_->enter();
  // Libraries report the error of an earlier kernel as their own.
  if (impl_->recording == nullptr) impl_->expect(cudaStreamSynchronize(impl_->stream), what.c_str());
  throw Error(memory ? ErrorKind::memory : ErrorKind::device, what);
}
void Runtime::count(const char* name) {
  const auto lock = impl_->enter();
  if (impl_->recording == nullptr) impl_->suspects.add(name);
  impl_->count(name);
}
void Runtime::refuse_in_capture(const char* what) const {
  const auto lock = impl_->enter();
  impl_->refuse_in_capture(what);
}

// ---- Event

struct Event::Impl {
  cudaEvent_t event = nullptr;
  std::shared_ptr<Runtime::Impl> runtime;  // the event was recorded in its stream
  ~Impl() {
    if (event == nullptr) return;
    const OnDevice on_device(runtime->index);
    (void)cudaEventDestroy(event);
  }
  Impl() = default;
  Impl(const Impl&) = delete;
  Impl& operator=(const Impl&) = delete;
};
Event::Event() : impl_(std::make_unique<Impl>()) {}
Event::~Event() = default;
Event::Event(Event&&) noexcept = default;
Event& Event::operator=(Event&&) noexcept = default;
void Event::record(Context& ctx) {
  const std::shared_ptr<Runtime::Impl>& r = nacre::cuda::runtime(ctx).impl_;
  const auto lock = r->enter();
  r->refuse_in_capture("an event");
  if (impl_->runtime != r) impl_ = std::make_unique<Impl>();  // an event belongs to a device
  impl_->runtime = r;
  if (impl_->event == nullptr) r->expect(cudaEventCreate(&impl_->event), "event");
  r->expect(cudaEventRecord(impl_->event, r->stream), "event");
}
double Event::seconds_since(const Event& start) const {
  if (impl_->event == nullptr || start.impl_->event == nullptr)
    throw Error(ErrorKind::usage, "event: seconds_since called before both events were recorded");
  Runtime::Impl& r = *impl_->runtime;
  const auto lock = r.enter();
  float milliseconds = 0;
  r.expect(cudaEventSynchronize(start.impl_->event), "event");
  r.expect(cudaEventSynchronize(impl_->event), "event");
  r.expect(cudaEventElapsedTime(&milliseconds, start.impl_->event, impl_->event), "event");
  return 1e-3 * static_cast<double>(milliseconds);
}

// ---- devices

int device_count(std::string* why) {
  int driver = 0, devices = 0, built_with = CUDART_VERSION;
  const auto say = [&](const std::string& text) {
    if (why != nullptr) *why = text;
    return 0;
  };
  (void)cudaDriverGetVersion(&driver);
  if (driver == 0) return say("no NVIDIA driver was found");
  // Within a major version any driver supports any runtime.
  if (driver / 1000 < built_with / 1000)
    return say("the NVIDIA driver is too old: it supports CUDA " + version(driver) + ", expected " +
               std::to_string(built_with / 1000) + ".0 or newer");
  const cudaError_t e = cudaGetDeviceCount(&devices);
  if (e == cudaErrorNoDevice || (e == cudaSuccess && devices == 0)) return say("the driver finds no NVIDIA GPU");
  if (e != cudaSuccess) {
    (void)cudaGetLastError();
    return say(std::string("the driver does not answer: ") + cudaGetErrorString(e));
  }
  return devices;
}

CudaInventory inventory() {
  CudaInventory found;
  const int devices = device_count(&found.missing);
  int driver = 0, runtime_version = 0;
  (void)cudaDriverGetVersion(&driver);
  (void)cudaRuntimeGetVersion(&runtime_version);
  if (driver > 0) found.driver = version(driver);
  found.runtime = version(runtime_version);
  // cudaMemGetInfo needs each device to be current for a moment; the caller's device is restored at the end.
  int current = 0;
  (void)cudaGetDevice(&current);
  for (int i = 0; i < devices; ++i) {
    CudaInventory::Card card;
    cudaDeviceProp p{};
    if (const cudaError_t e = cudaGetDeviceProperties(&p, i); e != cudaSuccess) {
      (void)cudaGetLastError();
      card.unusable = "does not answer: " + words(e);
    } else {
      card.name = p.name;
      card.capability = capability(p);
      card.multiprocessors = p.multiProcessorCount;
      card.memory = p.totalGlobalMem;
      card.shared_per_block = p.sharedMemPerBlockOptin;
      card.unusable = unusable(p, driver);
      size_t all = 0;
      if (cudaSetDevice(i) != cudaSuccess || cudaMemGetInfo(&card.free, &all) != cudaSuccess) (void)cudaGetLastError();
    }
    found.cards.push_back(std::move(card));
  }
  if (devices > 0 && cudaSetDevice(current) != cudaSuccess) (void)cudaGetLastError();
  found.libraries = library_inventory();
  return found;
}

}  // namespace nacre::cuda
