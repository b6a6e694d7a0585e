#pragma once
// The host side of CUDA: memory, a stream, launches, graphs, transforms. runtime.cpp calls CUDA's runtime library, or
// the emulator's functions of the same names (emulated/cuda_runtime.h). Transforms are cuFFT's (cufft.cpp) or the
// emulator's. The ops do not depend on which it is.
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <string_view>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#include "nacre/context.h"
#include "runtime/limits.h"

#if defined(NACRE_EMULATED)
#include "runtime/emulated/cuda_runtime.h"
#else
#include <vector_types.h>
#endif

namespace nacre::cuda {

struct SumBatch;

struct Launch {
  const char* name;  ///< a string literal; launches are counted by name
  dim3 grid{1, 1, 1}, block{1, 1, 1};
  size_t shared_bytes = 0;  ///< dynamic
};

/// A kernel and its arguments, without their types.
struct KernelCall {
  const void* function;
  void** arguments;  ///< one pointer per parameter
};

/// One device with one stream. Members may be called from any thread and exclude each other. They make the device the
/// calling thread's current device, and throw Error(usage) in a forked process. Errors of CUDA are Error(device) with
/// the name of what was launched; lack of memory is Error(memory). After a kernel failed, this process cannot use the
/// device any more: every member of every Runtime on it throws the same message.
class Runtime {
 public:
  /// Throws Error(device) with a message about which of driver, device and library is missing.
  explicit Runtime(int index);
  ~Runtime();
  Runtime(const Runtime&) = delete;
  Runtime& operator=(const Runtime&) = delete;

  /// Queues a kernel; does nothing for an empty grid.
  void launch(const Launch&, const KernelCall&);
  void zero(void* to, size_t bytes);
  void copy_on_device(void* to, const void* from, size_t bytes);
  /// `from` may be changed as soon as this returns. Not in a capture.
  void copy_to_device(void* to, const void* from, size_t bytes);
  /// Waits for all work queued before. Not in a capture.
  void copy_to_host(void* to, const void* from, size_t bytes);
  void synchronize();
  /// Records the work that `step` queues. Returns a function that runs it again, also after the Runtime was destroyed.
  std::function<void()> capture(const std::function<void()>& step);
  /// copy_to_device through pinned memory and a second stream, so that it overlaps with work on the first stream. Work
  /// queued later sees the new bytes, work queued earlier the old ones. The first call for a destination allocates. Not
  /// in a capture.
  void upload(void* to, const void* from, size_t bytes);
  /// Returns zeroed memory, or null if there is not enough. Not in a capture.
  void* allocate(size_t bytes);

  /// The number of launches of kernels with this name, or of all kernels if it is empty. A replayed graph counts each
  /// of its kernels. Within a capture: the number that the capture has recorded so far.
  int64_t launches(std::string_view name = {}) const;
  /// "NVIDIA H200, compute capability 9.0, driver for CUDA 13.0, CUDA runtime 13.0".
  const char* description() const;
  const DeviceLimits& limits() const;
  /// The cudaStream_t, for libraries.
  void* stream() const;
  /// Called before a library: makes the device current, or throws the error that broke it. Calls of other threads wait
  /// until the returned lock is released.
  [[nodiscard]] std::unique_lock<std::recursive_mutex> enter();
  /// Counts work that a library queues on stream(), under this name.
  void count(const char* name);
  /// Called after a library failed: throws the error of a kernel that broke the device, if there is one, else `what`.
  [[noreturn]] void library_failed(const std::string& what, bool memory);
  /// The sums that wait for finish_gradient_sums(); see gradient_sums.h.
  SumBatch& noted_sums();
  /// Throws Error(usage) "capture: the step calls WHAT, ..." inside a capture.
  void refuse_in_capture(const char* what) const;

  struct Impl;

 private:
  friend class Event;
  std::shared_ptr<Impl> impl_;  // graphs share it
};

/// A point in the stream, for timings.
class Event {
 public:
  Event();
  ~Event();
  Event(Event&&) noexcept;
  Event& operator=(Event&&) noexcept;
  /// Marks the end of the work queued so far. Not in a capture.
  void record(Context&);
  /// The time between two recorded events; waits for both.
  double seconds_since(const Event& start) const;
  struct Impl;

 private:
  std::unique_ptr<Impl> impl_;
};

/// Frees device memory after the work that uses it. CUDA forbids this in a capture. The caller keeps memory that a
/// graph uses.
void device_release(void*, int index) noexcept;
/// For destructors: makes the device current, and lets them free memory without invalidating a capture of this thread.
class OnDevice {
 public:
  explicit OnDevice(int index) noexcept;
  ~OnDevice();
  OnDevice(const OnDevice&) = delete;
  OnDevice& operator=(const OnDevice&) = delete;

 private:
  int mode_;  // the thread's previous capture mode
};
/// The number of devices that the driver finds; 0 without a driver. `why`, if given, receives what is missing.
int device_count(std::string* why = nullptr);
/// The result of nacre::cuda_inventory().
CudaInventory inventory();
/// The libraries in it (cufft.cpp).
std::vector<CudaInventory::Library> library_inventory();

/// Batched transforms of real signals by cuFFT, without normalisation. Owns the plans and the work area. Must not be
/// constructed in a capture.
class Fft {
 public:
  /// real [batch, length] <-> spectrum [batch, length / 2 + 1, 2]
  Fft(Context&, int64_t length, int64_t batch);
  Fft(Fft&&) noexcept;
  Fft& operator=(Fft&&) noexcept;
  ~Fft();
  /// sum_n x[n] exp(-2 pi i k n / length)
  void forward(Context&, const float* real, float* spectrum);
  /// The unnormalised inverse for spectra of real signals; overwrites the spectrum.
  void inverse(Context&, float* spectrum, float* real);
  struct Impl;

 private:
  std::shared_ptr<Impl> impl_;
};

Runtime& runtime(Context&);

/// The only way a kernel is launched:
///   launch(ctx, {.name = "snake_forward", .grid = blocks, .block = 256}, snake_forward_kernel<T>, a, rows);
template <class... P, class... A>
void launch(Context& ctx, const Launch& how, void (*kernel)(P...), A&&... arguments) {
  static_assert(sizeof...(P) == sizeof...(A), "one argument per parameter of the kernel");
  static_assert((std::is_trivially_copyable_v<P> && ...), "parameters travel as bytes");
  std::tuple<P...> values(static_cast<P>(std::forward<A>(arguments))...);
  std::apply(
      [&](auto&... value) {
        void* pointers[] = {const_cast<void*>(static_cast<const void*>(&value))..., nullptr};
#if defined(NACRE_EMULATED)
        emulation::announce(how.name, emulation::signature<P...>);
#endif
        runtime(ctx).launch(how, {reinterpret_cast<const void*>(kernel), pointers});
      },
      values);
}

}  // namespace nacre::cuda
