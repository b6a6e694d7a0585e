#pragma once
// The allocator of a test program: counts, and fails where a test asks for it.
#include <atomic>
#include <cstdint>

namespace nacre::test {

/// Of all threads, without those in a ForeignAllocations.
extern std::atomic<int64_t> allocations;
/// How many allocations of this thread succeed before one throws bad_alloc; negative: all.
extern thread_local int64_t allocations_left;

}  // namespace nacre::test
