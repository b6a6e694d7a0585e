#pragma once
// Parallel loops over elements whose results do not depend on the number of threads.
#include "runtime/host.h"
#include "runtime/inline.h"

/// Placed before a loop whose output may alias an input: promises that its iterations are independent.
#if defined(__clang__)
#define NACRE_INDEPENDENT _Pragma("clang loop vectorize(assume_safety)")
#else
#define NACRE_INDEPENDENT _Pragma("GCC ivdep")
#endif

namespace nacre {

/// Runs f(begin, end) over [0, n) in parallel. Ranges begin at multiples of 1024, so whether an element is computed by
/// the vector loop or by its remainder does not depend on the number of threads.
template <class F>
void parallel_elements(const Context& ctx, int64_t n, F&& f) {
  constexpr int64_t chunk = 1024, grain = 8;
  parallel_ranges(ctx, (n + chunk - 1) / chunk, grain,
                  [&](int64_t begin, int64_t end) { f(begin * chunk, std::min(end * chunk, n)); });
}

}  // namespace nacre
