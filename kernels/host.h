#pragma once
// What every CPU kernel file needs: checks whose text is built only when thrown, parallel loops with fixed parts,
// clones of a loop for the instruction sets we dispatch to, and the mark for code of other libraries that allocates.
#include <omp.h>

#include <algorithm>
#include <atomic>
#include <string>

#include "nacre/context.h"

/// Compiles a loop once per instruction set; the loader picks. Only plain functions (no templates, no lambdas inside an
/// OpenMP region: the outlined body would lose the target), so loops live in functions that parallel_* call.
#if defined(__x86_64__) && !defined(NACRE_NO_CLONES)
#define NACRE_CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define NACRE_CLONES
#endif

namespace nacre {

#if defined(NACRE_WITH_CUDA)
inline constexpr bool with_cuda = true;
#else
inline constexpr bool with_cuda = false;
#endif

/// The one switch of an op: `if (on_cuda(ctx)) return cuda::op(ctx, a);` behind `if constexpr (with_cuda)`.
inline bool on_cuda(const Context& ctx) { return with_cuda && ctx.device().kind == Device::cuda; }

/// Throws Error(usage) "op: argument is FOUND, expected EXPECTED".
[[noreturn]] void throw_shape(const char* op, const char* argument, Shape found, Shape expected);
[[noreturn]] void throw_usage(const char* op, const std::string& what);

/// The view must be present and have exactly this shape.
template <class T>
void expect_shape(const char* op, const char* argument, const View<T>& v, Shape expected) {
  if (v.shape != expected) [[unlikely]]
    throw_shape(op, argument, v.shape, expected);
  if (!v && expected.elements() != 0) [[unlikely]]
    throw_usage(op, std::string(argument) + " is required and has no data");
}
/// As expect_shape, but an absent view is fine.
template <class T>
void expect_shape_or_empty(const char* op, const char* argument, const View<T>& v, Shape expected) {
  if (v) expect_shape(op, argument, v, expected);
}
/// Scratch may be larger than asked for, never smaller. `expected` is what the op's *_scratch function returned.
template <class T>
void expect_scratch(const char* op, const View<T>& v, Shape expected) {
  if (expected.elements() > 0 && (!v || v.elements() < expected.elements())) [[unlikely]]
    throw_shape(op, "scratch", v.shape, expected);
}

/// Splits [0, n) into at most `threads` contiguous ranges of at least `grain` and runs f(begin, end) on each, in
/// parallel. For loops whose results do not depend on where the cuts are.
template <class F>
void parallel_ranges(const Context& ctx, int64_t n, int64_t grain, F&& f) {
  if (n <= 0) return;
  const int64_t parts = std::clamp<int64_t>(n / std::max<int64_t>(grain, 1), 1, ctx.threads());
  if (parts == 1) {
    f(int64_t{0}, n);
    return;
  }
#pragma omp parallel for num_threads(static_cast <int>(parts)) schedule(static, 1)
  for (int64_t p = 0; p < parts; ++p) f(n * p / parts, n * (p + 1) / parts);
}

/// Runs f(part) for every part in [0, parts), in parallel. For reductions: the number of parts comes from the shape
/// alone (never from the number of threads), each part writes its own partial, and the caller adds them in order.
template <class F>
void parallel_parts(const Context& ctx, int64_t parts, F&& f) {
  const int threads = static_cast<int>(std::min<int64_t>(ctx.threads(), parts));
  if (threads <= 1) {
    for (int64_t p = 0; p < parts; ++p) f(p);
    return;
  }
#pragma omp parallel for num_threads(threads) schedule(dynamic, 1)
  for (int64_t p = 0; p < parts; ++p) f(p);
}

/// Code between construction and destruction calls a library that allocates inside (oneDNN makes 5 to 10 small
/// allocations per execute even with a user scratchpad). The allocation counter of the tests leaves it out.
struct ForeignAllocations {
  ForeignAllocations() { depth().fetch_add(1, std::memory_order_relaxed); }
  ~ForeignAllocations() { depth().fetch_sub(1, std::memory_order_relaxed); }
  ForeignAllocations(const ForeignAllocations&) = delete;
  ForeignAllocations& operator=(const ForeignAllocations&) = delete;
  static std::atomic<int>& depth();
};

}  // namespace nacre
