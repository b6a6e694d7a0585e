#pragma once
// Device memory of the emulated devices: closed to host code, of one device each.
#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>
#include <vector>

namespace nacre::emulation {

struct Buffer {
  size_t bytes;
  enum Kind : uint8_t { heap, mapped, watched } kind;
  int device;
};
/// By address; of all devices.
std::map<std::byte*, Buffer>& buffers();

/// Opens memory to kernels and copies until the end of the scope: a kernel's device alone, or all (-1).
class Open {
 public:
  explicit Open(int device);
  ~Open();
  Open(const Open&) = delete;
  Open& operator=(const Open&) = delete;

 private:
  int device_;
};

/// The device whose buffer holds all of it, if any.
std::optional<int> device_of(const void* at, size_t bytes);
/// Whether it lies in host memory that cudaMallocHost made.
bool pinned(const void* at);

}  // namespace nacre::emulation
