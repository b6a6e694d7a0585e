#pragma once
// Runs the threads of a kernel on the CPU. Every thread of a block is a fiber, and blocks run one after the other.
// Threads switch only where they wait, so a kernel without barriers costs one switch in and one out per thread.
//
// Behaviour that is undefined on a device is reported as a Fault that names kernel, block and threads: a barrier that
// some threads do not reach, or reach at another place; a warp operation whose lanes do not agree; an asynchronous copy
// that is read before the thread waited for it; and, where the sources are instrumented (shadow.cpp), every pair of
// conflicting accesses without a barrier between them.
#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include "runtime/emulated/types.h"

namespace nacre::emulation {

/// A mistake that the emulator found: in a kernel, or in what the host asks of a device.
struct Fault : std::runtime_error {
  using std::runtime_error::runtime_error;
};

/// A kernel called __trap(), which breaks a device but is not an error found by the emulator.
struct Trap : std::runtime_error {
  using std::runtime_error::runtime_error;
};

/// The order in which the threads of a block and the blocks of a grid run.
struct Order {
  enum Kind : uint8_t { forward, reverse, random } kind = forward;
  uint64_t seed = 0;
};

/// A kernel with its arguments; `run` runs one thread.
struct Kernel {
  const char* name;
  void (*run)(const void* arguments);
  const void* arguments;
  std::string_view identity;  ///< bytes that are equal only for the same function with equal arguments
};

/// If not 0, only this many blocks at each end of the grid run, for shapes that are too large to run whole. The value
/// at the time of the launch applies.
inline unsigned edge_blocks = 0;

/// The shared memory of a block, in bytes. The static arrays of a kernel become known while it runs.
struct SharedMemory {
  size_t dynamic;  ///< requested by the launch
  size_t allowed;  ///< limit of the kernel's static arrays
  size_t* arrays;  ///< set to their size
  int device;
};
/// Runs the blocks of a grid, edge_blocks (if not 0) at each end. Throws Fault or Trap.
void run_grid(const Kernel&, dim3 grid, dim3 block, const SharedMemory&, unsigned edge_blocks, Order);

// ---- called by the threads of a kernel

/// A cp.async that was issued and not yet waited for.
struct PendingCopy {
  void* to;
  const void* from;
  uint32_t bytes, bytes_from, group;
};

/// A thread of the running block. Its stack and its context serve the thread of the same number in every block.
struct Thread {
  enum State : uint8_t { ready, at_barrier, at_warp, done };
  dim3 index;           ///< threadIdx
  unsigned linear = 0;  ///< number in the block, x fastest; its warp is linear / 32
  State state = done;
  // The warp operation that the thread waits in. file and line are also those of a barrier.
  uint32_t mask = 0;
  const char* file = nullptr;
  int line = 0;
  const char* operation = nullptr;
  void* argument = nullptr;
  uint32_t warp_epoch = 0;  ///< grows with each synchronising warp operation
  std::vector<PendingCopy> copies;
  uint32_t copy_group = 0;     ///< number of cp.async.commit_group so far
  void* context = nullptr;     ///< where the fiber goes on; null: not made yet
  std::byte* stack = nullptr;
};

struct Block {
  dim3 index, size, grid;  ///< blockIdx, blockDim, gridDim
  uint64_t serial = 0;     ///< differs for every block ever run
  uint32_t epoch = 0;      ///< barriers passed
};

extern Thread* self;  ///< the running thread, or null in host code
extern Block block;

/// Waits for all threads of the block. The place in the source tells whether all are at the same barrier.
void barrier(const char* file, int line);

/// Waits for the lanes in the mask. The last to arrive runs `resolve` on the lanes' arguments (null for other lanes).
/// orders_memory: accesses before and after are ordered between these lanes, as by __syncwarp.
using Resolve = void (*)(void* const (&arguments)[32], uint32_t mask);
void warp_operation(const char* operation, uint32_t mask, void* argument, Resolve, bool orders_memory, const char* file,
                    int line);

/// Static shared memory: one array per place in the source, filled with NaN for every block.
void* shared_array(const char* file, int line, size_t bytes, size_t alignment);
void* dynamic_shared();

// cp.async of `bytes` bytes, of which the first `bytes_from` come from the source and the rest are zeros;
// cp.async.commit_group; cp.async.wait_group.
void copy_async(void* to, const void* from, unsigned bytes, unsigned bytes_from);
void copy_commit();
void copy_wait(unsigned groups_left);

/// Ends the kernel with a Fault or a Trap; called from a thread's fiber.
[[noreturn]] void fail(const std::string& what);
[[noreturn]] void trap();
std::string name_of(const Thread&);

// ---- shadow.cpp: called at each access, where sources are instrumented

/// True where this build watches every access of a kernel.
extern const bool watches_accesses;
/// A launch begins on a device; its shared memory is [shared, shared + bytes).
void shadow_launch(std::byte* shared, size_t bytes, int device);
/// Registers an array of shared memory of the running kernel.
void shadow_shared(const void* at, size_t bytes);
/// While it lives, accesses are neither checked nor noted.
struct Unwatched {
  Unwatched();
  ~Unwatched();
  Unwatched(const Unwatched&) = delete;
  Unwatched& operator=(const Unwatched&) = delete;
};
/// An access by the running thread. Reports a conflict by fail(). One by host code is reported if AddressSanitizer is
/// there and knows its memory as invalid.
void shadow_write(void* at, size_t bytes);
void shadow_read(const void* at, size_t bytes);
/// Marks bytes of shared memory as those of a cp.async that was not waited for, or clears the mark.
void shadow_pending(void* at, size_t bytes, bool pending);
/// Accesses in its lifetime are atomic.
struct AtomicSection {
  AtomicSection();
  ~AtomicSection();
};

}  // namespace nacre::emulation
