// Shadow memory: for every two bytes, which thread accessed them last, in which launch and block, and between which
// barriers. The kernels are compiled with -fsanitize=thread, which calls a __tsan_* function at each access. Those
// functions are defined here: ThreadSanitizer's runtime misses planted races between blocks at some block sizes, and it
// does not know CUDA's barriers. Two accesses conflict if at least one writes, they come from different threads, not
// both are atomic, and no barrier separates them. A barrier is __syncthreads within a block, and also __syncwarp within
// a warp; none separates blocks. Shuffles do not order memory.
//
// An access goes from a __tsan_* function to touch(), which finds the cells of its bytes (of shared memory by offset,
// of device memory by page), to touch_cells(), which compares it with each cell's last write and last read (conflicts)
// and notes it (together). One kernel runs at a time, under the lock of streams.cpp, so nothing here needs a lock.
//
// Without NACRE_WATCH these functions are empty.
#include "runtime/emulated/shadow.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <new>
#include <string>

#include "runtime/emulated/scheduler.h"
#include "runtime/emulated/traffic.h"

// AddressSanitizer's, in a program that has it, and null in others.
extern "C" {
[[gnu::weak]] void* __asan_region_is_poisoned(void* begin, size_t bytes);
[[gnu::weak]] void __asan_report_error(void* pc, void* bp, void* sp, void* address, int writes, size_t bytes);
}

namespace nacre::emulation {

#if !defined(NACRE_WATCH)

const bool watches_accesses = false;
void shadow_launch(std::byte*, size_t, int) {}
void shadow_shared(const void*, size_t) {}
void shadow_write(void*, size_t) {}
void shadow_read(const void*, size_t) {}
void shadow_pending(void*, size_t, bool) {}
AtomicSection::AtomicSection() {}
AtomicSection::~AtomicSection() {}
Unwatched::Unwatched() {}
Unwatched::~Unwatched() {}
void* watched_allocate(size_t, int) { return nullptr; }
void watched_release(void*, size_t) {}

#else

const bool watches_accesses = true;

namespace {

/// The thread and time of an access, in two words that are read and written whole: tests spend most of their time here.
struct Touch {
  uint64_t when = 0;  ///< the block's serial number << 32 | epoch; a process that runs 2^32 blocks would take hours
  uint64_t who = 0;   ///< the thread's warp_epoch << 32 | thread << 16 | how
  uint32_t block() const { return static_cast<uint32_t>(when >> 32); }
  uint32_t thread() const { return static_cast<uint16_t>(who >> 16); }
  uint32_t warp_epoch() const { return static_cast<uint32_t>(who >> 32); }
  bool is(uint64_t how) const { return (who & how) != 0; }
};
// Flags of `how`:
constexpr uint64_t atomically = 1;
constexpr uint64_t several_threads = 2;  // in this epoch, accesses by more than one thread
constexpr uint64_t several_warps = 4;
constexpr uint64_t several_blocks = 8;
constexpr uint64_t pending_copy = 16;  // of writes: by a cp.async that was not yet waited for
// The last write and the last read of two bytes. Two suffice: a later access in order replaces the entry, and accesses
// without an order between them are combined into one with flags.
struct alignas(32) Cell {
  Touch write, read;
};
constexpr size_t grain = 2;
constexpr size_t arena_bytes = size_t{6} << 30;
constexpr size_t guard = 256, page = 4096;
constexpr size_t huge_page = size_t{2} << 20;

std::byte* map_memory(size_t bytes) {
  void* p = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (p == MAP_FAILED) throw std::bad_alloc();
  return static_cast<std::byte*>(p);
}
/// Maps the cells for [0, bytes) of memory, sixteen bytes of cells per byte, in huge pages if available.
Cell* map_cells(size_t bytes) {
  const size_t all = bytes / grain * sizeof(Cell) + huge_page;
  const auto at = (reinterpret_cast<uintptr_t>(map_memory(all)) + huge_page - 1) / huge_page * huge_page;
  madvise(reinterpret_cast<void*>(at), all - huge_page, MADV_HUGEPAGE);
  return reinterpret_cast<Cell*>(at);
}

/// Device memory, mapped on first use. Addresses are never reused, so that accesses to freed memory are recognised. The
/// cells of freed pages are reused, because their content is older than any later launch.
struct Arena {
  struct Page {
    Cell* cells;
    size_t buffers;  ///< that overlap the page
  };
  std::byte* memory = nullptr;
  uint8_t* allocated = nullptr;  ///< of every two bytes, the device + 1 whose buffer they belong to, or 0
  Page* pages = nullptr;
  Cell* cells = nullptr;
  Cell** spare = nullptr;
  size_t bytes = 0, used = guard, cells_used = 0, spares = 0;

