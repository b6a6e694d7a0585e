#pragma once
// The memory of the emulated devices. It is closed to host code, and each buffer belongs to one device.
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
/// All buffers of all devices, by address.
std::map<std::byte*, Buffer>& buffers();

/// How many buffers have been freed.
inline uint64_t released_buffers = 0;

/// Opens memory to kernels and copies until the end of the scope: of one device, or of all (-1).
class Open {
 public:
  explicit Open(int device);
  ~Open();
  Open(const Open&) = delete;
  Open& operator=(const Open&) = delete;

 private:
  int device_;
};

/// The device of the buffer that contains [at, at + bytes), if there is one.
std::optional<int> device_of(const void* at, size_t bytes);
/// Whether the address is in memory from cudaMallocHost.
bool pinned(const void* at);

}  // namespace nacre::emulation
