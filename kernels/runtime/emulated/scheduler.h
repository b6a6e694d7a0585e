#pragma once
// Runs the threads of a kernel on the CPU: every thread of a block is a fiber, blocks run one after the other. Threads
// switch only where they wait, so a kernel without barriers costs one switch in and one out per thread.
//
// What a real device leaves undefined is reported here as a Fault that names kernel, block and threads: a barrier that
// not all threads reach, or reach at different places; a warp operation whose lanes do not agree; a copy that is read
// before it was waited for; and, where the sources are instrumented (shadow.cpp), every pair of conflicting accesses
// with no barrier between them.
#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

#include "runtime/emulated/types.h"

namespace nacre::emulation {

struct Fault : std::runtime_error {
  using std::runtime_error::runtime_error;
};

/// A kernel gave up by __trap(): no fault of the emulation, but what breaks a device.
struct Trap : std::runtime_error {
  using std::runtime_error::runtime_error;
};

/// In which order the threads of a block, and the blocks of a grid, get their turns.
struct Order {
  enum Kind : uint8_t { forward, reverse, random } kind = forward;
  uint64_t seed = 0;
};

/// One kernel with its arguments; `run` is one thread.
struct Kernel {
  const char* name;
  void (*run)(const void* arguments);
  const void* arguments;
};

/// Only this many blocks at each end of the grid run, 0: all. For shapes that are too large to run whole. What a launch
/// finds here counts for it.
inline unsigned edge_blocks = 0;

/// Of a block, in bytes, on a device. A kernel's arrays become known while it runs.
struct SharedMemory {
  size_t dynamic;  ///< of this launch
  size_t allowed;  ///< left for the kernel's arrays
  size_t* arrays;  ///< set to what they take
  int device;
};
void run_grid(const Kernel&, dim3 grid, dim3 block, const SharedMemory&, unsigned edge_blocks, Order);

// ---- what a thread sees of itself and asks for
// ------------------------------------------------------------------------

/// A cp.async that was issued and not yet waited for.
struct PendingCopy {
  void* to;
  const void* from;
  uint32_t bytes, bytes_from, group;
};

struct Thread {
  enum State : uint8_t { ready, at_barrier, at_warp, done };
  dim3 index;
  unsigned linear = 0;
  State state = done;
  // A warp operation this thread waits in.
  uint32_t mask = 0;
  const char* file = nullptr;
  int line = 0;
  const char* operation = nullptr;
  void* argument = nullptr;
  uint32_t warp_epoch = 0;  ///< grows with each synchronising warp operation
  std::vector<PendingCopy> copies;
  uint32_t copy_group = 0;
  void* context = nullptr;
  void* fake_stack = nullptr;
  std::byte* stack = nullptr;
};

struct Block {
  dim3 index, size, grid;
  uint64_t serial = 0;  ///< differs for every block ever run
  uint32_t epoch = 0;   ///< barriers passed
};

extern Thread* self;  ///< the running thread, or null in host code
extern Block block;

/// All threads of the block meet. The place tells a divergent barrier from a common one.
void barrier(const char* file, int line);

/// Lanes named in the mask meet; the last to arrive runs `resolve` over the lanes' arguments (null where not named).
using Resolve = void (*)(void* const (&arguments)[32], uint32_t mask);
void warp_operation(const char* operation, uint32_t mask, void* argument, Resolve, bool orders_memory, const char* file,
                    int line);

/// Static shared memory: one block per place in the source, fresh and filled with NaN for every thread block.
void* shared_array(const char* file, int line, size_t bytes, size_t alignment);
void* dynamic_shared();

void copy_async(void* to, const void* from, unsigned bytes, unsigned bytes_from);
void copy_commit();
void copy_wait(unsigned groups_left);

/// Ends the kernel with a Fault, or with a Trap; called from a fiber.
[[noreturn]] void fail(const std::string& what);
[[noreturn]] void trap();
std::string place(const Thread&);

// ---- shadow.cpp: accesses, where sources are instrumented
// --------------------------------------------------------------

/// True where this build watches every access of a kernel.
extern const bool watches_accesses;
/// A launch begins on a device; shared memory lies at [shared, shared + bytes).
void shadow_launch(std::byte* shared, size_t bytes, int device);
/// An array of shared memory of the running kernel.
void shadow_shared(const void* at, size_t bytes);
void shadow_write(void* at, size_t bytes);
void shadow_read(const void* at, size_t bytes);
void shadow_pending(void* at, size_t bytes, bool pending);
struct AtomicSection {
  AtomicSection();
  ~AtomicSection();
};

}  // namespace nacre::emulation
