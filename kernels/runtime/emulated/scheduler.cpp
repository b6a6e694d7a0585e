// Fibers for the threads of a block, and what they wait for: barriers, warp operations, asynchronous copies. There is
// one scheduler, which runs one kernel at a time, one block at a time, in the host thread that runs the queue.
//
// A thread of the kernel runs until it waits or returns; nothing interrupts it. So only a wait, or the order of the
// threads, decides what a thread sees of others, and a launch with the same order repeats the same steps.
//
// Memory for 1024 threads is mapped once and used by every launch:
//
//   stacks    256 KiB each, the lowest page without access
//   shared    1 MiB: dynamic memory at offset 0, then the static arrays in the order in which threads first reach
//             them, each followed by at least 64 bytes that belong to no array
//
// AddressSanitizer instruments host code only. It knows nothing of the fibers, and no code that it instruments may leave
// a fiber.
#include "runtime/emulated/scheduler.h"

#include <sys/mman.h>

#include <algorithm>
#include <boost/context/detail/fcontext.hpp>
#include <cstdio>
#include <cstring>
#include <iterator>
#include <map>
#include <numeric>
#include <utility>

#if defined(__SANITIZE_ADDRESS__)
#error "the fibers run without AddressSanitizer; CMakeLists.txt has the flags"
#endif

namespace nacre::emulation {

Thread* self = nullptr;
Block block;

namespace {

using boost::context::detail::fcontext_t;
using boost::context::detail::jump_fcontext;
using boost::context::detail::make_fcontext;
using boost::context::detail::transfer_t;

constexpr size_t stack_bytes = 256 << 10, page = 4096;
// Stacks begin at different cache lines. Otherwise all threads of a block would compete for the same few.
constexpr size_t stack_stagger = 17 * 64, staggered_stacks = 64;
constexpr unsigned most_threads = 1024;
// The limit of a kernel's static arrays on any device; the gap after an array that catches overruns; more shared memory
// than any device has.
constexpr size_t most_static_shared = 48 << 10, shared_gap = 64, shared_space = 1 << 20;

std::byte* map_memory(size_t bytes) {
  void* p = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (p == MAP_FAILED) throw std::bad_alloc();
  return static_cast<std::byte*>(p);
}

/// All state of the kernel that runs. Its functions run in the host's context; only leave() is called by a thread.
struct Scheduler {
  Scheduler() {
    std::byte* stacks = map_memory(stack_bytes * most_threads);
    threads.resize(most_threads);
    for (unsigned i = 0; i < most_threads; ++i) {
      threads[i].linear = i;
      threads[i].stack = stacks + i * stack_bytes;
      mprotect(threads[i].stack, page, PROT_NONE);  // guard page for stack overflows
    }
    shared = map_memory(shared_space);
  }

  std::vector<Thread> threads;               // 1024 of them; a block uses the first `count`
  Thread* turns[most_threads] = {};          // the threads of the block in the order in which they run
  Kernel kernel{};                           // what the fibers call
  unsigned count = 0, waiting = 0;           // threads of a block; those at a barrier
  uint32_t at_warp[most_threads / 32] = {};  // per warp, the lanes that wait in a warp operation
  std::string fault;                         // of fail() or of a barrier; ends the launch once the thread has left
  fcontext_t main_context = nullptr;         // where leave() goes to
  std::byte* shared = nullptr;
  // Bytes: offset of the next static array; dynamic memory; static arrays without gaps; what they may have together.
  size_t shared_used = 0, dynamic_bytes = 0, static_bytes = 0, static_allowed = 0;
  bool trapped = false;  // the fault is a __trap()
  struct SharedArray {
    const char* file;
    int line;
    size_t offset, bytes;
  };
  std::vector<SharedArray> arrays;  // of the running kernel

