// The shadow of memory: who touched every two bytes last, in which launch, block and between which barriers. The
// kernels are compiled with -fsanitize=thread, which calls __tsan_* at each access; those functions are ours
// (ThreadSanitizer's own runtime misses planted races between blocks at some block sizes, and knows nothing of
// barriers). Two accesses conflict when at least one writes, they come from different threads, not both are atomic, and
// no barrier lies between: between blocks never one, within a block __syncthreads, within a warp also __syncwarp.
// Shuffles order nothing.
//
// Compiled without NACRE_WATCH all of this is empty.
#include "emulation/shadow.h"

#include <sys/mman.h>

#include <cstdio>
#include <new>
#include <string>

#include "emulation/scheduler.h"

namespace nacre::emulation {

#if !defined(NACRE_WATCH)

const bool watches_accesses = false;
void shadow_launch(std::byte*, size_t) {}
void shadow_shared(const void*, size_t) {}
void shadow_write(void*, size_t) {}
void shadow_read(const void*, size_t) {}
void shadow_pending(void*, size_t, bool) {}
AtomicSection::AtomicSection() {}
AtomicSection::~AtomicSection() {}
void* watched_allocate(size_t) { return nullptr; }
void watched_release(void*, size_t) {}

#else

const bool watches_accesses = true;

namespace {

/// Who, and when.
struct Touch {
  uint64_t block = 0;  ///< serial number: 0 is nobody
  uint32_t epoch = 0, warp_epoch = 0;
  uint16_t thread = 0;
  bool atomic = false;
  bool several_threads = false;  ///< in this epoch, not all of one thread
  bool several_warps = false;
  bool several_blocks = false;
};
struct Cell {
  uint32_t launch = 0;
  bool pending = false;
  bool allocated = false;
  uint32_t array_of = 0;  ///< of shared memory: the launch whose array this belongs to
  Touch write, read;
};
constexpr size_t grain = 2;
constexpr size_t arena_bytes = size_t{6} << 30;
constexpr size_t guard = 256;

std::byte* map_memory(size_t bytes) {
  void* p = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (p == MAP_FAILED) throw std::bad_alloc();
  return static_cast<std::byte*>(p);
}

struct Arena {
  std::byte* memory = map_memory(arena_bytes);
  Cell* cells = reinterpret_cast<Cell*>(map_memory(arena_bytes / grain * sizeof(Cell)));
  size_t used = guard;
};
Arena& arena() {
  static Arena* const a = new Arena;
  return *a;
}

std::byte* shared_begin = nullptr;
size_t shared_bytes = 0;
Cell* shared_cells = nullptr;
uint32_t launch_number = 0;
bool in_atomic = false, reporting = false;

void report(const void* at, bool shared, const char* did, const char* before, const Touch& t) {
  reporting = true;
  char text[160];
  const bool other_block = t.several_blocks || t.block != block.serial;
  std::snprintf(text, sizeof(text),
                "has a race on %s memory: it %s what %s%s %s before, with no barrier between (offset %zu)",
                shared ? "shared" : "device", did, other_block ? "a thread of another block" : "thread ",
                other_block ? "" : std::to_string(t.thread).c_str(), before,
                shared ? static_cast<size_t>(static_cast<const std::byte*>(at) - shared_begin)
                       : static_cast<size_t>(static_cast<const std::byte*>(at) - arena().memory));
  reporting = false;
  fail(text);
}

bool conflicts(const Touch& t, bool atomic) {
  if (t.block == 0 || (atomic && t.atomic)) return false;
  if (t.several_blocks || t.block != block.serial) return true;
  if (t.epoch != block.epoch) return false;
  const Thread& me = *self;
  if (t.thread == me.linear && !t.several_threads) return false;
  if (t.several_warps || t.thread / 32 != me.linear / 32) return true;
  return t.warp_epoch >= me.warp_epoch;
}

void note(Touch& t, bool atomic) {
  const Thread& me = *self;
  Touch now{block.serial, block.epoch, me.warp_epoch, static_cast<uint16_t>(me.linear), atomic, false, false, false};
  if (t.block != 0) {
    now.several_blocks = t.several_blocks || t.block != block.serial;
    // Touches of this warp alone, before its last __syncwarp, are behind us: this one stands for all of them.
    const bool past = !t.several_warps && t.thread / 32 == me.linear / 32 && t.warp_epoch < me.warp_epoch;
    if (t.block == block.serial && t.epoch == block.epoch && !past) {
      now.several_threads = t.several_threads || t.thread != me.linear;
      now.several_warps = t.several_warps || t.thread / 32 != me.linear / 32;
      now.warp_epoch = now.several_threads && t.warp_epoch > now.warp_epoch ? t.warp_epoch : now.warp_epoch;
      now.atomic = atomic && t.atomic;
    }
  }
  t = now;
}

void touch(const void* address, size_t bytes, bool writes) {
  if (self == nullptr || reporting) return;
  const auto* at = static_cast<const std::byte*>(address);
  Cell* cells = nullptr;
  bool shared = false;
  Arena& a = arena();
  if (at >= shared_begin && at < shared_begin + shared_bytes) {
    shared = true;
    cells = shared_cells + (at - shared_begin) / grain;
  } else if (at >= a.memory && at < a.memory + arena_bytes) {
    cells = a.cells + (at - a.memory) / grain;
  } else {
    return;  // the thread's own stack, or a constant
  }
  for (size_t i = 0; i < (bytes + grain - 1) / grain; ++i) {
    Cell& c = cells[i];
    const uint32_t number = shared ? static_cast<uint32_t>(block.serial) : launch_number;
    if (c.launch != number) {
      c.launch = number;
      c.write = c.read = {};
      if (shared) c.pending = false;
    }
    if (shared && c.array_of != launch_number) fail("touches shared memory that belongs to no array (beyond its end)");
    if (!shared && !c.allocated)
      fail("touches device memory that belongs to no buffer (beyond its end, or before its start)");
    if (c.pending) fail("touches bytes of a cp.async that it has not waited for");
    if (conflicts(c.write, in_atomic)) report(at, shared, writes ? "writes" : "reads", "wrote", c.write);
    if (writes && conflicts(c.read, in_atomic)) report(at, shared, "writes", "read", c.read);
    note(writes ? c.write : c.read, in_atomic);
  }
}

void mark(std::byte* p, size_t bytes, bool allocated) {
  Arena& a = arena();
  for (size_t i = 0; i < (bytes + grain - 1) / grain; ++i)
    a.cells[static_cast<size_t>(p - a.memory) / grain + i].allocated = allocated;
}

}  // namespace

void shadow_launch(std::byte* shared, size_t bytes) {
  if (shared_cells == nullptr) shared_cells = reinterpret_cast<Cell*>(map_memory(bytes / grain * sizeof(Cell)));
  shared_begin = shared, shared_bytes = bytes;
  ++launch_number;
}
void shadow_shared(const void* at, size_t bytes) {
  const size_t first = static_cast<size_t>(static_cast<const std::byte*>(at) - shared_begin) / grain;
  for (size_t i = 0; i < (bytes + grain - 1) / grain; ++i) shared_cells[first + i].array_of = launch_number;
}
void shadow_write(void* at, size_t bytes) { touch(at, bytes, true); }
void shadow_read(const void* at, size_t bytes) { touch(at, bytes, false); }
void shadow_pending(void* at, size_t bytes, bool pending) {
  const auto* p = static_cast<const std::byte*>(at);
  if (p < shared_begin || p >= shared_begin + shared_bytes) return;
  for (size_t i = 0; i < bytes / grain; ++i)
    shared_cells[static_cast<size_t>(p - shared_begin) / grain + i].pending = pending;
}
AtomicSection::AtomicSection() { in_atomic = true; }
AtomicSection::~AtomicSection() { in_atomic = false; }

void* watched_allocate(size_t bytes) {
  Arena& a = arena();
  const size_t rounded = (bytes + guard - 1) / guard * guard;
  if (a.used + rounded + guard > arena_bytes) return nullptr;
  std::byte* p = a.memory + a.used;
  a.used += rounded + guard;  // never used again: addresses of the dead stay recognisable
  mark(p, bytes, true);
  return p;
}
void watched_release(void* p, size_t bytes) {
  mark(static_cast<std::byte*>(p), bytes, false);
  const auto begin = (reinterpret_cast<uintptr_t>(p) + 4095) / 4096 * 4096,
             end = (reinterpret_cast<uintptr_t>(p) + bytes) / 4096 * 4096;
  if (end > begin) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_DONTNEED);
}

