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

/// "cpu", "cuda", "cuda:1".
std::string str(Device);
/// "[batch, time, width, channels]".
std::string str(Shape);

/// A step that can be run again: on CUDA a captured graph, which may outlive its context, on the CPU the closure itself.
class Graph {
 public:
  explicit Graph(std::function<void()> run) : run_(std::move(run)) {}
  void replay() { run_(); }

 private:
  std::function<void()> run_;
};

/// How CUDA multiplies float activations: as floats (fused multiply-adds), or on tensor cores with inputs rounded to 10
/// bits of mantissa. The CPU always takes fp32. Storage in bf16 is a type, not a precision.
enum class Precision : uint8_t { fp32, tf32 };

struct ContextOptions {
  Device device{};
  int threads = 0;  ///< CPU threads; 0 takes as many as usable_cores() says
  Precision precision = Precision::fp32;
};

/// Whether this build and this machine can run kernels on a CUDA device; if not, `why` says what is missing.
bool cuda_available(std::string* why = nullptr);
/// Whether this build has a CUDA back end at all.
bool built_with_cuda() noexcept;

/// What this machine has for the CUDA back end. Never throws for what is missing: it says so.
struct CudaInventory {
  struct Card {
    std::string name, capability;  ///< "NVIDIA H200", "9.0"
    int multiprocessors = 0;
    size_t memory = 0, free = 0;  ///< bytes; free is 0 where the card could not be asked
    size_t shared_per_block = 0;  ///< bytes, the most that a block can ask for
    std::string unusable;         ///< why a Context cannot be made on it; empty if it can
  };
  struct Library {
    std::string name, version;  ///< "cuFFT", "12.0.0"; empty if it is missing
    std::string missing;        ///< what the loader says
    std::string used_by;        ///< ops that cannot run without it; empty: benches alone
  };
  std::string missing;          ///< why there is no card at all; else empty
  std::string driver, runtime;  ///< CUDA versions, "13.0"; driver is empty without one
  std::vector<Card> cards;      ///< cards[i] is cuda:i
  std::vector<Library> libraries;
};
CudaInventory cuda_inventory();

/// CPU cores that this process may keep busy: those of its affinity, or fewer where a CPU quota (cgroups 1 and 2) allows
/// less; at least 1.
int usable_cores();

/// A handle: moving it moves nothing underneath, and what was made with it (Codec, TrainingStep) holds a handle of its
/// own, so that it may be moved or destroyed before they are.
///
/// Threads. A CPU context may be used by any number of threads at once, each with its own codec or buffers: loops of one
/// caller run on the context's threads, those of a second one meanwhile on its own thread. Results are the same bits in
/// every case, also inside a caller's parallel region (OpenMP, a pool) and in a process that was forked off. A CUDA
/// context queues the work of all threads in one stream, each thread's in its order; a capture takes what the capturing
/// thread queues, and others wait. In a forked process CUDA does not work: Error(usage) says so.
///
/// A call on a CUDA context leaves its device the thread's current one, as cudaSetDevice does. A kernel that fails
/// (Error(device), exit code 6) ends the device for this process: every later call throws the same words.
class Context {
 public:
  /// Throws Error(device) when this build or this machine cannot serve the device.
  explicit Context(ContextOptions = {});
  Context(Context&&) noexcept;
  Context& operator=(Context&&) noexcept;
  ~Context();
  /// Another handle on the same device, threads and stream.
  Context share() const;

  Device device() const noexcept;
  int threads() const noexcept;
  Precision precision() const noexcept;
  /// What decides bits: the instruction set the CPU kernels were dispatched to ("avx512", "avx2" or
  /// "baseline"), or the CUDA device with its versions and precision.
  const char* instruction_set() const noexcept;

  /// Records `step` once; see Graph. The step must not allocate, wait, or branch on device data.
  Graph capture(std::function<void()> step);
  /// Waits until everything launched so far is done. This and read() block; nothing else does.
  void synchronize();

  /// Device to host, host to device. `to` and `from` must hold the same number of elements.
  template <class T>
  void read(std::type_identity_t<View<const T>> from, std::span<T> to) {
    to_host(to.data(), from.data, bytes_of(from.elements(), to.size(), sizeof(T)));
  }
  template <class T>
  void write(std::type_identity_t<std::span<const T>> from, View<T> to) {
    to_device(to.data, from.data(), bytes_of(to.elements(), from.size(), sizeof(T)));
  }
  float read(View<const float> scalar);
  /// As write, without waiting for what runs: by way of pinned memory and a second stream. What is queued later sees
  /// the new values, what was queued before the old ones. The first call for a destination allocates.
  template <class T>
  void upload(std::type_identity_t<std::span<const T>> from, View<T> to) {
    upload(to.data, from.data(), bytes_of(to.elements(), from.size(), sizeof(T)));
  }
  /// Device to device, in stream order; both must have the same number of elements.
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

/// An owned block on the context's device, aligned to 256 bytes, zero-filled. Throws Error(memory) with the size
/// wanted.
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

/// Bytes that all Memory of a device holds, and what it held at most since the last reset.
struct MemoryUse {
  size_t now = 0, peak = 0;
};
MemoryUse memory_use(Device) noexcept;
void reset_memory_peak(Device) noexcept;

}  // namespace nacre
