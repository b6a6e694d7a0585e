#pragma once
// libsoxr does not check its allocations. When memory is exhausted, it writes to address 0.
#include <cstdlib>
#include <string>

#include "nacre/error.h"

namespace nacre::training {

/// Throws Error(memory) unless there is room for what soxr allocates for `samples` samples of input and output: filters
/// of some hundred KiB, and the samples of each stage as double.
inline void expect_memory_for_soxr(const char* call, size_t samples) {
  const size_t bytes = (size_t{4} << 20) + 32 * samples;
  void* const probe = std::malloc(bytes);
  asm volatile("" : : "r"(probe) : "memory");  // keeps the compiler from removing the pair
  std::free(probe);
  if (probe == nullptr)
    throw Error(ErrorKind::memory, std::string(call) + ": out of memory, " + std::to_string(bytes >> 20) +
                                       " MiB are needed to resample");
}

}  // namespace nacre::training
