// runtime.h on CUDA's runtime library, which is linked statically and finds the driver by itself: a program built
// so starts on any machine. The emulated build has functions of the same names (emulated/cuda_runtime.h), so that
// this file is run by tests without a GPU.
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

#include "runtime/host.h"
#include "runtime/thread_pool.h"

namespace nacre::cuda {
namespace {

[[noreturn]] void throw_device(const std::string& what) { throw Error(ErrorKind::device, what); }

std::string words(cudaError_t e) { return std::string(cudaGetErrorString(e)) + " (" + cudaGetErrorName(e) + ")"; }

void check(cudaError_t e, const char* what) {
  if (e == cudaSuccess) [[likely]]
    return;
  (void)cudaGetLastError();  // else the next call would report it again
  throw_device(std::string("CUDA: ") + what + ": " + words(e));
}

/// Errors after which a device does nothing for this process any more. By number, where older toolkits lack the name.
bool ends_the_device(cudaError_t e) {
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

/// Dynamic shared memory that was asked for, by kernel.
struct Asked {
  const void* kernel;
  size_t bytes;
};
size_t& asked_for(std::vector<Asked>& all, const void* kernel) {
  for (Asked& a : all)
    if (a.kernel == kernel) return a.bytes;
  return all.emplace_back(Asked{kernel, 0}).bytes;
}
constexpr size_t many_kernels = 1024;  // reserved, so that a launch does not allocate

/// CUDA's own switch: a launch returns when its kernel is done, and with that kernel's error.
const bool launches_block = [] {
  const char* text = std::getenv("CUDA_LAUNCH_BLOCKING");
  return text != nullptr && std::strcmp(text, "1") == 0;
}();

/// What all contexts on a device share, for as long as the process lives.
struct DeviceState {
  std::atomic<bool> is_broken{false};
  std::mutex mutex;
  std::string broken;        // what every call says after a kernel failed
  std::vector<Asked> asked;  // it only grows
};
DeviceState& device_state(int index) {
  static std::mutex mutex;
  static auto* const states = new std::map<int, DeviceState>;
  const std::lock_guard lock(mutex);
  DeviceState& state = (*states)[index];
  state.asked.reserve(many_kernels);
  return state;
}

/// The current device is a thread's own, and whoever calls may have set another.
cudaError_t make_current(int index) {
  int now = -1;
  if (cudaGetDevice(&now) == cudaSuccess && now == index) return cudaSuccess;
  return cudaSetDevice(index);
}

std::string version(int v) { return std::to_string(v / 1000) + "." + std::to_string(v % 1000 / 10); }

std::string text(dim3 d) { return std::to_string(d.x) + " x " + std::to_string(d.y) + " x " + std::to_string(d.z); }

std::string capability(const cudaDeviceProp& p) { return std::to_string(p.major) + "." + std::to_string(p.minor); }

/// Why the kernels do not run on a device, in words that follow its name; empty if they do.
std::string unusable(const cudaDeviceProp& p, int driver) {
  if (p.major < 8) return "has compute capability " + capability(p) + "; expected 8.0 or newer";
  // The library holds machine code for 8.x and 9.0. For others the driver compiles PTX, which it reads up to its own
  // version: any driver of a major version serves a runtime, but not its PTX.
  if ((p.major > 9 || (p.major == 9 && p.minor > 0)) && driver / 10 < CUDART_VERSION / 10)
    return "has compute capability " + capability(p) +
           ", for which the driver compiles the kernels: expected a driver for CUDA " + version(CUDART_VERSION) +
           " or newer, this one is for " + version(driver);
  return "";
}

}  // namespace

// ---- Runtime
// ----------------------------------------------------------------------------------------------------------------

struct Runtime::Impl {
  struct Count {
    const char* name = nullptr;
    int64_t launches = 0;
  };
  /// Host memory, device memory and the two events between which a batch travels.
  struct Upload {
    void* pinned = nullptr;
    void* device = nullptr;
    size_t bytes = 0;
    cudaEvent_t arrived = nullptr, taken = nullptr;
  };
  /// What was queued since the device was last known to be well, the newest behind; the oldest are forgotten.
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
  std::vector<Count> counts;
  std::vector<Count>* recording = nullptr;
  std::vector<Asked> asked;         // what the device's state has at least, without its lock
  std::map<void*, Upload> uploads;  // by destination, until the Runtime ends
  Suspects suspects;
  DeviceState* device = nullptr;
  std::recursive_mutex one_caller;  // a capture's steps enter again
  const uint32_t born = fork_generation();

