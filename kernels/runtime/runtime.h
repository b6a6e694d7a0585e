#pragma once
// All that the CUDA side asks of its host: memory, a stream, launches, graphs, transforms. runtime.cpp stands on CUDA's
// runtime library, or on the emulator's of the same names (emulated/cuda_runtime.h); transforms are cuFFT's
// (cufft.cpp) or the emulator's. Op files never see which.
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

#if defined(NACRE_EMULATED)
#include "runtime/emulated/cuda_runtime.h"
#else
#include <vector_types.h>
#endif

namespace nacre::cuda {

struct Launch {
  const char* name;  ///< a literal; launches are counted under it
  dim3 grid{1, 1, 1}, block{1, 1, 1};
  size_t shared_bytes = 0;  ///< dynamic
};

/// A kernel and its arguments with the types taken off.
struct KernelCall {
  const void* function;
  void** arguments;  ///< one pointer per parameter
};

/// What a device offers to kernels. Tiles, parts of sums and grids are chosen by it; no kernel file knows a device's numbers.
struct DeviceLimits {
  int major = 0, minor = 0;  ///< compute capability
  int multiprocessors = 0;
  size_t shared_per_block = 0;           ///< bytes, static and dynamic together, once a kernel has asked for it
  size_t shared_per_multiprocessor = 0;  ///< bytes; each block on it takes 1 KiB more than it asked for
  int registers_per_block = 0;           ///< of 32 bits; as many as a multiprocessor has
  int threads_per_multiprocessor = 0;
};

/// One device with one stream. Members may be called from any thread; while one thread is inside, others wait. They make
/// the device the thread's current one, and throw Error(usage) in a process that was forked off. Errors of CUDA are
/// Error(device) with the name of what was launched, a lack of memory is Error(memory). After a kernel failed its device
/// cannot be used by this process: every member of every Runtime on it throws the same words.
class Runtime {
 public:
  /// Throws Error(device) that says which of driver, device and library is missing.
  explicit Runtime(int index);
  ~Runtime();
  Runtime(const Runtime&) = delete;
  Runtime& operator=(const Runtime&) = delete;

  /// Queues a kernel; an empty grid is nothing to do.
  void launch(const Launch&, const KernelCall&);
  void zero(void* to, size_t bytes);
  void copy_on_device(void* to, const void* from, size_t bytes);
  /// `from` may be changed as soon as this returns. Not in a capture.
  void copy_to_device(void* to, const void* from, size_t bytes);
  /// Waits for everything queued before. Not in a capture.
  void copy_to_host(void* to, const void* from, size_t bytes);
  void synchronize();
  /// Records what `step` queues and returns what runs it again, also when the Runtime is gone.
  std::function<void()> capture(const std::function<void()>& step);
  /// copy_to_device by way of pinned memory and a second stream, while the first one works. What is queued after it
  /// sees the new bytes, what was queued before it the old ones. The first call for a destination allocates. Not in a
  /// capture.
  void upload(void* to, const void* from, size_t bytes);
  /// Zeroed; null when there is not enough. Not in a capture.
  void* allocate(size_t bytes);

  /// How often a kernel of this name (or, empty, any kernel) was launched; a replayed graph counts each of its kernels.
  int64_t launches(std::string_view name = {}) const;
  /// "NVIDIA H200, compute capability 9.0, driver for CUDA 13.0, CUDA runtime 13.0".
  const char* description() const;
  const DeviceLimits& limits() const;
  /// cudaStream_t, for the libraries.
  void* stream() const;
  /// Before a library is called: makes the device current, or throws what broke it. Other threads' calls wait until the
  /// result is gone.
  [[nodiscard]] std::unique_lock<std::recursive_mutex> enter();
  /// Work that a library queues on stream(), under this name.
  void count(const char* name);
  /// Throws what broke the device, if a kernel did; else `what`, for a library's call that failed.
  [[noreturn]] void library_failed(const std::string& what, bool memory);
  /// Throws Error(usage) "capture: the step calls WHAT, ..." inside a capture.
  void refuse_in_capture(const char* what) const;

  struct Impl;

 private:
  friend class Event;
  std::shared_ptr<Impl> impl_;  // graphs share it
};

/// A moment in the stream, for timings.
class Event {
 public:
  Event();
  ~Event();
  Event(Event&&) noexcept;
  Event& operator=(Event&&) noexcept;
  /// Marks the end of what was queued so far. Not in a capture.
  void record(Context&);
  /// Between two recorded moments; waits for both.
  double seconds_since(const Event& start) const;
  struct Impl;

 private:
  std::unique_ptr<Impl> impl_;
};

/// Frees memory of the device after the work that uses it. CUDA forbids that in a capture; the caller keeps what a graph
/// uses.
void device_release(void*, int index) noexcept;
/// For destructors: a device is current, and a capture of this thread is not invalidated by what they free.
class OnDevice {
 public:
  explicit OnDevice(int index) noexcept;
  ~OnDevice();
  OnDevice(const OnDevice&) = delete;
  OnDevice& operator=(const OnDevice&) = delete;

 private:
  int mode_;  // the thread's
};
/// Devices that the driver finds; 0 without driver. `why`, if given, says what is missing.
int device_count(std::string* why = nullptr);
/// What nacre::cuda_inventory() tells.
CudaInventory inventory();
/// The libraries' part of it (cufft.cpp).
std::vector<CudaInventory::Library> library_inventory();

/// Batched transforms of real signals by cuFFT, without normalisation. Plans and work area belong to it. Its constructor is
/// not for a capture.
class Fft {
 public:
  /// real [batch, length] <-> spectrum [batch, length / 2 + 1, 2]
  Fft(Context&, int64_t length, int64_t batch);
  Fft(Fft&&) noexcept;
  Fft& operator=(Fft&&) noexcept;
  ~Fft();
  /// sum_n x[n] exp(-2 pi i k n / length)
  void forward(Context&, const float* real, float* spectrum);
  /// Its unnormalised inverse for spectra of real signals; the spectrum is lost.
  void inverse(Context&, float* spectrum, float* real);
  struct Impl;

 private:
  std::shared_ptr<Impl> impl_;
};

Runtime& runtime(Context&);
/// Of a CUDA context's device.
const DeviceLimits& limits(const Context&);

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
