#pragma once
// Context: one device, its threads or stream, and every cache of a library underneath (oneDNN primitives, FFT plans).
#include <cstddef>
#include <functional>
#include <memory>
#include <span>
#include <string>

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

/// A step that can be run again: on CUDA a captured graph, on the CPU the closure itself.
class Graph {
 public:
  explicit Graph(std::function<void()> run) : run_(std::move(run)) {}
  void replay() { run_(); }

 private:
  std::function<void()> run_;
};

struct ContextOptions {
  Device device{};
  int threads = 0;  ///< CPU threads; 0 takes every core this process may run on
};

class Context {
 public:
  /// Throws Error(device) when this build or this machine cannot serve the device.
  explicit Context(ContextOptions = {});
  Context(Context&&) noexcept;
  Context& operator=(Context&&) noexcept;
  ~Context();

  Device device() const noexcept;
  int threads() const noexcept;
  /// The instruction set the CPU kernels were dispatched to: "avx512", "avx2" or "baseline". Part of what decides bits.
  const char* instruction_set() const noexcept;

  /// Records `step` once; see Graph. The step must not allocate, wait, or branch on device data.
  Graph capture(std::function<void()> step);
  /// Waits until everything launched so far is done. This and read() block; nothing else does.
  void synchronize();

  /// Device to host, host to device. `to` and `from` must hold the same number of elements.
  template <class T>
  void read(std::type_identity_t<View<const T>> from, std::span<T> to) {
    transfer(to.data(), from.data, bytes_of(from.elements(), to.size(), sizeof(T)));
  }
  template <class T>
  void write(std::type_identity_t<std::span<const T>> from, View<T> to) {
    transfer(to.data, from.data(), bytes_of(to.elements(), from.size(), sizeof(T)));
  }
  float read(View<const float> scalar);
  /// Device to device, in stream order; both must have the same number of elements.
  template <class T>
  void copy(std::type_identity_t<View<const T>> from, View<T> to) {
    transfer(to.data, from.data, bytes_of(from.elements(), static_cast<size_t>(to.elements()), sizeof(T)));
  }
  /// Sets every byte to zero, in stream order.
  template <class T>
  void zero(View<T> v) {
    clear(v.data, static_cast<size_t>(v.elements()) * sizeof(T));
  }

  struct Impl;
  Impl& impl() noexcept { return *impl_; }

 private:
  static size_t bytes_of(int64_t view, size_t span, size_t size);
  void transfer(void* to, const void* from, size_t bytes);
  void clear(void* data, size_t bytes);
  std::unique_ptr<Impl> impl_;
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

}  // namespace nacre
