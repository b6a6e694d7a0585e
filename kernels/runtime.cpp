// kernels/runtime.h on CUDA. cudart is linked statically and finds the driver by itself, cuFFT is loaded at its first
// use: a program built so starts on any machine.
#include "runtime.h"

#include <cuda_runtime.h>
#include <cufft.h>
#include <dlfcn.h>

#include <algorithm>
#include <cstring>
#include <map>
#include <string>
#include <vector>

#include "context_impl.h"
#include "host.h"

namespace nacre::cuda {
namespace {

[[noreturn]] void throw_device(const std::string& what) { throw Error(ErrorKind::device, what); }

void check(cudaError_t e, const char* what) {
  if (e == cudaSuccess) [[likely]]
    return;
  (void)cudaGetLastError();  // not sticky: the next call shall not report it again
  throw_device(std::string("CUDA: ") + what + ": " + cudaGetErrorString(e) + " (" + cudaGetErrorName(e) + ")");
}

std::string version(int v) { return std::to_string(v / 1000) + "." + std::to_string(v % 1000 / 10); }

/// A library that is looked for when it is needed first, under the names of the CUDA versions we know.
class Library {
 public:
  explicit Library(std::vector<const char*> names) {
    for (const char* name : names)
      if (handle_ == nullptr) handle_ = dlopen(name, RTLD_NOW | RTLD_LOCAL);
    if (handle_ == nullptr)
      throw_device(std::string("CUDA: ") + names.front() +
                   " is missing; install the CUDA libraries (cuFFT), or put their folder into LD_LIBRARY_PATH");
  }
  template <class F>
  F* function(const char* name) const {
    void* f = dlsym(handle_, name);
    if (f == nullptr) throw_device(std::string("CUDA: the cuFFT found here has no ") + name);
    return reinterpret_cast<F*>(f);
  }