  void map() {
    memory = map_memory(arena_bytes);
    allocated = reinterpret_cast<uint8_t*>(map_memory(arena_bytes / grain));
    pages = reinterpret_cast<Page*>(map_memory(arena_bytes / page * sizeof(Page)));
    cells = map_cells(arena_bytes);
    spare = reinterpret_cast<Cell**>(map_memory(arena_bytes / page * sizeof(Cell*)));
    bytes = arena_bytes;
  }
  /// Notes that a buffer begins (owner: device + 1) or ends (0). A page has cells while a buffer overlaps it.
  void mark(const std::byte* p, size_t size, int owner) {
    const bool live = owner != 0;
    const size_t at = static_cast<size_t>(p - memory);
    std::memset(allocated + at / grain, owner, (size + grain - 1) / grain);
    for (size_t i = at / page; i * page < at + size; ++i) {
      Page& its = pages[i];
      if (live && its.buffers++ == 0) {
        if (spares > 0)
          its.cells = spare[--spares];
        else
          its.cells = cells + cells_used, cells_used += page / grain;
      } else if (!live && --its.buffers == 0) {
        spare[spares++] = its.cells;
      }
    }
  }
};
Arena arena;

std::byte* shared_begin = nullptr;
size_t shared_bytes = 0;
Cell* shared_cells = nullptr;
uint32_t* shared_array_of = nullptr;  // per two bytes, the launch whose array they belong to
uint32_t launch_number = 0;
uint8_t launch_owner = 1;   // owner of the memory that the running kernel may access: device + 1
uint64_t launch_first = 0;  // `when` of the first access of the running launch
bool in_atomic = false;
bool paused = false;  // accesses are not checked: in an Unwatched, and while a report is written

// Not inlined, to keep the code of correct accesses small.
[[noreturn, gnu::cold, gnu::noinline]] void fail_at_access(const char* what) { fail(what); }
[[noreturn, gnu::cold, gnu::noinline]] void report(const void* at, bool shared, const char* did, const char* before,
                                                   const Touch& t) {
  paused = true;
  char text[160];
  const bool other_block = t.is(several_blocks) || t.block() != static_cast<uint32_t>(block.serial);
  std::snprintf(text, sizeof(text),
                "has a race on %s memory: it %s what %s%s %s before, with no barrier between (offset %zu)",
                shared ? "shared" : "device", did, other_block ? "a thread of another block" : "thread ",
                other_block ? "" : std::to_string(t.thread()).c_str(), before,
                shared ? static_cast<size_t>(static_cast<const std::byte*>(at) - shared_begin)
                       : static_cast<size_t>(static_cast<const std::byte*>(at) - arena.memory));
  paused = false;
  fail(text);
}

/// Whether the access `now` conflicts with the earlier access t.
inline bool conflicts(Touch t, Touch now) {
  // Ordered are: two atomics; another epoch of the same block (a __syncthreads lies between); the same thread; the same
  // warp at a later warp epoch (a __syncwarp lies between). All else conflicts. A cell keeps one entry for all readers
  // (or writers), so its flags say whether more than one thread, warp or block is in it.
  if ((t.who & now.who & atomically) != 0) return false;
  if (t.is(several_blocks) || t.block() != now.block()) return true;
  if (t.when != now.when) return false;
  if (t.thread() == now.thread() && !t.is(several_threads)) return false;
  if (t.is(several_warps) || t.thread() / 32 != now.thread() / 32) return true;
  return t.warp_epoch() >= now.warp_epoch();
}

/// Combines the earlier access t and `now` into one entry.
inline Touch together(Touch t, Touch now) {
  if (t.is(several_blocks) || t.block() != now.block()) now.who |= several_blocks;
  // Accesses by this warp alone, before its last __syncwarp, are ordered before this one, which replaces them.
  const bool same_warp = t.thread() / 32 == now.thread() / 32;
  const bool past = !t.is(several_warps) && same_warp && t.warp_epoch() < now.warp_epoch();
  if (t.when == now.when && !past) {
    if (t.is(several_threads) || t.thread() != now.thread()) {
      now.who |= several_threads;
      if (t.warp_epoch() > now.warp_epoch()) now.who = t.who >> 32 << 32 | (now.who & 0xffffffffu);
    }
    if (t.is(several_warps) || !same_warp) now.who |= several_warps;
    if (!t.is(atomically)) now.who &= ~atomically;
  }
  return now;
}

/// Checks and updates the cells of one access. Entries older than `oldest` are ignored: for device memory those of
/// earlier launches, for shared memory those of earlier blocks.
template <bool writes>
inline void touch_cells(Cell* cells, size_t count, uint64_t oldest, bool shared, const void* at) {
  const Thread& me = *self;
  const Touch now{block.serial << 32 | block.epoch,
                  uint64_t{me.warp_epoch} << 32 | me.linear << 16 | (in_atomic ? atomically : 0)};
  // A read conflicts with earlier writes, a write with earlier writes and reads. The access is noted only after the
  // checks.
  Touch write, read, after;
  for (size_t i = 0; i < count; ++i) {
    Cell& c = cells[i];
    Touch& noted = writes ? c.write : c.read;
    // Bytes accessed together were nearly always accessed together before, so the previous cell's result is reused.
    const bool again = i > 0 && ((c.write.when ^ write.when) | (c.write.who ^ write.who) | (c.read.when ^ read.when) |
                                 (c.read.who ^ read.who)) == 0;
    if (!again) {
      write = c.write, read = c.read;
      if (write.when >= oldest) {
        if (write.is(pending_copy)) fail_at_access("touches bytes of a cp.async that it has not waited for");
        if (conflicts(write, now)) report(at, shared, writes ? "writes" : "reads", "wrote", write);
      }
      if (writes && read.when >= oldest && conflicts(read, now)) report(at, shared, "writes", "read", read);
      after = noted.when >= oldest ? together(noted, now) : now;
    }
    noted = after;
  }
}

/// An access by host code of a .cu file, which AddressSanitizer does not instrument.
[[gnu::noinline]] void touch_on_host(const void* address, size_t bytes, bool writes) {
  auto* const p = const_cast<void*>(address);
  if (__asan_region_is_poisoned == nullptr || __asan_region_is_poisoned(p, bytes) == nullptr) return;
  void* const frame = __builtin_frame_address(0);
  __asan_report_error(__builtin_return_address(0), frame, frame, p, writes, bytes);
  std::abort();
}

/// An access of the running thread, or of host code if self is null.
template <bool writes>
inline void touch(const void* address, size_t bytes) {
  if (paused) return;
  if (self == nullptr) return touch_on_host(address, bytes, writes);
  const auto* at = static_cast<const std::byte*>(address);
  const size_t count = (bytes + grain - 1) / grain;
  // Unsigned: addresses before the beginning become large offsets.
  const size_t in_shared = static_cast<size_t>(at - shared_begin), in_arena = static_cast<size_t>(at - arena.memory);
  if (in_shared < shared_bytes) {
    const size_t first = in_shared / grain;
    for (size_t i = 0; i < count; ++i)
      if (shared_array_of[first + i] != launch_number)
        fail_at_access("touches shared memory that belongs to no array (beyond its end)");
    touch_cells<writes>(shared_cells + first, count, block.serial << 32, true, at);
  } else if (in_arena < arena.bytes) {
    for (size_t i = 0; i < count; ++i)
      if (const uint8_t owner = arena.allocated[in_arena / grain + i]; owner != launch_owner)
        fail_at_access(owner == 0
                           ? "touches device memory that belongs to no buffer (beyond its end, or before its start)"
                           : "touches memory of another device");
    if (counts_accesses) traffic_access(arena.bytes, in_arena, bytes, writes);
    for (size_t done = 0; done < count;) {
      const size_t first = in_arena / grain + done, in_page = first % (page / grain);
      const size_t here = std::min(count - done, page / grain - in_page);
      touch_cells<writes>(arena.pages[first / (page / grain)].cells + in_page, here, launch_first, false, at);
      done += here;
    }
  }  // else the thread's own stack, or a constant
}

}  // namespace

void shadow_launch(std::byte* shared, size_t bytes, int device) {
  launch_owner = static_cast<uint8_t>(device + 1);
  if (shared_cells == nullptr) {
    shared_cells = map_cells(bytes);
    shared_array_of = reinterpret_cast<uint32_t*>(map_memory(bytes / grain * sizeof(uint32_t)));
  }
  shared_begin = shared, shared_bytes = bytes;
  ++launch_number;
  // Launches of one device are ordered, so accesses of earlier ones never conflict. Block numbers only grow: a
  // comparison with the launch's first one tells them apart, and no cell must be cleared.
  launch_first = (block.serial + 1) << 32;
}
void shadow_shared(const void* at, size_t bytes) {
  const size_t first = static_cast<size_t>(static_cast<const std::byte*>(at) - shared_begin) / grain;
  for (size_t i = 0; i < (bytes + grain - 1) / grain; ++i) shared_array_of[first + i] = launch_number;
}
namespace {
/// touch() of any address. An odd one lies in the middle of a cell, which is then touched as a whole.
template <bool writes>
void touch_unaligned(const void* address, size_t bytes) {
  const size_t before = reinterpret_cast<uintptr_t>(address) % grain;
  touch<writes>(static_cast<const std::byte*>(address) - before, bytes + before);
}
}  // namespace
void shadow_write(void* at, size_t bytes) { touch_unaligned<true>(at, bytes); }
void shadow_read(const void* at, size_t bytes) { touch_unaligned<false>(at, bytes); }
void shadow_pending(void* at, size_t bytes, bool pending) {
  const auto* p = static_cast<const std::byte*>(at);
  if (paused) return;
  if (p < shared_begin || p >= shared_begin + shared_bytes) return;
  for (size_t i = 0; i < bytes / grain; ++i) {
    // The copy itself has just written here, so the entry exists.
    Touch& t = shared_cells[static_cast<size_t>(p - shared_begin) / grain + i].write;
    t.who = pending ? t.who | pending_copy : t.who & ~pending_copy;
  }
}
AtomicSection::AtomicSection() { in_atomic = true; }
AtomicSection::~AtomicSection() { in_atomic = false; }
Unwatched::Unwatched() { paused = true; }
Unwatched::~Unwatched() { paused = false; }

// Buffers follow each other with at least `guard` bytes in between, which belong to none.
void* watched_allocate(size_t bytes, int device) {
  Arena& a = arena;
  if (a.bytes == 0) a.map();
  const size_t rounded = (bytes + guard - 1) / guard * guard;
  if (a.used + rounded + guard > arena_bytes) return nullptr;
  std::byte* p = a.memory + a.used;
  a.used += rounded + guard;
  a.mark(p, bytes, device + 1);
  return p;
}
void watched_release(void* p, size_t bytes) {
  arena.mark(static_cast<std::byte*>(p), bytes, 0);
  // Gives back the pages that lie wholly in the buffer.
  const auto begin = (reinterpret_cast<uintptr_t>(p) + page - 1) / page * page,
             end = (reinterpret_cast<uintptr_t>(p) + bytes) / page * page;
  if (end > begin) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_DONTNEED);
  traffic_release(static_cast<size_t>(static_cast<std::byte*>(p) - arena.memory), bytes);
}

#endif

}  // namespace nacre::emulation

#if defined(NACRE_WATCH)
extern "C" {
// Each instantiates touch() with a constant size, so that its loops have a known length.
#define NACRE_ACCESS(bytes)                                                                 \
  void __tsan_read##bytes(void* p) { nacre::emulation::touch<false>(p, bytes); }            \
  void __tsan_write##bytes(void* p) { nacre::emulation::touch<true>(p, bytes); }            \
  void __tsan_unaligned_read##bytes(void* p) { nacre::emulation::shadow_read(p, bytes); }   \
  void __tsan_unaligned_write##bytes(void* p) { nacre::emulation::shadow_write(p, bytes); } \
  void __tsan_volatile_read##bytes(void* p) { nacre::emulation::touch<false>(p, bytes); }   \
  void __tsan_volatile_write##bytes(void* p) { nacre::emulation::touch<true>(p, bytes); }
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
