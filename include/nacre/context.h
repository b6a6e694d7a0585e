#pragma once
// Context: one device and its threads or stream.
#include <cstddef>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "nacre/error.h"
#include "nacre/view.h"

namespace nacre {

struct Device {
  enum Kind : uint8_t { cpu, cuda };
  Kind kind = cpu;
  int index = 0;
  bool operator==(const Device&) const = default;
};

/// The device as the command line spells it: "cpu", "cuda", "cuda:1".
std::string str(Device);
/// Extents in memory order: "[batch, time, width, channels]".
std::string str(Shape);

/// A recorded step that can be replayed. On CUDA it is a captured graph, which may outlive its context. On the CPU it
/// is the closure itself.
class Graph {
 public:
  explicit Graph(std::function<void()> run) : run_(std::move(run)) {}
  void replay() { run_(); }

 private:
  std::function<void()> run_;
};

/// How CUDA multiplies float activations: in float (fused multiply-adds), or on tensor cores with inputs rounded to 10
/// bits of mantissa. The CPU always uses fp32. Storage in bf16 is a type, not a precision.
enum class Precision : uint8_t { fp32, tf32 };

struct ContextOptions {
  Device device{};
  int threads = 0;  ///< CPU threads; 0: usable_cores()
  Precision precision = Precision::fp32;
};

/// Whether this build can run kernels on a CUDA device of this machine. If not, `why` receives the reason.
bool cuda_available(std::string* why = nullptr);
/// Whether this build includes the CUDA back end.
bool built_with_cuda() noexcept;

/// What the CUDA back end finds on this machine. Missing parts are reported in the fields and never throw.
struct CudaInventory {
  struct Card {
    std::string name, capability;  ///< "NVIDIA H200", "9.0"
    int multiprocessors = 0;
    size_t memory = 0, free = 0;  ///< bytes; free is 0 if the card could not be queried
    size_t shared_per_block = 0;  ///< bytes, the largest amount that a block can request
    std::string unusable;         ///< the reason why no Context can be made on it; empty if one can
  };
  struct Library {
    std::string name, version;  ///< "cuFFT", "12.0.0"; version is empty if the library is missing
    std::string missing;        ///< the loader's error message
    std::string used_by;        ///< ops that cannot run without it; empty: only benchmarks use it
  };
  std::string missing;          ///< the reason why there is no card; empty if there is one
  std::string driver, runtime;  ///< CUDA versions such as "13.0"; driver is empty if there is none
  std::vector<Card> cards;      ///< cards[i] is cuda:i
  std::vector<Library> libraries;
};
CudaInventory cuda_inventory();

/// Number of CPU cores that this process may keep busy, at least 1: the cores of its affinity mask, or fewer if a CPU
/// quota (cgroups 1 or 2) allows less.
int usable_cores();

/// A handle on a device. Moving the handle does not move the device state. Objects made with a context (Codec,
/// TrainingStep) hold handles of their own, so the caller's handle may be moved or destroyed before them.
///
/// Threads. Any number of threads may use a CPU context at once, each with its own codec or buffers. The loops of one
/// caller run on the context's threads; meanwhile the loops of a second caller run on its own thread. Results have the
/// same bits in every case, also inside a caller's parallel region (OpenMP, a pool) and in a forked process. A CUDA
/// context queues the work of all threads in one stream and keeps each thread's order. A capture takes what the
/// capturing thread queues; other threads wait. CUDA does not work in a forked process: calls throw Error(usage) there.
///
/// A call on a CUDA context makes its device the thread's current one, as cudaSetDevice does. A kernel that fails
/// throws Error(device) (exit code 6) and makes the device unusable for this process: every later call throws the same
/// message.
class Context {
 public:
  /// Throws Error(device) if this build or this machine cannot provide the device.
  explicit Context(ContextOptions = {});
  Context(Context&&) noexcept;
  Context& operator=(Context&&) noexcept;
  ~Context();
  /// Another handle on the same device, threads and stream.
  Context share() const;

  Device device() const noexcept;
  int threads() const noexcept;
  Precision precision() const noexcept;
  /// Everything about the hardware that affects the bits of a result: the instruction set that the CPU kernels were
  /// dispatched to ("avx512", "avx2" or "baseline"), or the CUDA device with its versions and precision.
  const char* instruction_set() const noexcept;

  /// Records `step` once; see Graph. The step must not allocate, wait for the device, or branch on device data.
  Graph capture(std::function<void()> step);
  /// Waits until all work launched so far has finished. On CUDA, only this function, read() and write() block.
  void synchronize();

  /// Copies device to host (read) or host to device (write). `to` and `from` must hold the same number of elements.
  template <class T>
  void read(std::type_identity_t<View<const T>> from, std::span<T> to) {
    to_host(to.data(), from.data, bytes_of(from.elements(), to.size(), sizeof(T)));
  }
  template <class T>
  void write(std::type_identity_t<std::span<const T>> from, View<T> to) {
    to_device(to.data, from.data(), bytes_of(to.elements(), from.size(), sizeof(T)));
  }
  float read(View<const float> scalar);
  /// As write(), but does not wait for running work: the copy uses pinned memory and a second stream. Work queued later
  /// sees the new values; work queued earlier sees the old ones. The first call for a destination allocates.
  template <class T>
  void upload(std::type_identity_t<std::span<const T>> from, View<T> to) {
    upload(to.data, from.data(), bytes_of(to.elements(), from.size(), sizeof(T)));
  }
  /// Copies device to device, in stream order. Both views must hold the same number of elements.
  template <class T>
  void copy(std::type_identity_t<View<const T>> from, View<T> to) {
    on_device(to.data, from.data, bytes_of(from.elements(), static_cast<size_t>(to.elements()), sizeof(T)));
  }
  /// Sets every byte to zero, in stream order.
  template <class T>
  void zero(View<T> v) {
    clear(v.data, static_cast<size_t>(v.elements()) * sizeof(T));
  }

  struct Impl;
  Impl& impl() noexcept { return *impl_; }
  const Impl& impl() const noexcept { return *impl_; }

 private:
  explicit Context(std::shared_ptr<Impl>) noexcept;
  static size_t bytes_of(int64_t view, size_t span, size_t size);
  void to_host(void* to, const void* from, size_t bytes);
  void to_device(void* to, const void* from, size_t bytes);
  void on_device(void* to, const void* from, size_t bytes);
  void upload(void* to, const void* from, size_t bytes);
  void clear(void* data, size_t bytes);
  std::shared_ptr<Impl> impl_;
};

/// An owned, zero-filled block in the context's device memory, aligned to 256 bytes. Throws Error(memory) that states
/// the requested size.
class Memory {
 public:
  Memory() = default;
  Memory(Context&, size_t bytes);
  Memory(Memory&&) noexcept;
  Memory& operator=(Memory&&) noexcept;
  ~Memory();

  std::byte* data() const noexcept { return data_; }
  size_t size() const noexcept { return bytes_; }
  explicit operator bool() const noexcept { return data_ != nullptr; }

 private:
  void release() noexcept;
  std::byte* data_ = nullptr;
  size_t bytes_ = 0;
  Device device_{};
};

/// Bytes held by all Memory objects of a device: now, and the peak since the last reset.
struct MemoryUse {
  size_t now = 0, peak = 0;
};
MemoryUse memory_use(Device) noexcept;
void reset_memory_peak(Device) noexcept;

}  // namespace nacre
