// Counts distinct bytes. The arena of watched memory (shadow.cpp) has a cell here for each 16 bytes, with a bit for
// each byte that the running launch has read, and one for each that it has written. A byte counts when its bit is set.
// An access that crosses cells updates each of them.
#include "runtime/emulated/traffic.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cstdio>
#include <cstdlib>
#include <new>

#include "nacre/context.h"
#include "runtime/emulated/memory.h"
#include "runtime/emulated/scheduler.h"
#include "runtime/emulated/streams.h"

namespace nacre::emulation {

bool counts_accesses = false;

namespace {

/// Which of 16 bytes the launch with this number has read and written. A cell of an earlier launch counts as empty, so
/// that no launch has to clear cells.
struct Cell {
  uint32_t launch;
  uint16_t read, written;
};
constexpr size_t grain = 16, page = 4096;

/// All state. The environment's variable is read when it is first asked for.
struct Counter {
  bool on = false;
  std::FILE* file = nullptr;            // of NACRE_EMULATION_TRAFFIC
  std::map<std::string, Traffic> sums;  // by kernel
  Cell* cells = nullptr;                // mapped at the first access; zeros belong to launch 0, which does not exist
  uint32_t launch = 0;                  // number of the running launch, from 1
  int64_t read = 0, written = 0;        // of the running launch

  Counter() {
    const char* name = std::getenv("NACRE_EMULATION_TRAFFIC");
    if (name == nullptr) return;
    if (!watches_accesses)
      throw Error(ErrorKind::usage,
                  "NACRE_EMULATION_TRAFFIC: this build does not watch accesses; expected one with NACRE_WATCH=ON");
    file = std::fopen(name, "a");
    if (file == nullptr) throw Error(ErrorKind::io, std::string(name) + ": cannot write");
    on = true;
    std::atexit([] { Counter::counter().write(); });
  }
  static Counter& counter() {
    static auto* const c = new Counter;
    return *c;
  }
  /// At the process's end.
  void write() {
    std::string text = "# process " + std::to_string(getpid()) + ": launches, bytes read, bytes written, name\n";
    for (const auto& [name, t] : sums)
      text += std::to_string(t.launches) + " " + std::to_string(t.read) + " " + std::to_string(t.written) + " " + name +
              "\n";
    std::fputs(text.c_str(), file);
    std::fclose(file);
  }
  void add(const char* name, int64_t bytes_read, int64_t bytes_written) {
    Traffic& t = sums[name];
    ++t.launches, t.read += bytes_read, t.written += bytes_written;
  }
};
Counter& counter() { return Counter::counter(); }

}  // namespace

void count_traffic(bool on) {
  const Api api;
  Counter& c = counter();
  if (on && !watches_accesses) throw Fault("count_traffic: this build does not watch accesses");
  // Mapped buffers have no cells: nothing was counted when they were allocated.
  if (on)
    for (const auto& [p, b] : buffers())
      if (b.kind == Buffer::mapped) throw Fault("count_traffic: a buffer of 64 MiB or more is not watched");
  c.on = on;
}
bool counts_traffic() { return counter().on; }
std::map<std::string, Traffic> traffic() {
  const Api api;
  return counter().sums;
}
void reset_traffic() {
  const Api api;
  counter().sums.clear();
}

CountedLaunch::CountedLaunch(const char* name) : name_(name) {
  Counter& c = counter();
  if (!c.on) return;
  ++c.launch;
  c.read = c.written = 0;
  counts_accesses = true;
}
CountedLaunch::~CountedLaunch() {
  if (!counts_accesses) return;
  counts_accesses = false;
  counter().add(name_, counter().read, counter().written);
}
void traffic_moved(const char* name, size_t read, size_t written) {
  if (Counter& c = counter(); c.on) c.add(name, static_cast<int64_t>(read), static_cast<int64_t>(written));
}

void traffic_access(size_t arena, size_t offset, size_t bytes, bool writes) {
  static Counter& c = counter();
  if (c.cells == nullptr) {
    void* p = mmap(nullptr, arena / grain * sizeof(Cell), PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED) throw std::bad_alloc();
    c.cells = static_cast<Cell*>(p);
  }
  for (size_t done = 0; done < bytes;) {
    // `here`: the bytes of the access in this cell, whose bits are `mask`.
    const size_t in_cell = (offset + done) % grain, here = std::min(bytes - done, grain - in_cell);
    Cell& cell = c.cells[(offset + done) / grain];
    if (cell.launch != c.launch) cell = {c.launch, 0, 0};
    uint16_t& seen = writes ? cell.written : cell.read;
    const auto mask = static_cast<uint16_t>(((uint32_t{1} << here) - 1) << in_cell);
    (writes ? c.written : c.read) += std::popcount(static_cast<uint16_t>(mask & ~seen));
    seen |= mask;
    done += here;
  }
}
void traffic_release(size_t offset, size_t bytes) {
  Counter& c = counter();
  if (c.cells == nullptr) return;
  // Whole pages of cells: the content of the others is older than any later launch.
  const size_t begin = (offset / grain * sizeof(Cell) + page - 1) / page * page,
               end = (offset + bytes) / grain * sizeof(Cell) / page * page;
  if (end > begin) madvise(reinterpret_cast<std::byte*>(c.cells) + begin, end - begin, MADV_DONTNEED);
}

}  // namespace nacre::emulation
