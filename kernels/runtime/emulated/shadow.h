#pragma once
// Device memory whose accesses are watched; see shadow.cpp.
#include <cstddef>

namespace nacre::emulation {

/// Allocates zeroed memory with guards from the watched arena; null if nothing is watched or too little is left.
void* watched_allocate(size_t bytes, int device);
void watched_release(void*, size_t bytes);

}  // namespace nacre::emulation