  ~Impl() {
    if (stream == nullptr || born != fork_generation()) return;
    const OnDevice here(index);
    (void)cudaStreamSynchronize(stream);
    for (auto& [to, upload] : uploads) release(upload);
    if (upload_stream != nullptr) (void)cudaStreamDestroy(upload_stream);
    (void)cudaStreamDestroy(stream);
  }
  /// At the beginning of everything: other threads wait until the result is gone. In a forked child the mutex may have
  /// been copied as another thread held it.
  [[nodiscard]] std::unique_lock<std::recursive_mutex> enter() {
    if (born != fork_generation()) [[unlikely]]
      throw Error(ErrorKind::usage,
                  "CUDA: this process was forked off the one that made the context, where CUDA does not work; expected a "
                  "fork before the first context, or a new program (exec)");
    if (device->is_broken.load(std::memory_order_acquire)) [[unlikely]]
      throw_device(device->broken);
    std::unique_lock lock(one_caller);
    expect(make_current(index), "cudaSetDevice");
    return lock;
  }
  void count(std::vector<Count>& where, const char* name, int64_t n) {
    for (Count& c : where)
      if (c.name == name || std::strcmp(c.name, name) == 0) {
        c.launches += n;
        return;
      }
    where.push_back({name, n});
  }
  void count(const char* name) { count(recording != nullptr ? *recording : counts, name, 1); }
  void refuse_in_capture(const char* what) const {
    if (recording != nullptr)
      throw Error(ErrorKind::usage, std::string("capture: the step calls ") + what + ", which a graph cannot hold");
  }
  /// Any call may return the error of a kernel that was launched long before.
  void expect(cudaError_t e, const char* what) {
    if (e == cudaSuccess) [[likely]]
      return;
    (void)cudaGetLastError();
    const std::string text = std::string("CUDA: ") + what + ": " + words(e);
    if (e == cudaErrorMemoryAllocation) throw Error(ErrorKind::memory, text + "; lower batch_size or segment_length");
    if (!ends_the_device(e)) throw_device(text);
    const std::lock_guard lock(device->mutex);
    if (device->broken.empty()) {
      device->broken = "CUDA: " + words(e) + ", seen by " + what;
      if (suspects.count > 0)
        device->broken +=
            "; the kernel that failed is one of those launched before by this context: " + suspects.words();
      if (suspects.count > 1) device->broken += " (CUDA_LAUNCH_BLOCKING=1 in the environment tells which)";
      device->is_broken.store(true, std::memory_order_release);
    }
    throw_device(device->broken);
  }
  /// Waits for the stream: all that was launched is known to be well.
  void wait(const char* what) {
    expect(cudaStreamSynchronize(stream), what);
    suspects.count = 0;
  }
  /// Dynamic shared memory beside a kernel's arrays beyond 48 KiB has to be asked for, and no more than is there.
  void ask_for_shared(const Launch& how, const void* kernel) {
    if (how.shared_bytes == 0) return;
    size_t& known = asked_for(asked, kernel);
    if (known >= how.shared_bytes) return;
    // The limit is the kernel's on this device, whoever launches it.
    const std::lock_guard lock(device->mutex);
    size_t& bytes = asked_for(device->asked, kernel);
    if (bytes < how.shared_bytes) {
      const cudaError_t e =
          cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(how.shared_bytes));
      if (e == cudaErrorInvalidValue) {
        (void)cudaGetLastError();
        throw_device(std::string("CUDA: ") + how.name + ": " + std::to_string(how.shared_bytes) +
                     " bytes of dynamic shared memory, where a block has " + std::to_string(limits.shared_per_block) +
                     " in all");
      }
      if (e != cudaSuccess) return;  // the launch will say so
      bytes = how.shared_bytes;
    }
    known = bytes;
  }
  void make_upload(Upload& u, size_t bytes) {
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
  const auto alone = r.enter();
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
  check(cudaStreamCreateWithFlags(&r.stream, cudaStreamNonBlocking), "stream");
  check(cudaStreamCreateWithFlags(&r.upload_stream, cudaStreamNonBlocking), "stream");
  r.counts.reserve(256);
  r.asked.reserve(many_kernels);
}
Runtime::~Runtime() = default;

void Runtime::launch(const Launch& how, const KernelCall& call) {
  if (how.grid.x == 0 || how.grid.y == 0 || how.grid.z == 0) return;
  Impl& r = *impl_;
  const auto alone = r.enter();
  r.ask_for_shared(how, call.function);
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
  const auto alone = r.enter();
  if (bytes > 0) r.expect(cudaMemsetAsync(to, 0, bytes, r.stream), "zero");
}
void Runtime::copy_on_device(void* to, const void* from, size_t bytes) {
  Impl& r = *impl_;
  const auto alone = r.enter();
  if (bytes > 0) r.expect(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, r.stream), "copy");
}
void Runtime::copy_to_device(void* to, const void* from, size_t bytes) {
  Impl& r = *impl_;
  const auto alone = r.enter();
  r.refuse_in_capture("write");
  if (bytes == 0) return;
  r.expect(cudaMemcpyAsync(to, from, bytes, cudaMemcpyHostToDevice, r.stream), "write");
  r.wait("write");  // `from` may be anything, pinned memory of the caller's too
}
void Runtime::copy_to_host(void* to, const void* from, size_t bytes) {
  Impl& r = *impl_;
  const auto alone = r.enter();
  r.refuse_in_capture("read");
  if (bytes == 0) return;
  r.expect(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToHost, r.stream), "read");
  r.wait("read");
}
void Runtime::synchronize() {
  const auto alone = impl_->enter();
  impl_->refuse_in_capture("synchronize");
  impl_->wait("synchronize");
}

