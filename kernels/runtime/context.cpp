// Context, Memory and their helpers: what differs between the CPU and CUDA outside of the ops. On the CPU a call is
// complete when it returns. On CUDA work is queued on the Runtime's stream (runtime.h). Builds without CUDA compile the
// same code against an empty Runtime.
#include "nacre/context.h"

#include <sys/mman.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <new>
#include <utility>

#include "runtime/context_impl.h"
#include "runtime/host.h"
#if defined(NACRE_WITH_CUDA)
#include "runtime/runtime.h"
#endif

namespace nacre {
#if !defined(NACRE_WITH_CUDA)
namespace cuda {  // needed to compile, never called: with_cuda is false
class Runtime {
 public:
  explicit Runtime(int) {}
  void zero(void*, size_t) {}
  void copy_on_device(void*, const void*, size_t) {}
  void copy_to_device(void*, const void*, size_t) {}
  void copy_to_host(void*, const void*, size_t) {}
  void upload(void*, const void*, size_t) {}
  void synchronize() {}
  std::function<void()> capture(const std::function<void()>&) { return {}; }
  void* allocate(size_t) { return nullptr; }
  const char* description() const { return ""; }
};
}  // namespace cuda
#endif
namespace {

constexpr const char* no_cuda = "this build has no CUDA back end (configure with NACRE_CUDA=on)";
constexpr size_t alignment = 256;  // the plan's alignment; a multiple of a cache line and of any vector

}  // namespace

std::string str(Device d) {
  if (d.kind == Device::cpu) return "cpu";
  return d.index == 0 ? "cuda" : "cuda:" + std::to_string(d.index);
}

std::string str(Shape s) {
  return "[" + std::to_string(s.batch) + ", " + std::to_string(s.time) + ", " + std::to_string(s.width) + ", " +
         std::to_string(s.channels) + "]";
}

void throw_shape(const char* op, const char* argument, Shape found, Shape expected) {
  throw Error(ErrorKind::usage,
              std::string(op) + ": " + argument + " is " + str(found) + ", expected " + str(expected));
}

void throw_usage(const char* op, const std::string& what) {
  throw Error(ErrorKind::usage, std::string(op) + ": " + what);
}

void run_parts(const Context& ctx, int64_t parts, void (*body)(void*, int64_t, int), void* closure) {
  try {
    ctx.impl().pool->run(parts, body, closure);
  } catch (const std::bad_alloc&) {  // a forked process creates new threads
    throw Error(ErrorKind::memory, "threads: out of memory");
  }
}

std::atomic<int>& ForeignAllocations::depth() {
  static std::atomic<int> depth{0};
  return depth;
}

// A try block around the whole constructor, so that the allocation of the Impl is covered, too.
Context::Context(ContextOptions options) try : impl_(std::make_shared<Impl>()) {
  if (options.threads < 0)
    throw Error(ErrorKind::usage, "threads: " + std::to_string(options.threads) + " is negative");
  impl_->device = options.device;
  impl_->precision = options.precision;
  if (options.device.kind == Device::cuda) {
    if constexpr (!with_cuda)
      throw Error(ErrorKind::device, "device " + str(options.device) + ": " + no_cuda + "; use --device cpu");
    impl_->cuda = std::make_shared<cuda::Runtime>(options.device.index);
    impl_->description = std::string(impl_->cuda->description()) +
                         (options.precision == Precision::tf32 ? ", products in tf32" : ", products in fp32");
  }
  // A CUDA context has a pool as well.
  impl_->threads = options.threads > 0 ? options.threads : usable_cores();
  impl_->pool = std::make_unique<ThreadPool>(impl_->threads);
} catch (const std::bad_alloc&) {
  throw Error(ErrorKind::memory, "context: out of memory");
}
Context::Context(std::shared_ptr<Impl> impl) noexcept : impl_(std::move(impl)) {}
Context Context::share() const { return Context(impl_); }
// Moving copies the handle: a handle that was moved from stays valid.
Context::Context(Context&& o) noexcept : impl_(o.impl_) {}
Context& Context::operator=(Context&& o) noexcept {
  impl_ = o.impl_;
  return *this;
}
Context::~Context() = default;

Device Context::device() const noexcept { return impl_->device; }
int Context::threads() const noexcept { return impl_->threads; }
Precision Context::precision() const noexcept { return impl_->precision; }

// The clone of NACRE_CLONES that the loader has picked. The levels x86-64-v4 and -v3 require further features, which
// are not tested here. NACRE_NO_CLONES builds the default alone.
const char* Context::instruction_set() const noexcept {
  if (on_cuda(*this)) return impl_->description.c_str();
#if defined(__x86_64__) && !defined(NACRE_NO_CLONES)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512cd") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
    return "avx512";
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return "avx2";
#endif
  return "baseline";
}

// On the CPU a graph is the step itself, which every replay runs again. On CUDA the step runs once, here.
Graph Context::capture(std::function<void()> step) {
  if (on_cuda(*this)) return Graph(impl_->cuda->capture(step));
  return Graph(std::move(step));
}
void Context::synchronize() {
  if (on_cuda(*this)) impl_->cuda->synchronize();
}

float Context::read(View<const float> scalar) {
  float value = 0;
  read<float>(scalar, std::span<float>(&value, 1));
  return value;
}

// Bytes of a copy, checked before anything is copied: `view` and `span` are the elements of its two sides.
size_t Context::bytes_of(int64_t view, size_t span, size_t size) {
  if (view < 0 || static_cast<size_t>(view) != span)
    throw Error(ErrorKind::usage,
                "copy: the view holds " + std::to_string(view) + " elements, the host array " + std::to_string(span));
  return span * size;
}
namespace {

// A null address with bytes to copy is a view without data, for example of memory in the first walk of a plan.
void expect_both(const void* to, const void* from, size_t bytes) {
  if (bytes > 0 && (to == nullptr || from == nullptr)) [[unlikely]]
    throw Error(ErrorKind::usage, std::string("copy: ") + (to == nullptr ? "the destination" : "the source") + " of " +
                                      std::to_string(bytes) + " bytes has no data");
}

}  // namespace

// The copies differ on CUDA alone: to_host() and to_device() wait for the device, on_device() is queued, and upload()
// goes through pinned memory. An empty copy may have null addresses, which memcpy must not get.
void Context::to_host(void* to, const void* from, size_t bytes) {
  expect_both(to, from, bytes);
  if (on_cuda(*this)) return impl_->cuda->copy_to_host(to, from, bytes);
  if (bytes > 0) std::memcpy(to, from, bytes);
}
void Context::to_device(void* to, const void* from, size_t bytes) {
  expect_both(to, from, bytes);
  if (on_cuda(*this)) return impl_->cuda->copy_to_device(to, from, bytes);
  if (bytes > 0) std::memcpy(to, from, bytes);
}
void Context::on_device(void* to, const void* from, size_t bytes) {
  expect_both(to, from, bytes);
  if (on_cuda(*this)) return impl_->cuda->copy_on_device(to, from, bytes);
  if (bytes > 0) std::memcpy(to, from, bytes);
}
void Context::upload(void* to, const void* from, size_t bytes) {
  expect_both(to, from, bytes);
  if (on_cuda(*this)) return impl_->cuda->upload(to, from, bytes);
  if (bytes > 0) std::memcpy(to, from, bytes);
}
void Context::clear(void* data, size_t bytes) {
  if (on_cuda(*this)) return impl_->cuda->zero(data, bytes);
  if (bytes > 0) std::memset(data, 0, bytes);
}

bool cuda_available([[maybe_unused]] std::string* why) {
#if defined(NACRE_WITH_CUDA)
  return cuda::device_count(why) > 0;
#else
  if (why != nullptr) *why = no_cuda;
  return false;
#endif
}
bool built_with_cuda() noexcept { return with_cuda; }
CudaInventory cuda_inventory() {
#if defined(NACRE_WITH_CUDA)
  return cuda::inventory();
#else
  CudaInventory inventory;
  inventory.missing = no_cuda;
  return inventory;
#endif
}
#if defined(NACRE_WITH_CUDA)
cuda::Runtime& cuda::runtime(Context& ctx) { return *ctx.impl().cuda; }
const cuda::DeviceLimits& cuda::limits(const Context& ctx) { return ctx.impl().cuda->limits(); }
#endif

namespace {

struct Counter {
  std::atomic<size_t> now{0}, peak{0};
  // Threads may allocate at the same time: the peak only grows, and a lost exchange is tried again.
  void add(size_t bytes) {
    const size_t held = now += bytes;
    size_t peak_now = peak;
    while (held > peak_now && !peak.compare_exchange_weak(peak_now, held)) {
    }
  }
};
/// One counter for the CPU and one for each of 16 CUDA devices; devices beyond these share the last.
Counter& counter(Device d) {
  // Trivially destructible: a Memory in a static object may still be freed after all others.
  static std::array<Counter, 17> all;
  return d.kind == Device::cpu ? all[0] : all[static_cast<size_t>(std::min(d.index, 15)) + 1];
}

}  // namespace
MemoryUse memory_use(Device d) noexcept { return {counter(d).now, counter(d).peak}; }
void reset_memory_peak(Device d) noexcept { counter(d).peak = counter(d).now.load(); }

namespace {

/// Requests huge pages for large blocks: ops stream through many megabytes of activations, and pages of 4 KiB made
/// decoding 8 % and a training step 3 % slower (docs/decisions/huge-pages.md).
void* allocate_on_host(size_t bytes) {
  constexpr size_t huge = size_t{2} << 20;
  if (bytes > SIZE_MAX - huge) return nullptr;  // rounding up would overflow
  const auto rounded_to = [bytes](size_t unit) { return (bytes + unit - 1) / unit * unit; };
  // Blocks below 4 MiB are not rounded to huge pages, which could double them or more.
  if (bytes < 2 * huge) return std::aligned_alloc(alignment, rounded_to(alignment));
  void* data = std::aligned_alloc(huge, rounded_to(huge));
  if (data != nullptr) (void)madvise(data, rounded_to(huge), MADV_HUGEPAGE);  // only a hint
  return data;
}

}  // namespace

Memory::Memory(Context& ctx, size_t bytes) : bytes_(bytes), device_(ctx.device()) {
  if (bytes == 0) return;
  // New memory is zero on every device. On the CPU the memset also maps the pages here, not in the first step.
  const size_t rounded = (bytes + alignment - 1) / alignment * alignment;
#if defined(NACRE_WITH_CUDA)
  if (device_.kind == Device::cuda)
    data_ = static_cast<std::byte*>(cuda::runtime(ctx).allocate(bytes));
  else
#endif
    data_ = static_cast<std::byte*>(allocate_on_host(bytes));
  if (data_ == nullptr)
    throw Error(ErrorKind::memory, "memory: could not allocate " + std::to_string(rounded >> 20) + " MiB on " +
                                       str(device_) + "; lower batch_size or segment_length");
  if (device_.kind == Device::cpu) std::memset(data_, 0, rounded);
  counter(device_).add(bytes);
}
Memory::Memory(Memory&& o) noexcept
    : data_(std::exchange(o.data_, nullptr)), bytes_(std::exchange(o.bytes_, 0)), device_(o.device_) {}
Memory& Memory::operator=(Memory&& o) noexcept {
  if (this != &o) {
    release();
    data_ = std::exchange(o.data_, nullptr);
    bytes_ = std::exchange(o.bytes_, 0);
    device_ = o.device_;
  }
  return *this;
}
Memory::~Memory() { release(); }
void Memory::release() noexcept {
  // All memory is freed here. An object that was moved from has null.
  if (data_ != nullptr) counter(device_).now -= bytes_;
#if defined(NACRE_WITH_CUDA)
  if (device_.kind == Device::cuda) return cuda::device_release(data_, device_.index);
#endif
  std::free(data_);
}

}  // namespace nacre
