#include "allocations.h"

#include <cstdlib>
#include <new>

#include "runtime/host.h"

namespace nacre::test {

std::atomic<int64_t> allocations{0};
thread_local int64_t allocations_left = -1;

}  // namespace nacre::test

namespace {

bool allocation_fails() {
  using namespace nacre::test;
  if (nacre::ForeignAllocations::depth().load(std::memory_order_relaxed) == 0)
    allocations.fetch_add(1, std::memory_order_relaxed);
  return allocations_left >= 0 && allocations_left-- == 0;
}

}  // namespace

// malloc is used so that AddressSanitizer still tracks every block. The functions are never inlined: at -O1 gcc would
// see free() next to operator new and report a mismatched pair.
#define NACRE_NOINLINE __attribute__((noinline))
NACRE_NOINLINE void* operator new(size_t n) {
  if (allocation_fails()) throw std::bad_alloc();
  if (void* p = std::malloc(n == 0 ? 1 : n)) return p;
  throw std::bad_alloc();
}
NACRE_NOINLINE void* operator new(size_t n, std::align_val_t a) {
  if (allocation_fails()) throw std::bad_alloc();
  const size_t align = static_cast<size_t>(a);
  if (void* p = std::aligned_alloc(align, (n + align - 1) / align * align)) return p;
  throw std::bad_alloc();
}
NACRE_NOINLINE void* operator new(size_t n, const std::nothrow_t&) noexcept {
  return allocation_fails() ? nullptr : std::malloc(n == 0 ? 1 : n);
}
NACRE_NOINLINE void operator delete(void* p) noexcept { std::free(p); }
NACRE_NOINLINE void operator delete(void* p, size_t) noexcept { std::free(p); }
NACRE_NOINLINE void operator delete(void* p, std::align_val_t) noexcept { std::free(p); }
NACRE_NOINLINE void operator delete(void* p, size_t, std::align_val_t) noexcept { std::free(p); }
