// Probes of the driver and the runtime: properties of the device, limits of a launch and what happens beyond them, and
// calls that a capture forbids. The emulated device has neither driver nor runtime.
#include "runtime/device.cuh"
#include "probes/probes.h"

namespace nacre::probes {
namespace {

/// The reason why the device does not exist; empty if it does. Throws if the driver does not answer.
std::string no_device(const Options& o) {
  const std::string name = "device cuda" + (o.index == 0 ? std::string() : ":" + std::to_string(o.index)) + ": ";
  std::string why;
  const int devices = cuda::device_count(&why);
  if (devices > o.index) return {};
  if (devices > 0)
    return name + "this machine has " + std::to_string(devices) +
           "; expected cuda:0 to cuda:" + std::to_string(devices - 1);
#if !defined(NACRE_EMULATED)
  int counted = 0;
  const cudaError_t e = cudaGetDeviceCount(&counted);
  if (e != cudaSuccess && e != cudaErrorNoDevice && e != cudaErrorInsufficientDriver)
    throw Error(ErrorKind::device, name + why);
#endif
  return name + why;
}

}  // namespace

#if defined(NACRE_EMULATED)

Result describe(const Options& o) {
  if (std::string why = no_device(o); !why.empty()) return {Result::failed, std::move(why), {}};
  Context ctx = context(o);
  const cuda::DeviceLimits& l = cuda::limits(ctx);
  Result r;
  r.says = cuda::runtime(ctx).description();
  return r.figure("name", r.says)
      .figure("emulated", int64_t{1})
      .figure("compute_capability", text("%d.%d", l.major, l.minor))
      .figure("multiprocessors", int64_t{l.multiprocessors})
      .figure("shared_memory_per_block_optin", static_cast<int64_t>(l.shared_per_block))
      .figure("shared_memory_per_multiprocessor", static_cast<int64_t>(l.shared_per_multiprocessor))
      .figure("registers_per_block", int64_t{l.registers_per_block})
      .figure("threads_per_multiprocessor", int64_t{l.threads_per_multiprocessor});
}
Result shared_memory_limit(const Options&) {
  return skip("the emulated device has no driver whose errors could be seen");
}
Result allocation_in_capture(const Options&) {
  return skip("the emulated device has no driver whose errors could be seen");
}

#else

namespace {

void check(cudaError_t e, const char* what) {
  if (e != cudaSuccess)
    throw Error(ErrorKind::device, text("%s: %s (%s)", what, cudaGetErrorString(e), cudaGetErrorName(e)));
}
std::string name_of(cudaError_t e) { return cudaGetErrorName(e); }

constexpr int static_bytes = 2048;

/// Writes the first and the last byte of static and dynamic shared memory, and returns them in `out`.
__global__ void limit_kernel(int dynamic_bytes, int* out) {
  NACRE_SHARED(unsigned char, fixed, static_bytes);
  NACRE_DYNAMIC_SHARED(unsigned char, dynamic);
  if (threadIdx.x == 0) {
    fixed[0] = 1, fixed[static_bytes - 1] = 2;
    dynamic[0] = 3, dynamic[dynamic_bytes - 1] = 4;
  }
  __syncthreads();
  if (threadIdx.x == 1)
    *out = fixed[0] + 10 * fixed[static_bytes - 1] + 100 * dynamic[0] + 1000 * dynamic[dynamic_bytes - 1];
}
__global__ void bump_kernel(int* counter) { ++*counter; }

/// A stream and some memory with the same lifetime.
struct Stream {
  cudaStream_t stream = nullptr;
  int* memory = nullptr;
  Stream() {
    check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "stream");
    check(cudaMalloc(&memory, 4096), "cudaMalloc");
    check(cudaMemset(memory, 0, 4096), "cudaMemset");
    check(cudaDeviceSynchronize(), "cudaMemset");
  }
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;
  ~Stream() {
    (void)cudaFree(memory);
    (void)cudaStreamDestroy(stream);
  }
};

}  // namespace