  void start_shared(size_t dynamic);
  void run_block(Order, uint64_t turn);
  void resume(Thread&);
  void leave();
  void release_barrier();
  std::string stuck() const;
};
Scheduler& scheduler() {
  static Scheduler* const s = new Scheduler;  // lives as long as the process: kernels may run until its end
  return *s;
}

/// i -> (a i + b) mod n with a coprime to n: a permutation that needs no memory.
struct Permutation {
  uint64_t n, a = 1, b = 0;
  Permutation(uint64_t size, Order order) : n(size) {
    if (order.kind != Order::random || n < 2) {
      reverse = order.kind == Order::reverse;
      return;
    }
    uint64_t x = order.seed * 0x9E3779B97F4A7C15ull + 0x632BE59BD9B4E019ull;
    // The last steps of splitmix64, as a small generator.
    const auto next = [&] {
      x ^= x >> 27, x *= 0x94D049BB133111EBull, x ^= x >> 31;
      return x;
    };
    b = next() % n;
    do a = 1 + next() % (n - 1);
    while (std::gcd(a, n) != 1);
  }
  bool reverse = false;
  uint64_t operator()(uint64_t i) const {
    if (reverse) return n - 1 - i;
    // Both factors are below n, so a product fits into 64 bits if n fits into 32.
    if (n <= 0xffffffffu) return (a * i + b) % n;
    return static_cast<uint64_t>((static_cast<unsigned __int128>(a) * i + b) % n);
  }
};

std::string text(dim3 d) {
  return "(" + std::to_string(d.x) + ", " + std::to_string(d.y) + ", " + std::to_string(d.z) + ")";
}
/// Compares literals, which mostly have equal addresses.
bool same_text(const char* a, const char* b) { return a == b || std::strcmp(a, b) == 0; }
const char* file_name(const char* path) {
  const char* slash = std::strrchr(path, '/');
  return slash != nullptr ? slash + 1 : path;
}

// A jump stops one context and resumes another, and hands over the context that it stopped: so main_context is stored
// anew by each jump into a fiber, and Thread::context by each jump out. A fiber that has ended its thread waits in
// leave() and runs the thread with the same number of the next block, so fibers are made once.
void fiber(transfer_t from) {
  Scheduler& s = scheduler();
  s.main_context = from.fctx;
  for (;;) {
    s.kernel.run(s.kernel.arguments);
    if (!self->copies.empty()) fail("returns with cp.async copies that were never waited for");
    self->state = Thread::done;
    s.leave();
  }
}

/// "threads 0 to 31, 64".
std::string ranges(const std::vector<unsigned>& threads) {
  std::string out = threads.size() == 1 ? "thread " : "threads ";
  int listed = 0;
  for (size_t i = 0; i < threads.size();) {
    size_t j = i;
    while (j + 1 < threads.size() && threads[j + 1] == threads[j] + 1) ++j;
    if (i > 0) out += ", ";
    if (++listed > 8) return out + "...";
    out += std::to_string(threads[i]);
    if (j > i) out += " to " + std::to_string(threads[j]);
    i = j + 1;
  }
  return out;
}

/// Switches from the scheduler to a thread, until it waits or ends.
void Scheduler::resume(Thread& t) {
  // `self` is what threadIdx and the faults read; null means host code.
  self = &t;
  if (t.context == nullptr) {
    // Stacks grow down from `room`, which differs between neighbours by stack_stagger.
    const size_t room = stack_bytes - t.linear % staggered_stacks * stack_stagger;
    t.context = make_fcontext(t.stack + room, room - page, fiber);
  }
  const transfer_t back = jump_fcontext(t.context, nullptr);
  t.context = back.fctx;
  self = nullptr;
}

/// Switches from a thread back to the scheduler; returns when the thread is resumed.
void Scheduler::leave() {
  const transfer_t back = jump_fcontext(main_context, nullptr);
  main_context = back.fctx;
}

/// Lays out shared memory for a launch. Its static arrays follow in shared_array(), once for all blocks.
void Scheduler::start_shared(size_t dynamic) {
  arrays.clear();
  dynamic_bytes = dynamic;
  static_bytes = 0;
  // Dynamic memory comes first, then the static arrays, each with a gap that belongs to no array.
  shared_used = (dynamic + shared_gap - 1) / shared_gap * shared_gap + shared_gap;
}

/// What every thread of the block waits for, threads with the same reason together: the end of a message.
std::string Scheduler::stuck() const {
  std::map<std::string, std::vector<unsigned>> groups;
  for (unsigned i = 0; i < count; ++i) {
    const Thread& t = threads[i];
    std::string what = "returned";
    if (t.state == Thread::at_barrier)
      what = std::string("waiting at the barrier of ") + file_name(t.file) + ":" + std::to_string(t.line);
    if (t.state == Thread::at_warp) {
      char mask[16];
      std::snprintf(mask, sizeof(mask), "%08x", t.mask);
      what = std::string("waiting in ") + t.operation + " of " + file_name(t.file) + ":" + std::to_string(t.line) +
             " with mask 0x" + mask;
    }
    groups[what].push_back(i);
  }
  std::string out;
  for (const auto& [what, who] : groups) out += (out.empty() ? "" : "; ") + what + ": " + ranges(who);
  return out;
}

/// All threads of the block wait at a barrier: makes them ready, and begins the next epoch of shared memory's accesses.
void Scheduler::release_barrier() {
  // Barriers are told apart by their place in the source: two __syncthreads() that a device would let match are a fault
  // here.
  for (unsigned i = 1; i < count; ++i)
    if (threads[i].line != threads[0].line || !same_text(threads[i].file, threads[0].file)) {
      fault = "divergent barrier: " + stuck();
      return;
    }
  for (unsigned i = 0; i < count; ++i) threads[i].state = Thread::ready;
  waiting = 0;
  ++block.epoch;
}

/// Runs the block whose index is set, or until `fault` is set. turn: varies random orders from block to block.
void Scheduler::run_block(Order order, uint64_t turn) {
  ++block.serial;
  block.epoch = 0;
  // All bits set: NaN in every float, so that a value that was never written shows in the results.
  std::memset(shared, 0xff, dynamic_bytes);
  for (const SharedArray& a : arrays) std::memset(shared + a.offset, 0xff, a.bytes);
  waiting = 0;
  std::fill(std::begin(at_warp), std::end(at_warp), 0u);
  for (unsigned i = 0; i < count; ++i) {
    Thread& t = threads[i];
    t.index = dim3(i % block.size.x, i / block.size.x % block.size.y, i / (block.size.x * block.size.y));
    t.state = Thread::ready;
    t.warp_epoch = 0;
    t.copy_group = 0;
    t.copies.clear();
  }
  const Permutation permutation(count, {order.kind, order.seed + turn});
  for (unsigned i = 0; i < count; ++i) turns[i] = &threads[permutation(i)];
  // Rounds over the threads that can run. Each runs until it waits. A round without progress means that no thread can
  // go on: a barrier that some never reach, or lanes that wait for each other. A thread that has returned does not
  // count as waiting, so a barrier after an early return is found.
  for (unsigned left = count; left > 0;) {
    bool progress = false;
    for (unsigned i = 0; i < count; ++i) {
      Thread& t = *turns[i];
      if (t.state != Thread::ready) continue;
      progress = true;
      resume(t);
      if (!fault.empty()) return;
      if (t.state == Thread::done) --left;
      if (t.state == Thread::at_barrier && waiting == count) release_barrier();
      if (!fault.empty()) return;
    }
    if (!progress && left > 0) {
      fault = waiting > 0 ? "barrier reached by " + std::to_string(waiting) + " of " + std::to_string(count) +
                                " threads: " + stuck()
                          : "deadlock: " + stuck();
      return;
    }
  }
}

}  // namespace

void fail(const std::string& what) {
  // An exception could not cross from a fiber to the host's stack. run_block() sees the fault, and nothing resumes this
  // thread: run_grid() drops its fiber.
  Scheduler& s = scheduler();
  s.fault = name_of(*self) + " " + what;
  s.leave();
  __builtin_unreachable();
}
std::string name_of(const Thread& t) { return "thread " + text(t.index) + " of block " + text(block.index); }

void trap() {
  scheduler().trapped = true;
  fail("traps");
}

void run_grid(const Kernel& kernel, dim3 grid, dim3 size, const SharedMemory& memory, unsigned edges, Order order) {
  Scheduler& s = scheduler();
  const std::string name = std::string("kernel ") + kernel.name;
  if (self != nullptr) throw Fault(name + " is launched from a kernel");
  // Whole warps, because a warp operation looks at 32 threads.
  s.count = size.x * size.y * size.z;
  if (s.count == 0 || s.count > most_threads || s.count % 32 != 0)
    throw Fault(name + ": a block of " + std::to_string(s.count) +
                " threads; expected whole warps, up to 1024 threads");
  const uint64_t blocks = uint64_t{grid.x} * grid.y * grid.z;
  s.kernel = kernel;
  s.start_shared(memory.dynamic);
  s.static_allowed = std::min(most_static_shared, memory.allowed);
  block.size = size;
  block.grid = grid;
  shadow_launch(s.shared, shared_space, memory.device);
  shadow_shared(s.shared, memory.dynamic);
  // Blocks run whole, one after the other: `turn` varies the order of threads from block to block.
  const Permutation at(blocks, order);
  for (uint64_t i = 0; i < blocks; ++i) {
    const uint64_t b = at(i);  // number of the block, x fastest
    if (edges != 0 && b >= edges && b + edges < blocks) continue;
    block.index = dim3(static_cast<unsigned>(b % grid.x), static_cast<unsigned>(b / grid.x % grid.y),
                       static_cast<unsigned>(b / grid.x / grid.y));
    s.run_block(order, b);
    if (s.fault.empty()) continue;
    const std::string what = name + ", block " + text(block.index) + " of " + text(size) + " threads: " + s.fault;
    s.fault.clear();
    self = nullptr;
    for (Thread& t : s.threads) {  // threads that have not ended are dropped with their stacks
      t.context = nullptr;
      t.state = Thread::done;
      t.copies.clear();
    }
    if (std::exchange(s.trapped, false)) throw Trap(what);
    throw Fault(what);
  }
  *memory.arrays = s.static_bytes;  // of the arrays that its blocks have reached
}

void barrier(const char* file, int line) {
  Scheduler& s = scheduler();
  Thread& t = *self;
  t.file = file, t.line = line;
  // run_block() releases the barrier when the last thread of the block is here.
  t.state = Thread::at_barrier;
  ++s.waiting;
  s.leave();
}

void warp_operation(const char* operation, uint32_t mask, void* argument, Resolve resolve, bool orders_memory,
                    const char* file, int line) {
  Scheduler& s = scheduler();
  Thread& t = *self;
  const unsigned lane = t.linear % 32, first = t.linear - lane;
  if ((mask >> lane & 1) == 0) {
    char hex[16];
    std::snprintf(hex, sizeof(hex), "%08x", mask);
    fail(std::string("calls ") + operation + " with mask 0x" + hex + ", which leaves out its own lane " +
         std::to_string(lane) + " (" + file_name(file) + ":" + std::to_string(line) + ")");
  }
  t.mask = mask, t.argument = argument, t.operation = operation, t.file = file, t.line = line;
  // The last lane of the mask to arrive finds all others waiting with the same mask at the same place. It resolves the
  // operation for all, makes them ready, and goes on without a switch. Any other lane waits.
  uint32_t& at_warp = s.at_warp[t.linear / 32];
  void* arguments[32];
  bool all = (mask & ~(at_warp | 1u << lane)) == 0;  // all lanes named in the mask wait in some warp operation
  for (unsigned i = 0; i < 32 && all; ++i) {
    arguments[i] = nullptr;
    if ((mask >> i & 1) == 0) continue;
    const Thread& other = s.threads[first + i];
    all = i == lane || (other.state == Thread::at_warp && other.mask == mask && other.line == line &&
                        same_text(other.operation, operation) && same_text(other.file, file));
    arguments[i] = other.argument;
  }
  if (!all) {
    t.state = Thread::at_warp;
    at_warp |= 1u << lane;
    s.leave();
    return;
  }
  for (unsigned i = 0; i < 32; ++i)
    if (mask >> i & 1) {
      Thread& other = s.threads[first + i];
      if (i != lane) other.state = Thread::ready;
      if (orders_memory) ++other.warp_epoch;  // the warp's accesses before and after do not conflict (shadow.cpp)
    }
  at_warp &= ~mask;
  // The other lanes have not been resumed, so their arguments, which lie on their stacks, are still there.
  if (resolve != nullptr) resolve(arguments, mask);
}

void* shared_array(const char* file, int line, size_t bytes, size_t alignment) {
  Scheduler& s = scheduler();
  for (const auto& a : s.arrays)
    // The first thread that reaches the array makes it; all other threads and blocks of the launch find it.
    if (a.line == line && a.file == file) {
      // An array is identified by its place in the source. On a device, each instantiation of a template has its own.
      if (a.bytes != bytes)
        fail("has two shared arrays at " + std::string(file) + ":" + std::to_string(line) + ", of " +
             std::to_string(a.bytes) + " and " + std::to_string(bytes) +
             " bytes: the emulator needs a line of its own for each, so do not instantiate that function twice");
      return s.shared + a.offset;
    }
  const size_t offset = (s.shared_used + alignment - 1) / alignment * alignment;
  s.shared_used = offset + bytes + shared_gap;
  s.static_bytes += bytes;
  if (s.static_bytes > s.static_allowed)
    fail("has " + std::to_string(s.static_bytes) + " bytes of static shared memory, but only " +
         std::to_string(s.static_allowed) + " are left beside " + std::to_string(s.dynamic_bytes) +
         " bytes of dynamic: raise its limit, or use less");
  s.arrays.push_back({file, line, offset, bytes});
  shadow_shared(s.shared + offset, bytes);
  std::memset(s.shared + offset, 0xff, bytes);
  return s.shared + offset;
}
void* dynamic_shared() { return scheduler().shared; }

void copy_async(void* to, const void* from, unsigned bytes, unsigned bytes_from) {
  // `bytes_from` of the source are copied, and the rest of the target becomes zero.
  // PTX requires alignment of the source even of a copy that reads nothing.
  if (reinterpret_cast<uintptr_t>(to) % bytes != 0 || reinterpret_cast<uintptr_t>(from) % bytes != 0)
    fail("issues a cp.async of " + std::to_string(bytes) +
         " bytes between addresses that are not multiples of its size" +
         (bytes_from == 0 ? " (its source is ignored)" : ""));
  shadow_write(to, bytes);
  if (bytes_from > 0) shadow_read(from, bytes_from);
  std::memset(to, 0xff, bytes);  // NaN until the thread has waited for the copy
  shadow_pending(to, bytes, true);
  // The bytes are copied in copy_wait(), as late as a device may, and read from the source then: a source that is
  // overwritten too early shows, as well.
  self->copies.push_back({to, from, bytes, bytes_from, self->copy_group});
}
void copy_commit() { ++self->copy_group; }
void copy_wait(unsigned groups_left) {
  Thread& t = *self;
  size_t kept = 0;
  for (const PendingCopy& c : t.copies) {
    // Groups are numbered by commits; the current, uncommitted one is copy_group. A wait leaves the newest
    // `groups_left` committed ones and what is not committed.
    if (c.group + groups_left >= t.copy_group) {
      t.copies[kept++] = c;
      continue;
    }
    // The mark is cleared first, because the shadow refuses accesses to pending bytes. Then the bytes count as written
    // now by this thread, so other threads may read them only after a barrier.
    shadow_pending(c.to, c.bytes, false);
    shadow_write(c.to, c.bytes);
    std::memcpy(c.to, c.from, c.bytes_from);
    std::memset(static_cast<std::byte*>(c.to) + c.bytes_from, 0, c.bytes - c.bytes_from);
  }
  t.copies.resize(kept);
}

}  // namespace nacre::emulation
