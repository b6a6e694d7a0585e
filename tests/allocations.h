#pragma once
// The allocator of a test program. It counts allocations, and fails where a test asks for it.
#include <atomic>
#include <cstdint>

namespace nacre::test {

/// The number of allocations of all threads, without those inside a ForeignAllocations.
extern std::atomic<int64_t> allocations;
/// The number of allocations of this thread that succeed before one throws bad_alloc. Negative: no limit.
extern thread_local int64_t allocations_left;

}  // namespace nacre::test