Result describe(const Options& o) {
  if (std::string why = no_device(o); !why.empty()) return {Result::failed, std::move(why), {}};
  Result r;
  Context ctx = context(o);
  cudaDeviceProp p{};
  check(cudaGetDeviceProperties(&p, o.index), "cudaGetDeviceProperties");
  int driver = 0, runtime = 0;
  size_t free = 0, total = 0;
  check(cudaDriverGetVersion(&driver), "cudaDriverGetVersion");
  check(cudaRuntimeGetVersion(&runtime), "cudaRuntimeGetVersion");
  check(cudaMemGetInfo(&free, &total), "cudaMemGetInfo");
  const auto attribute = [&](cudaDeviceAttr a) {
    int v = 0;
    return cudaDeviceGetAttribute(&v, a, o.index) == cudaSuccess ? int64_t{v} : int64_t{-1};
  };
  r.says = cuda::runtime(ctx).description();
  r.figure("name", std::string(p.name))
      .figure("compute_capability", text("%d.%d", p.major, p.minor))
      .figure("driver", int64_t{driver})
      .figure("runtime", int64_t{runtime})
      .figure("multiprocessors", int64_t{p.multiProcessorCount})
      .figure("clock_khz", attribute(cudaDevAttrClockRate))
      .figure("memory_clock_khz", attribute(cudaDevAttrMemoryClockRate))
      .figure("memory_bus_bits", attribute(cudaDevAttrGlobalMemoryBusWidth))
      .figure("memory_bytes", static_cast<int64_t>(total))
      .figure("memory_free_bytes", static_cast<int64_t>(free))
      .figure("ecc", attribute(cudaDevAttrEccEnabled))
      .figure("l2_bytes", attribute(cudaDevAttrL2CacheSize))
      .figure("l2_persisting_bytes", attribute(cudaDevAttrMaxPersistingL2CacheSize))
      .figure("shared_memory_per_block", static_cast<int64_t>(p.sharedMemPerBlock))
      .figure("shared_memory_per_block_optin", static_cast<int64_t>(p.sharedMemPerBlockOptin))
      .figure("shared_memory_per_block_reserved", static_cast<int64_t>(p.reservedSharedMemPerBlock))
      .figure("shared_memory_per_multiprocessor", static_cast<int64_t>(p.sharedMemPerMultiprocessor))
      .figure("registers_per_block", int64_t{p.regsPerBlock})
      .figure("registers_per_multiprocessor", int64_t{p.regsPerMultiprocessor})
      .figure("threads_per_multiprocessor", int64_t{p.maxThreadsPerMultiProcessor})
      .figure("blocks_per_multiprocessor", attribute(cudaDevAttrMaxBlocksPerMultiprocessor))
      .figure("grid_x", int64_t{p.maxGridSize[0]})
      .figure("grid_y", int64_t{p.maxGridSize[1]})
      .figure("copy_engines", attribute(cudaDevAttrAsyncEngineCount))
      .figure("compute_mode", attribute(cudaDevAttrComputeMode));
  return r;
}