void Runtime::upload(void* to, const void* from, size_t bytes) {
  Impl& r = *impl_;
  const auto alone = r.enter();
  r.refuse_in_capture("upload");
  if (bytes == 0) return;
  Impl::Upload& u = r.uploads[to];
  const bool first = u.bytes < bytes;
  if (first) r.wait("upload");
  r.make_upload(u, bytes);
  // The last batch has left the pinned memory once it arrived, and the device's copy of it once it was taken.
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
  const auto alone = r.enter();
  r.refuse_in_capture("Memory's constructor");
  void* p = nullptr;
  const cudaError_t e = cudaMalloc(&p, bytes);
  if (e == cudaErrorMemoryAllocation) {
    (void)cudaGetLastError();
    return nullptr;
  }
  r.expect(e, "allocation");
  try {
    r.expect(cudaMemsetAsync(p, 0, bytes, r.stream), "allocation");
    r.wait("allocation");  // other streams and contexts may use it at once
  } catch (...) {
    device_release(p, r.index);
    throw;
  }
  return p;
}
void device_release(void* p, int index) noexcept {
  if (p == nullptr) return;
  const OnDevice here(index);
  (void)cudaFree(p);
}
OnDevice::OnDevice(int index) noexcept : mode_(cudaStreamCaptureModeRelaxed) {
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
  const auto alone = r.enter();
  if (r.recording != nullptr) throw Error(ErrorKind::usage, "capture: inside another capture");
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
    (void)cudaGetLastError();  // that of an invalidated capture
    throw;
  }
  r.recording = nullptr;
  (void)r.enter();  // the step may have used another device
  r.expect(cudaStreamEndCapture(r.stream, &graph), "capture");
  cudaGraphExec_t made = nullptr;
  const cudaError_t e = cudaGraphInstantiate(&made, graph, 0);
  (void)cudaGraphDestroy(graph);
  r.expect(e, "capture");
  const std::shared_ptr<CUgraphExec_st> exec(made, [index = r.index](cudaGraphExec_t g) {
    const OnDevice here(index);
    (void)cudaGraphExecDestroy(g);
  });
  return [kept = impl_, exec, recorded] {
    const auto in_turn = kept->enter();
    kept->refuse_in_capture("replay");
    for (const Impl::Count& c : *recorded) kept->count(kept->counts, c.name, c.launches);
    kept->suspects.add("a captured step");
    kept->expect(cudaGraphLaunch(exec.get(), kept->stream), "replay");
  };
}

