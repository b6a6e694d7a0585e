#pragma once
// Device memory that the shadow watches; see shadow.cpp.
#include <cstddef>

namespace nacre::emulation {

/// From the watched arena, zeroed, with guards; null where nothing is watched or too little is left.
void* watched_allocate(size_t bytes, int device);
void watched_release(void*, size_t bytes);

}  // namespace nacre::emulation