Result shared_memory_limit(const Options& o) {
  Context ctx = context(o);
  const int limit = static_cast<int>(cuda::limits(ctx).shared_per_block);
  const Stream s;
  Result r;
  const auto launched = [&](int dynamic) {
    limit_kernel<<<1, 32, static_cast<size_t>(dynamic), s.stream>>>(dynamic, s.memory);
    return cudaPeekAtLastError();
  };
  cudaFuncAttributes attributes{};
  check(cudaFuncGetAttributes(&attributes, limit_kernel), "cudaFuncGetAttributes");
  const int fixed = static_cast<int>(attributes.sharedSizeBytes), most = limit - fixed;
  r.figure("limit", int64_t{limit}).figure("static_bytes", int64_t{fixed});

  // Launches above 48 KiB fail until the attribute is set. The test records which call reports the failed launch.
  const cudaError_t not_asked = launched(most);
  const cudaError_t first_get = cudaGetLastError(), second_get = cudaGetLastError();
  const cudaError_t wait_after = cudaStreamSynchronize(s.stream);
  r.figure("launch_without_attribute", name_of(not_asked))
      .figure("first_cudaGetLastError_after", name_of(first_get))
      .figure("second_cudaGetLastError_after", name_of(second_get))
      .figure("cudaStreamSynchronize_after", name_of(wait_after));

  const cudaError_t exact = cudaFuncSetAttribute(limit_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, most);
  (void)cudaGetLastError();
  const cudaError_t exact_launch = launched(most);
  (void)cudaGetLastError();
  const cudaError_t exact_wait = cudaStreamSynchronize(s.stream);
  int read = 0;
  check(cudaMemcpy(&read, s.memory, sizeof read, cudaMemcpyDeviceToHost), "cudaMemcpy");
  r.figure("attribute_at_limit", name_of(exact))
      .figure("launch_at_limit", name_of(exact_launch))
      .figure("wait_at_limit", name_of(exact_wait));

  const cudaError_t over = cudaFuncSetAttribute(limit_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, most + 1);
  const cudaError_t over_sticks = cudaGetLastError(), over_again = cudaGetLastError();
  const cudaError_t over_launch = launched(most + 1);
  const cudaError_t over_get = cudaGetLastError(), over_get_again = cudaGetLastError();
  const cudaError_t over_wait = cudaStreamSynchronize(s.stream);
  // A good launch follows a failed one whose error was not taken. The test records whether the good one reports it.
  (void)launched(most + 1);
  bump_kernel<<<1, 1, 0, s.stream>>>(s.memory + 1);
  const cudaError_t good_behind = cudaPeekAtLastError();
  const cudaError_t call_behind = cudaMemsetAsync(s.memory + 2, 0, 4, s.stream);
  const cudaError_t wait_behind = cudaStreamSynchronize(s.stream);
  const cudaError_t left_behind = cudaGetLastError();
  r.figure("attribute_over", name_of(over))
      .figure("cudaGetLastError_after_attribute", name_of(over_sticks))
      .figure("second_cudaGetLastError_after_attribute", name_of(over_again))
      .figure("launch_over", name_of(over_launch))
      .figure("first_cudaGetLastError_after_launch", name_of(over_get))
      .figure("second_cudaGetLastError_after_launch", name_of(over_get_again))
      .figure("wait_over", name_of(over_wait))
      .figure("peek_after_good_launch_behind", name_of(good_behind))
      .figure("cudaMemsetAsync_behind", name_of(call_behind))
      .figure("cudaStreamSynchronize_behind", name_of(wait_behind))
      .figure("cudaGetLastError_behind", name_of(left_behind));

  const bool at_limit =
      exact == cudaSuccess && exact_launch == cudaSuccess && exact_wait == cudaSuccess && read == 4321;
  const bool refused = over != cudaSuccess && over_launch != cudaSuccess;
  const bool goes_on = over_get_again == cudaSuccess && over_wait == cudaSuccess && wait_behind == cudaSuccess;
  r.outcome = at_limit && refused && goes_on ? Result::ok : Result::failed;
  r.says = text(
      "%d static and %d dynamic bytes, together the limit of %d, %s; a byte more: attribute %s, launch %s; "
      "cudaGetLastError then %s, then %s; a good launch behind an error that nobody took peeks %s",
      fixed, most, limit, at_limit ? "run" : "do not run", cudaGetErrorName(over), cudaGetErrorName(over_launch),
      cudaGetErrorName(over_get), cudaGetErrorName(over_get_again), cudaGetErrorName(good_behind));
  return r;
}

