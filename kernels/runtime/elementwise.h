#pragma once
// For loops over elements: cuts that do not show in the result.
#include "runtime/host.h"
#include "runtime/inline.h"

/// Before a loop whose output may be one of its inputs: iterations do not depend on each other.
#if defined(__clang__)
#define NACRE_INDEPENDENT _Pragma("clang loop vectorize(assume_safety)")
#else
#define NACRE_INDEPENDENT _Pragma("GCC ivdep")
#endif

namespace nacre {

/// Runs f(begin, end) over [0, n), in parallel. Cuts fall on multiples of 1024, so that whether an element is in the
/// vectors or in the rest of its loop does not depend on the number of threads.
template <class F>
void parallel_elements(const Context& ctx, int64_t n, F&& f) {
  constexpr int64_t chunk = 1024, grain = 8;
  parallel_ranges(ctx, (n + chunk - 1) / chunk, grain,
                  [&](int64_t begin, int64_t end) { f(begin * chunk, std::min(end * chunk, n)); });
}

}  // namespace nacre