int64_t Runtime::launches(std::string_view name) const {
  const std::lock_guard alone(impl_->one_caller);
  int64_t n = 0;
  for (const Impl::Count& c : impl_->counts)
    if (name.empty() || name == c.name) n += c.launches;
  return n;
}
const char* Runtime::description() const { return impl_->description.c_str(); }
const DeviceLimits& Runtime::limits() const { return impl_->limits; }
void* Runtime::stream() const { return impl_->stream; }
std::unique_lock<std::recursive_mutex> Runtime::enter() { return impl_->enter(); }
void Runtime::library_failed(const std::string& what, bool memory) {
  const auto alone = impl_->enter();
  // Libraries report the error of a kernel before them as their own.
  if (impl_->recording == nullptr) impl_->expect(cudaStreamSynchronize(impl_->stream), what.c_str());
  throw Error(memory ? ErrorKind::memory : ErrorKind::device, what);
}
void Runtime::count(const char* name) {
  const auto alone = impl_->enter();
  if (impl_->recording == nullptr) impl_->suspects.add(name);
  impl_->count(name);
}
void Runtime::refuse_in_capture(const char* what) const {
  const auto alone = impl_->enter();
  impl_->refuse_in_capture(what);
}

// ---- Event
// ------------------------------------------------------------------------------------------------------------------

struct Event::Impl {
  cudaEvent_t event = nullptr;
  std::shared_ptr<Runtime::Impl> runtime;  // whose stream it was recorded in
  ~Impl() {
    if (event == nullptr) return;
    const OnDevice here(runtime->index);
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
  const auto alone = r->enter();
  r->refuse_in_capture("an event");
  if (impl_->runtime != r) impl_ = std::make_unique<Impl>();  // an event is its device's
  impl_->runtime = r;
  if (impl_->event == nullptr) r->expect(cudaEventCreate(&impl_->event), "event");
  r->expect(cudaEventRecord(impl_->event, r->stream), "event");
}
double Event::seconds_since(const Event& start) const {
  if (impl_->event == nullptr || start.impl_->event == nullptr)
    throw Error(ErrorKind::usage, "event: seconds_since before both were recorded");
  Runtime::Impl& r = *impl_->runtime;
  const auto alone = r.enter();
  float milliseconds = 0;
  r.expect(cudaEventSynchronize(start.impl_->event), "event");
  r.expect(cudaEventSynchronize(impl_->event), "event");
  r.expect(cudaEventElapsedTime(&milliseconds, start.impl_->event, impl_->event), "event");
  return 1e-3 * static_cast<double>(milliseconds);
}

// ---- devices
// -----------------------------------------------------------------------------------------------------

int device_count(std::string* why) {
  int driver = 0, devices = 0, built_with = CUDART_VERSION;
  const auto say = [&](const std::string& text) {
    if (why != nullptr) *why = text;
    return 0;
  };
  (void)cudaDriverGetVersion(&driver);
  if (driver == 0) return say("no NVIDIA driver was found");
  // Within a major version any driver serves any runtime.
  if (driver / 1000 < built_with / 1000)
    return say("the NVIDIA driver is too old: it knows CUDA " + version(driver) + ", expected " +
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