#endif

}  // namespace nacre::emulation

#if defined(NACRE_WATCH)
extern "C" {
#define NACRE_ACCESS(bytes)                                                                 \
  void __tsan_read##bytes(void* p) { nacre::emulation::shadow_read(p, bytes); }             \
  void __tsan_write##bytes(void* p) { nacre::emulation::shadow_write(p, bytes); }           \
  void __tsan_unaligned_read##bytes(void* p) { nacre::emulation::shadow_read(p, bytes); }   \
  void __tsan_unaligned_write##bytes(void* p) { nacre::emulation::shadow_write(p, bytes); } \
  void __tsan_volatile_read##bytes(void* p) { nacre::emulation::shadow_read(p, bytes); }    \
  void __tsan_volatile_write##bytes(void* p) { nacre::emulation::shadow_write(p, bytes); }
NACRE_ACCESS(1)
NACRE_ACCESS(2)
NACRE_ACCESS(4)
NACRE_ACCESS(8)
NACRE_ACCESS(16)
void __tsan_read_range(void* p, unsigned long n) { nacre::emulation::shadow_read(p, n); }
void __tsan_write_range(void* p, unsigned long n) { nacre::emulation::shadow_write(p, n); }
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_vptr_update(void**, void*) {}
void __tsan_vptr_read(void**) {}
}
#endif
