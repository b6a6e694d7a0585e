// Memory of the emulated devices, in one of three ways (Buffer::Kind):
//
//   heap      posix_memalign of exactly the bytes, filled with 0xa5
//   mapped    64 MiB or more, unless traffic is counted: pages that cost nothing until they are touched, and read as
//             zeros
//   watched   in builds with NACRE_WATCH: in the arena of shadow.cpp, which has a record for every two bytes. With
//             AddressSanitizer, small buffers are poisoned while host code runs
#include "runtime/emulated/memory.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <iterator>

#include "runtime/emulated/cuda_runtime.h"
#include "runtime/emulated/devices.h"
#include "runtime/emulated/scheduler.h"
#include "runtime/emulated/shadow.h"
#include "runtime/emulated/streams.h"
#include "runtime/emulated/traffic.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#endif

namespace nacre::emulation {
namespace {

constexpr size_t map_from = size_t{64} << 20;  // larger blocks are mapped: untouched zeros cost nothing
constexpr size_t hide_to = 256 << 10;          // blocks up to this size are closed to host code (AddressSanitizer)

// Poisoning takes time for every byte at each Open, so only small buffers are closed.
void hide(std::byte* p, const Buffer& b, bool hidden) {
#if defined(__SANITIZE_ADDRESS__)
  if (b.kind == Buffer::mapped || b.bytes > hide_to) return;
  if (hidden)
    __asan_poison_memory_region(p, b.bytes);
  else
    __asan_unpoison_memory_region(p, b.bytes);
#else
  (void)p, (void)b, (void)hidden;
#endif
}
/// device: -1 for all of them.
void hide_all(int device, bool hidden) {
  for (const auto& [p, b] : buffers())
    if (device < 0 || b.device == device) hide(p, b, hidden);
}
std::map<const std::byte*, size_t>& pinned_buffers() {
  static auto* const p = new std::map<const std::byte*, size_t>;
  return *p;
}
/// Bytes of all buffers of a device.
size_t used(int device) {
  size_t bytes = 0;
  for (const auto& [p, b] : buffers())
    if (b.device == device) bytes += b.bytes;
  return bytes;
}

/// Allocates b.bytes and sets b.kind. Null if there is no memory.
std::byte* allocate(Buffer& b) {
  void* p = nullptr;
  // Large blocks stay lazy, so that shapes larger than the machine's memory can be tested at their edges. They are
  // neither watched nor closed, unless their bytes are to be counted.
  if (b.bytes >= map_from && !counts_traffic()) {
    b.kind = Buffer::mapped;
    p = mmap(nullptr, b.bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED) return nullptr;
  } else if (watches_accesses) {
    b.kind = Buffer::watched;
    p = watched_allocate(b.bytes, b.device);
  } else {
    if (posix_memalign(&p, 256, b.bytes) != 0) return nullptr;
    std::memset(p, 0xa5, b.bytes);  // undefined content
  }
  return static_cast<std::byte*>(p);
}

}  // namespace

// Never destroyed, so that memory may be freed until the process's end.
std::map<std::byte*, Buffer>& buffers() {
  static auto* const b = new std::map<std::byte*, Buffer>;
  return *b;
}
Open::Open(int device) : device_(device) { hide_all(device_, false); }
Open::~Open() { hide_all(device_, true); }

std::optional<int> device_of(const void* at, size_t bytes) {
  // The buffer that begins last at or before the address. It must also hold the end of the range.
  auto next = buffers().upper_bound(static_cast<std::byte*>(const_cast<void*>(at)));
  if (next == buffers().begin()) return {};
  const auto& [p, b] = *std::prev(next);
  if (static_cast<const std::byte*>(at) + bytes > p + b.bytes) return {};
  return b.device;
}
bool pinned(const void* at) {
  auto next = pinned_buffers().upper_bound(static_cast<const std::byte*>(at));
  if (next == pinned_buffers().begin()) return false;
  const auto& [p, bytes] = *std::prev(next);
  return static_cast<const std::byte*>(at) < p + bytes;
}

}  // namespace nacre::emulation

using namespace nacre::emulation;

cudaError_t cudaMemGetInfo(size_t* free, size_t* all) {
  const Api api;
  *all = device().memory;
  *free = *all - std::min(*all, used(api.device()));
  return api.broken(api.device());
}
cudaError_t cudaMalloc(void** to, size_t bytes) {
  const Api api;
  // As in CUDA, allocating and freeing in a capture of this thread fail and invalidate the capture.
  if (const cudaError_t e = api.unsafe_in_capture(); e != cudaSuccess) return e;
  if (const cudaError_t e = api.broken(api.device()); e != cudaSuccess) return e;
  Buffer b{bytes, Buffer::heap, api.device()};
  if (used(b.device) + bytes > device().memory) return api.fails(cudaErrorMemoryAllocation);
  std::byte* const p = allocate(b);
  if (p == nullptr) return api.fails(cudaErrorMemoryAllocation);
  buffers()[p] = b;
  hide(p, b, true);
  *to = p;
  return cudaSuccess;
}
cudaError_t cudaFree(void* p) {
  const Api api;
  if (const cudaError_t e = api.unsafe_in_capture(); e != cudaSuccess) return e;
  if (p == nullptr) return cudaSuccess;
  const auto found = buffers().find(static_cast<std::byte*>(p));
  if (found == buffers().end()) return api.fails(cudaErrorInvalidValue);
  // As cudaFree does: queued work that uses the memory runs first.
  finish_device(found->second.device);
  const Buffer b = found->second;
  hide(found->first, b, false);
  buffers().erase(found);
  ++released_buffers;
  if (b.kind == Buffer::mapped) munmap(p, b.bytes);
  if (b.kind == Buffer::watched) watched_release(p, b.bytes);
  if (b.kind == Buffer::heap) std::free(p);
  return cudaSuccess;
}
cudaError_t cudaMallocHost(void** to, size_t bytes) {
  const Api api;
  if (const cudaError_t e = api.unsafe_in_capture(); e != cudaSuccess) return e;
  if (const cudaError_t e = api.broken(api.device()); e != cudaSuccess) return e;
  *to = std::malloc(bytes);
  if (*to == nullptr) return api.fails(cudaErrorMemoryAllocation);
  pinned_buffers()[static_cast<std::byte*>(*to)] = bytes;
  return cudaSuccess;
}
cudaError_t cudaFreeHost(void* p) {
  const Api api;
  if (const cudaError_t e = api.unsafe_in_capture(); e != cudaSuccess) return e;
  // Queued copies of any device may use it, since they read and write pinned memory when they run.
  finish_device(-1);
  pinned_buffers().erase(static_cast<std::byte*>(p));
  std::free(p);
  return cudaSuccess;
}