Result allocation_in_capture(const Options& o) {
  Context ctx = context(o);
  Stream s;
  Result r;
  bool malloc_refused = false, goes_on = true;
  void* spare = nullptr;
  check(cudaMalloc(&spare, 4096), "cudaMalloc");
  // The capture of Runtime::capture, and a relaxed one. Each call follows one recorded kernel.
  const auto attempt = [&](const char* name, cudaStreamCaptureMode mode, auto&& call) {
    check(cudaStreamBeginCapture(s.stream, mode), "cudaStreamBeginCapture");
    bump_kernel<<<1, 1, 0, s.stream>>>(s.memory);
    const cudaError_t e = call();
    const cudaError_t last = cudaGetLastError();
    cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
    const cudaError_t asked = cudaStreamIsCapturing(s.stream, &status);
    cudaGraph_t graph = nullptr;
    const cudaError_t end = cudaStreamEndCapture(s.stream, &graph);
    if (graph != nullptr) (void)cudaGraphDestroy(graph);
    (void)cudaGetLastError();
    // The stream and the device must still work.
    bump_kernel<<<1, 1, 0, s.stream>>>(s.memory);
    const cudaError_t after = cudaPeekAtLastError();
    const cudaError_t wait = cudaStreamSynchronize(s.stream);
    (void)cudaGetLastError();
    goes_on &= after == cudaSuccess && wait == cudaSuccess;
    const bool survives = end == cudaSuccess && graph != nullptr;
    const std::string words = name_of(e) + ", capture " + (survives ? "survives" : "is lost") + " (status " +
                              (asked != cudaSuccess                           ? name_of(asked)
                               : status == cudaStreamCaptureStatusActive      ? "active"
                               : status == cudaStreamCaptureStatusInvalidated ? "invalidated"
                                                                              : "none") +
                              ", end " + name_of(end) + "), cudaGetLastError " + name_of(last) + ", next launch " +
                              name_of(after) + ", next wait " + name_of(wait);
    r.figure(name, words);
    return std::pair(e, text("%s %s, capture %s", name, cudaGetErrorName(e), survives ? "survives" : "is lost"));
  };
  const cudaStreamCaptureMode ours = cudaStreamCaptureModeThreadLocal;
  void* p = nullptr;
  const auto [malloc_error, malloc_words] = attempt("cudaMalloc", ours, [&] { return cudaMalloc(&p, 4096); });
  malloc_refused = malloc_error != cudaSuccess;
  if (malloc_error == cudaSuccess) (void)cudaFree(p);
  r.says = malloc_words;
  const auto relaxed =
      attempt("cudaMalloc, relaxed", cudaStreamCaptureModeRelaxed, [&] { return cudaMalloc(&p, 4096); });
  if (relaxed.first == cudaSuccess) (void)cudaFree(p);
  r.says += "; " + relaxed.second;
  const auto host = attempt("cudaMallocHost", ours, [&] { return cudaMallocHost(&p, 4096); });
  if (host.first == cudaSuccess) (void)cudaFreeHost(p);
  r.says += "; " + host.second;
  r.says += "; " + attempt("cudaMemset on the default stream", ours, [&] { return cudaMemset(spare, 0, 64); }).second;
  r.says += "; " + attempt("cudaStreamSynchronize", ours, [&] { return cudaStreamSynchronize(s.stream); }).second;
  r.says += "; " + attempt("cudaDeviceSynchronize", ours, [&] { return cudaDeviceSynchronize(); }).second;
  int word = 0;
  r.says += "; " + attempt("cudaMemcpy to the host", ours, [&] {
                     return cudaMemcpy(&word, spare, sizeof word, cudaMemcpyDeviceToHost);
                   }).second;
  // cudaFree is last. If it is neither recorded nor executed, `spare` leaks until the process ends.
  r.says += "; " + attempt("cudaFree", ours, [&] { return cudaFree(spare); }).second;
  try {
    Graph graph = ctx.capture([&] { const Memory m(ctx, 4096); });
    r.figure("Memory in Context::capture", std::string("no error"));
  } catch (const Error& e) {
    r.figure("Memory in Context::capture", std::string(e.what()));
  }
  try {
    ctx.synchronize();
  } catch (const Error& e) {
    goes_on = false;
    r.figure("Context after it", std::string(e.what()));
  }
  r.outcome = malloc_refused && goes_on ? Result::ok : Result::failed;
  r.says += goes_on ? "; the device goes on after each" : "; the device does not go on after each";
  return r;
}

#endif

}  // namespace nacre::probes
