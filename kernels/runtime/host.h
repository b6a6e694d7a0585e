#pragma once
// Included by every CPU kernel: argument checks whose message is built only when thrown, parallel loops over fixed
// parts, clones of a loop for each instruction set, and a marker for allocations of other libraries.
#include <algorithm>
#include <atomic>
#include <string>
#include <type_traits>

#include "nacre/context.h"

/// Compiles a function once per instruction set; the loader picks one. It works for plain functions only: templates and
/// lambdas would lose the target. So loops are functions that the bodies of parallel_* call.
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

/// How an op selects its device: `if constexpr (with_cuda) if (on_cuda(ctx)) return cuda::op(ctx, a);`.
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
/// As expect_shape, but the view may be absent.
template <class T>
void expect_shape_or_empty(const char* op, const char* argument, const View<T>& v, Shape expected) {
  if (v) expect_shape(op, argument, v, expected);
}
/// Scratch must be at least as large as `expected`, the result of the op's *_scratch function.
template <class T>
void expect_scratch(const char* op, const View<T>& v, Shape expected) {
  if (expected.elements() > 0 && (!v || v.elements() < expected.elements())) [[unlikely]]
    throw_shape(op, "scratch", v.shape, expected);
}

/// Throws if memory for parts of gradients (ops/gradient_sums.h) is too small.
inline void expect_parts(const char* op, const View<float>& v, Shape expected) {
  if (v.elements() < expected.elements()) throw_shape(op, "parts", v.shape, expected);
}

/// Runs body(closure, part, slot) for every part in [0, parts) on the context's threads; see ThreadPool.
void run_parts(const Context& ctx, int64_t parts, void (*body)(void* closure, int64_t part, int slot), void* closure);

/// Runs f(part) or f(part, slot) for every part in [0, parts), in parallel. For reductions: the number of parts comes
/// from the shape alone (never from the number of threads), each part writes its own partial, and the caller adds them
/// in order. `slot` is in [0, ctx.threads()) and belongs to one running part at a time: it selects a thread's scratch.
template <class F>
void parallel_parts(const Context& ctx, int64_t parts, F&& f) {
  using Closure = std::remove_reference_t<F>;
  run_parts(
      ctx, parts,
      [](void* closure, int64_t part, int slot) {
        if constexpr (std::is_invocable_v<Closure&, int64_t, int>)
          (*static_cast<Closure*>(closure))(part, slot);
        else
          (*static_cast<Closure*>(closure))(part);
      },
      const_cast<void*>(static_cast<const void*>(&f)));
}

/// Splits [0, n) into contiguous ranges of at least `grain` and runs f(begin, end) or f(begin, end, slot) on each, in
/// parallel. For loops whose results do not depend on where the ranges begin. There are more ranges than threads where
/// the grain allows it: if the system suspends a thread, only one range waits for it, and other threads take the rest.
template <class F>
void parallel_ranges(const Context& ctx, int64_t n, int64_t grain, F&& f) {
  if (n <= 0) return;
  const int64_t threads = ctx.threads(), most = n / std::max<int64_t>(grain, 1);
  const int64_t ranges = threads == 1 ? 1 : std::clamp<int64_t>(most, 1, 4 * threads);
  parallel_parts(ctx, ranges, [&](int64_t range, [[maybe_unused]] int slot) {
    const int64_t begin = n * range / ranges, end = n * (range + 1) / ranges;
    if constexpr (std::is_invocable_v<F&, int64_t, int64_t, int>)
      f(begin, end, slot);
    else
      f(begin, end);
  });
}

/// While an object exists, allocations belong to other code (a library, the emulated device). The tests' allocation
/// counter ignores them.
struct ForeignAllocations {
  ForeignAllocations() { depth().fetch_add(1, std::memory_order_relaxed); }
  ~ForeignAllocations() { depth().fetch_sub(1, std::memory_order_relaxed); }
  ForeignAllocations(const ForeignAllocations&) = delete;
  ForeignAllocations& operator=(const ForeignAllocations&) = delete;
  static std::atomic<int>& depth();
};

}  // namespace nacre