 private:
  void* handle_ = nullptr;
};

struct CuFft {
  Library library{{"libcufft.so.12", "libcufft.so.11", "libcufft.so"}};
  decltype(&cufftCreate) create = library.function<decltype(cufftCreate)>("cufftCreate");
  decltype(&cufftSetAutoAllocation) set_auto =
      library.function<decltype(cufftSetAutoAllocation)>("cufftSetAutoAllocation");
  decltype(&cufftMakePlanMany64) make = library.function<decltype(cufftMakePlanMany64)>("cufftMakePlanMany64");
  decltype(&cufftSetWorkArea) set_work = library.function<decltype(cufftSetWorkArea)>("cufftSetWorkArea");
  decltype(&cufftSetStream) set_stream = library.function<decltype(cufftSetStream)>("cufftSetStream");
  decltype(&cufftExecR2C) forward = library.function<decltype(cufftExecR2C)>("cufftExecR2C");
  decltype(&cufftExecC2R) inverse = library.function<decltype(cufftExecC2R)>("cufftExecC2R");
  decltype(&cufftDestroy) destroy = library.function<decltype(cufftDestroy)>("cufftDestroy");
};
const CuFft& cufft() {
  static const CuFft f;
  return f;
}
void check(cufftResult r, const char* what) {
  if (r != CUFFT_SUCCESS) [[unlikely]]
    throw_device(std::string("cuFFT: ") + what + " failed with code " + std::to_string(r));
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

  int index = 0;
  cudaStream_t stream = nullptr, upload_stream = nullptr;
  std::string description;
  DeviceLimits limits;
  std::vector<Count> counts;
  std::vector<Count>* recording = nullptr;
  std::vector<const void*> raised;  // kernels whose limit of dynamic shared memory was raised
  std::map<void*, Upload> uploads;
  const char* last = "nothing";

  void count(std::vector<Count>& where, const char* name, int64_t n) {
    for (Count& c : where)
      if (c.name == name || std::strcmp(c.name, name) == 0) {
        c.launches += n;
        return;
      }
    where.push_back({name, n});
  }
  void count(const char* name) {
    last = name;
    count(recording != nullptr ? *recording : counts, name, 1);
  }
  void refuse_in_capture(const char* what) const {
    if (recording != nullptr)
      throw Error(ErrorKind::usage, std::string("capture: the step calls ") + what + ", which a graph cannot hold");
  }
  /// As check, with the last kernel launched: errors of kernels show at the next call that waits.
  void expect(cudaError_t e, const char* what) const {
    if (e != cudaSuccess) [[unlikely]]
      check(e, (std::string(what) + " (last launched: " + last + ")").c_str());
  }
  void make_upload(Upload& u, size_t bytes) {
    if (u.bytes >= bytes) return;
    release(u);
    check(cudaMallocHost(&u.pinned, bytes), "pinned memory for uploads");
    check(cudaMalloc(&u.device, bytes), "device memory for uploads");
    check(cudaEventCreateWithFlags(&u.arrived, cudaEventDisableTiming), "event");
    check(cudaEventCreateWithFlags(&u.taken, cudaEventDisableTiming), "event");
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

Runtime::Runtime(int index) : impl_(std::make_unique<Impl>()) {
  std::string why;
  const int devices = device_count(&why), wanted = index;
  const std::string name = wanted == 0 ? "cuda" : "cuda:" + std::to_string(wanted);
  if (devices == 0) throw_device("device " + name + ": " + why + "; use --device cpu");
  if (wanted < 0 || wanted >= devices)
    throw_device("device " + name + ": this machine has " + std::to_string(devices) +
                 "; expected cuda:0 to cuda:" + std::to_string(devices - 1));
  Impl& r = *impl_;
  r.index = wanted;
  check(cudaSetDevice(wanted), "cudaSetDevice");
  cudaDeviceProp p{};
  check(cudaGetDeviceProperties(&p, wanted), "cudaGetDeviceProperties");
  if (p.major < 8)
    throw_device("device " + name + ": " + p.name + " has compute capability " + std::to_string(p.major) + "." +
                 std::to_string(p.minor) + "; expected 8.0 or newer");
  int driver = 0, runtime_version = 0;
  (void)cudaDriverGetVersion(&driver);
  (void)cudaRuntimeGetVersion(&runtime_version);
  r.description = std::string(p.name) + ", compute capability " + std::to_string(p.major) + "." +
                  std::to_string(p.minor) + ", driver for CUDA " + version(driver) + ", CUDA runtime " +
                  version(runtime_version);
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
  r.raised.reserve(64);
}

Runtime::~Runtime() {
  Impl& r = *impl_;
  if (r.stream == nullptr) return;
  (void)cudaStreamSynchronize(r.stream);
  for (auto& [to, upload] : r.uploads) Impl::release(upload);
  (void)cudaStreamDestroy(r.upload_stream);
  (void)cudaStreamDestroy(r.stream);
}

void Runtime::launch(const Launch& how, const KernelCall& call) {
  if (how.grid.x == 0 || how.grid.y == 0 || how.grid.z == 0) return;
  Impl& r = *impl_;
  if (how.shared_bytes > (48 << 10) && std::find(r.raised.begin(), r.raised.end(), call.function) == r.raised.end()) {
    r.expect(cudaFuncSetAttribute(call.function, cudaFuncAttributeMaxDynamicSharedMemorySize, 163 << 10), how.name);
    r.raised.push_back(call.function);
  }
  r.count(how.name);
  r.expect(cudaLaunchKernel(call.function, how.grid, how.block, call.arguments, how.shared_bytes, r.stream), how.name);
}

void Runtime::zero(void* to, size_t bytes) {
  if (bytes > 0) impl_->expect(cudaMemsetAsync(to, 0, bytes, impl_->stream), "zero");
}
void Runtime::copy_on_device(void* to, const void* from, size_t bytes) {
  if (bytes > 0) impl_->expect(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, impl_->stream), "copy");
}
void Runtime::copy_to_device(void* to, const void* from, size_t bytes) {
  Impl& r = *impl_;
  r.refuse_in_capture("write");
  if (bytes == 0) return;
  r.expect(cudaMemcpyAsync(to, from, bytes, cudaMemcpyHostToDevice, r.stream), "write");
  r.expect(cudaStreamSynchronize(r.stream), "write");  // `from` may be anything, pinned memory of the caller's too
}
void Runtime::copy_to_host(void* to, const void* from, size_t bytes) {
  Impl& r = *impl_;
  r.refuse_in_capture("read");
  if (bytes == 0) return;
  r.expect(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToHost, r.stream), "read");
  r.expect(cudaStreamSynchronize(r.stream), "read");
}
void Runtime::synchronize() {
  impl_->refuse_in_capture("synchronize");
  impl_->expect(cudaStreamSynchronize(impl_->stream), "synchronize");
}

void Runtime::upload(void* to, const void* from, size_t bytes) {
  Impl& r = *impl_;
  r.refuse_in_capture("upload");
  if (bytes == 0) return;
  Impl::Upload& u = r.uploads[to];
  const bool first = u.bytes < bytes;
  if (first) r.expect(cudaStreamSynchronize(r.stream), "upload");
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

std::function<void()> Runtime::capture(const std::function<void()>& step) {
  Impl& r = *impl_;
  if (r.recording != nullptr) throw Error(ErrorKind::usage, "capture: inside another capture");
  auto recorded = std::make_shared<std::vector<Impl::Count>>();
  r.expect(cudaStreamBeginCapture(r.stream, cudaStreamCaptureModeThreadLocal), "capture");
  r.recording = recorded.get();
  cudaGraph_t graph = nullptr;
  try {
    step();
  } catch (...) {
    r.recording = nullptr;
    (void)cudaStreamEndCapture(r.stream, &graph);
    if (graph != nullptr) (void)cudaGraphDestroy(graph);
    throw;
  }
  r.recording = nullptr;
  r.expect(cudaStreamEndCapture(r.stream, &graph), "capture");
  cudaGraphExec_t made = nullptr;
  const cudaError_t e = cudaGraphInstantiate(&made, graph, 0);
  (void)cudaGraphDestroy(graph);
  r.expect(e, "capture");
  const std::shared_ptr<CUgraphExec_st> exec(made, [](cudaGraphExec_t g) { (void)cudaGraphExecDestroy(g); });
  return [&r, exec, recorded] {
    for (const Impl::Count& c : *recorded) r.count(r.counts, c.name, c.launches);
    r.last = "a captured step";
    r.expect(cudaGraphLaunch(exec.get(), r.stream), "replay");
  };
}

int64_t Runtime::launches(std::string_view name) const {
  int64_t n = 0;
  for (const Impl::Count& c : impl_->counts)
    if (name.empty() || name == c.name) n += c.launches;
  return n;
}
const char* Runtime::description() const { return impl_->description.c_str(); }
const DeviceLimits& Runtime::limits() const { return impl_->limits; }
void* Runtime::stream() const { return impl_->stream; }

// ---- Event
// ------------------------------------------------------------------------------------------------------------------

struct Event::Impl {
  cudaEvent_t event = nullptr;
  Impl() { check(cudaEventCreate(&event), "event"); }
  ~Impl() { (void)cudaEventDestroy(event); }
  Impl(const Impl&) = delete;
  Impl& operator=(const Impl&) = delete;
};
Event::Event() : impl_(std::make_unique<Impl>()) {}
Event::~Event() = default;
Event::Event(Event&&) noexcept = default;
Event& Event::operator=(Event&&) noexcept = default;
void Event::record(Context& ctx) {
  runtime(ctx).impl().refuse_in_capture("an event");
  check(cudaEventRecord(impl_->event, static_cast<cudaStream_t>(runtime(ctx).stream())), "event");
}
double Event::seconds_since(const Event& start) const {
  float milliseconds = 0;
  check(cudaEventSynchronize(start.impl_->event), "event");
  check(cudaEventSynchronize(impl_->event), "event");
  check(cudaEventElapsedTime(&milliseconds, start.impl_->event, impl_->event), "event");
  return 1e-3 * static_cast<double>(milliseconds);
}

// ---- devices and memory
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

void* device_allocate(int index, size_t bytes) {
  void* p = nullptr;
  if (cudaSetDevice(index) != cudaSuccess || cudaMalloc(&p, bytes) != cudaSuccess) {
    (void)cudaGetLastError();
    return nullptr;
  }
  // Streams of ours do not wait for the default stream: the zeros must be there before anybody uses the block.
  if (cudaMemset(p, 0, bytes) != cudaSuccess || cudaStreamSynchronize(nullptr) != cudaSuccess) {
    (void)cudaGetLastError();
    (void)cudaFree(p);
    return nullptr;
  }
  return p;
}
void device_release(void* p) noexcept {
  if (p != nullptr) (void)cudaFree(p);  // waits for what still uses it
}

// ---- Fft
// --------------------------------------------------------------------------------------------------------------------

struct Fft::Impl {
  cufftHandle forward = -1, inverse = -1;
  Memory work;
  ~Impl() {
    if (forward != -1) (void)cufft().destroy(forward);
    if (inverse != -1) (void)cufft().destroy(inverse);
  }
};

Fft::Fft(Context& ctx, int64_t length, int64_t batch) : impl_(std::make_unique<Impl>()) {
  Runtime& r = runtime(ctx);
  r.impl().refuse_in_capture("a transform's constructor");
  const CuFft& f = cufft();
  size_t most = 0;
  const auto plan = [&](cufftHandle& handle, cufftType type) {
    size_t bytes = 0;
    long long int n = length;
    check(f.create(&handle), "cufftCreate");
    check(f.set_auto(handle, 0), "cufftSetAutoAllocation");
    check(f.make(handle, 1, &n, nullptr, 1, 0, nullptr, 1, 0, type, batch, &bytes), "cufftMakePlanMany64");
    check(f.set_stream(handle, static_cast<cudaStream_t>(r.stream())), "cufftSetStream");
    most = std::max(most, bytes);
  };
  plan(impl_->forward, CUFFT_R2C);
  plan(impl_->inverse, CUFFT_C2R);
  impl_->work = Memory(ctx, most);
  check(f.set_work(impl_->forward, impl_->work.data()), "cufftSetWorkArea");
  check(f.set_work(impl_->inverse, impl_->work.data()), "cufftSetWorkArea");
}
Fft::Fft(Fft&&) noexcept = default;
Fft& Fft::operator=(Fft&&) noexcept = default;
Fft::~Fft() = default;

void Fft::forward(Context& ctx, const float* real, float* spectrum) {
  runtime(ctx).impl().count("cufft");
  check(cufft().forward(impl_->forward, const_cast<float*>(real), reinterpret_cast<cufftComplex*>(spectrum)),
        "cufftExecR2C");
}
void Fft::inverse(Context& ctx, float* spectrum, float* real) {
  runtime(ctx).impl().count("cufft");
  check(cufft().inverse(impl_->inverse, reinterpret_cast<cufftComplex*>(spectrum), real), "cufftExecC2R");
}

}  // namespace nacre::cuda
