#include "ceilings_cuda.h"

#include <algorithm>
#include <cmath>

#include "runtime/runtime.h"
#if defined(NACRE_BENCH_CUBLAS)
#include "baselines/cublas.h"
#endif

namespace nacre::bench {
namespace {

// The emulated build runs the same code on small sizes. Its rates mean nothing.
#if defined(NACRE_EMULATED)
constexpr bool emulated = true;
#else
constexpr bool emulated = false;
#endif

/// The least seconds of one `step` after 256 MiB of other data were written, as in cold cases.
double best_cold_time(Context& ctx, View<float> flush, int measurements, const std::function<void()>& step) {
  step();
  ctx.synchronize();
  Graph graph = ctx.capture(step);
  cuda::Event start, end;
  double best = HUGE_VAL;
  for (int i = 0; i < measurements; ++i) {
    ctx.zero(flush);
    start.record(ctx);
    graph.replay();
    end.record(ctx);
    best = std::min(best, end.seconds_since(start));
  }
  return best;
}

Ceilings::Copy faster_of(int64_t footprint, double own, double vendor) {
  const double bytes = static_cast<double>(footprint);
  return {footprint, bytes / std::min(own, vendor), bytes / own, bytes / vendor};
}

void measure_copies(Context& ctx, Ceilings& c, const std::byte* from, std::byte* to) {
  cuda::Runtime& runtime = cuda::runtime(ctx);
  const unsigned resident = static_cast<unsigned>(runtime.limits().multiprocessors) * 8;
  // The two smallest footprints stay in the second-level cache. Many rounds run in one launch there, so that the cost
  // of the launch does not count.
  constexpr int64_t mib = 1 << 20;
  const std::vector<int64_t> footprints =
      emulated ? std::vector<int64_t>{4096, 16384} : std::vector<int64_t>{16 * mib, 48 * mib, 256 * mib, 2048 * mib};
  for (const int64_t footprint : footprints) {
    const int64_t bytes = footprint / 2;
    const bool cached = footprint <= 48 * mib;
    const int rounds = emulated ? 2 : cached ? static_cast<int>(2048 * mib / footprint) : 1;
    const int steps = emulated ? 2 : static_cast<int>(std::clamp<int64_t>(4096 * mib / footprint / rounds, 2, 16));
    double own = HUGE_VAL;
    for (const unsigned blocks : {resident, kernels::copy_blocks(bytes)})
      own = std::min(own,
                     best_time(ctx, steps, 5, [&] { kernels::copy(ctx, from, to, bytes, blocks, rounds); }) / rounds);
    const double vendor =
        best_time(ctx, steps * rounds, 5, [&] { runtime.copy_on_device(to, from, static_cast<size_t>(bytes)); });
    c.copies.push_back(faster_of(footprint, own, vendor));
  }
  const Memory flush_memory(ctx, static_cast<size_t>(emulated ? 4096 : 256 * mib));
  const View<float> flush(reinterpret_cast<float*>(flush_memory.data()),
                          {.channels = static_cast<int64_t>(flush_memory.size() / 4)});
  const std::vector<int64_t> cold =
      emulated ? footprints
               : std::vector<int64_t>{1 * mib, 4 * mib, 16 * mib, 64 * mib, 256 * mib, 1024 * mib, 2048 * mib};
  for (const int64_t footprint : cold) {
    const int64_t bytes = footprint / 2;
    double own = HUGE_VAL;
    for (const unsigned blocks : {resident, kernels::copy_blocks(bytes)})
      own = std::min(own, best_cold_time(ctx, flush, 7, [&] { kernels::copy(ctx, from, to, bytes, blocks, 1); }));
    const double vendor =
        best_cold_time(ctx, flush, 7, [&] { runtime.copy_on_device(to, from, static_cast<size_t>(bytes)); });
    c.cold_copies.push_back(faster_of(footprint, own, vendor));
  }
}

void measure_arithmetic(Context& ctx, Ceilings& c, const float* numbers, float* out, unsigned most_blocks) {
  const unsigned all = static_cast<unsigned>(cuda::limits(ctx).multiprocessors);
  const auto rate = [&](auto* kernel, unsigned per_multiprocessor, int rounds) {
    const unsigned blocks = std::min(most_blocks, all * per_multiprocessor);
    double operations = 0;
    const double seconds =
        best_time(ctx, 2, 6, [&] { operations = kernel(ctx, numbers, out, blocks, emulated ? 2 : rounds); });
    return operations / seconds;
  };
  // Enough rounds for about a millisecond. The first launches also raise the clocks.
  if (!emulated) (void)rate(&kernels::multiply_add, 8, 1 << 17);
  c.flops_one = c.flops_all = rate(&kernels::multiply_add, 8, 1 << 14);
  c.special = rate(&kernels::special, 8, 1 << 11);
  c.bf16_mma = rate(&kernels::mma_bf16, 4, 1 << 12);
  c.tf32_mma = rate(&kernels::mma_tf32, 4, 1 << 12);
}

void measure_products(Context& ctx, Ceilings& c, std::byte* from, std::byte* to) {
#if defined(NACRE_BENCH_CUBLAS)
  constexpr int64_t n = 8192;  // two float matrices fit the buffers of the copies
  try {
    Cublas cublas(ctx);
    c.cublas = cublas.version();
    const auto rate = [&](std::string_view arithmetic, size_t size) {
      const Cublas::Product product{.arithmetic = arithmetic,
                                    .m = n,
                                    .n = n,
                                    .k = n,
                                    .a = from,
                                    .b = from + n * n * static_cast<int64_t>(size),
                                    .c = to,
                                    .b_transposed = true,
                                    .c_is_bf16 = size == 2};
      return 2.0 * n * n * n / best_time(ctx, 4, 6, [&] { cublas.multiply(product); });
    };
    kernels::random(ctx, reinterpret_cast<bf16*>(from), 2 * n * n);
    c.bf16_product = rate("bf16", 2);
    kernels::random(ctx, reinterpret_cast<float*>(from), 2 * n * n);
    c.fp32_product = rate("fp32", 4);
    c.tf32_product = rate("tf32", 4);
  } catch (const Error& e) {
    c.cublas = e.what();
  }
#else
  (void)ctx, (void)from, (void)to;
  c.cublas = "not part of this build";
#endif
}

}  // namespace

double best_time(Context& ctx, int steps, int measurements, const std::function<void()>& step) {
  step();  // first use loads libraries, which is not allowed in a capture
  ctx.synchronize();
  Graph graph = ctx.capture([&] {
    for (int i = 0; i < steps; ++i) step();
  });
  cuda::Event start, end;
  double best = HUGE_VAL;
  for (int i = 0; i < measurements; ++i) {
    graph.replay();
    start.record(ctx);
    graph.replay();
    end.record(ctx);
    best = std::min(best, end.seconds_since(start) / steps);
  }
  return best;
}

void measure_cuda_ceilings(Context& ctx, Ceilings& c) {
  constexpr size_t bytes = emulated ? 64 << 10 : 1 << 30;
  const Memory from(ctx, bytes), to(ctx, bytes), small(ctx, kernels::number_count * sizeof(float));
  float* const numbers = reinterpret_cast<float*>(small.data());
  kernels::random(ctx, numbers, kernels::number_count);
  kernels::random(ctx, reinterpret_cast<float*>(from.data()), static_cast<int64_t>(bytes / 4));
  // `to` holds one float per thread.
  const unsigned most_blocks = static_cast<unsigned>(emulated ? 2 : bytes / 4 / kernels::arithmetic_threads);
  measure_arithmetic(ctx, c, numbers, reinterpret_cast<float*>(to.data()), most_blocks);
  measure_copies(ctx, c, from.data(), to.data());
  c.launch = best_time(ctx, emulated ? 4 : 512, 6, [&] { kernels::nothing(ctx); });
  measure_products(ctx, c, from.data(), to.data());
}

}  // namespace nacre::bench
