#include "ceilings.h"

#include <chrono>
#include <cmath>
#include <cstring>

#include "runtime/host.h"
#if defined(NACRE_WITH_CUDA)
#include "ceilings_cuda.h"
#endif

namespace nacre::bench {
namespace {

double now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

/// The least seconds per call. Repeats until `budget` seconds are used up, in bursts long enough for the clock.
template <class F>
double best_time(double budget, F&& f) {
  f();
  double start = now();
  f();
  const int64_t burst = static_cast<int64_t>(std::clamp(2e-3 / std::max(now() - start, 1e-9), 1.0, 1e6));
  double best = HUGE_VAL;
  for (const double end = now() + budget; now() < end;) {
    start = now();
    for (int64_t i = 0; i < burst; ++i) f();
    best = std::min(best, (now() - start) / static_cast<double>(burst));
  }
  return best;
}

NACRE_CLONES void copy_loop(const float* __restrict from, float* __restrict to, int64_t n) {
  for (int64_t i = 0; i < n; ++i) to[i] = from[i];
}

// Twelve chains hide the latency of two units with four cycles each. With the two constants they fit sixteen registers.
#define NACRE_FMA_LOOP(name, lanes)                                  \
  float name(int64_t rounds, float factor, float term) {             \
    typedef float Vector __attribute__((vector_size(4 * (lanes))));  \
    Vector sum[12], f = Vector{} + factor, t = Vector{} + term;      \
    for (int k = 0; k < 12; ++k) sum[k] = t * static_cast<float>(k); \
    for (int64_t i = 0; i < rounds; ++i)                             \
      for (int k = 0; k < 12; ++k) sum[k] = sum[k] * f + t;          \
    Vector total = sum[0];                                           \
    for (int k = 1; k < 12; ++k) total += sum[k];                    \
    return total[0];                                                 \
  }
#if defined(__x86_64__)
__attribute__((target("arch=x86-64-v4"))) NACRE_FMA_LOOP(fma_avx512, 16) __attribute__((target("arch=x86-64-v3")))
NACRE_FMA_LOOP(fma_avx2, 8)
#endif
    NACRE_FMA_LOOP(fma_baseline, 4)
#undef NACRE_FMA_LOOP

        double measure_flops(Context& ctx, int threads) {
  float (*loop)(int64_t, float, float) = fma_baseline;
  int lanes = 4;
#if defined(__x86_64__)
  const std::string set = ctx.instruction_set();
  if (set == "avx512") loop = fma_avx512, lanes = 16;
  if (set == "avx2") loop = fma_avx2, lanes = 8;
#endif
  constexpr int64_t rounds = 1 << 18;
  static std::atomic<float> sink;  // uses the results, so that the compiler keeps the loops
  const double seconds = best_time(0.15, [&] {
    parallel_parts(ctx, threads, [&](int64_t part) {
      const float result = loop(rounds, 0.999f, 0.5f);
      if (part == 0) sink = result;
    });
  });
  return 2.0 * 12 * lanes * static_cast<double>(rounds) * threads / seconds;
}

/// A smaller footprint cannot be slower. Where it was, another process used a core, so the larger one's rate is taken.
void never_slower_on_less(std::vector<Ceilings::Copy>& copies) {
  for (size_t i = copies.size() - 1; i > 0; --i)
    copies[i - 1].bytes_per_second = std::max(copies[i - 1].bytes_per_second, copies[i].bytes_per_second);
}

}  // namespace

double Ceilings::peak(std::string_view arithmetic) const {
  if (arithmetic == "tf32") return std::max(tf32_product, tf32_mma);
  if (arithmetic == "bf16") return std::max(bf16_product, bf16_mma);
  return arithmetic == "fp32" ? std::max(flops_all, fp32_product) : 0;
}
std::vector<std::pair<std::string, double>> Ceilings::named() const {
  if (bf16_mma == 0)
    return {{"fma_GFLOP/s one thread", flops_one * 1e-9}, {"fma_GFLOP/s all threads", flops_all * 1e-9}};
  return {{"GFLOP/s fma fp32", flops_all * 1e-9},
          {"GFLOP/s cuBLAS fp32", fp32_product * 1e-9},
          {"GFLOP/s cuBLAS tf32", tf32_product * 1e-9},
          {"GFLOP/s cuBLAS bf16", bf16_product * 1e-9},
          {"GFLOP/s mma.sync tf32", tf32_mma * 1e-9},
          {"GFLOP/s mma.sync bf16", bf16_mma * 1e-9},
          {"G/s special functions", special * 1e-9},
          {"us per launch in a graph", launch * 1e6}};
}
double Ceilings::copy(int64_t bytes) const {
  if (copies.empty()) return 0;
  const Copy* nearest = &copies.front();
  const auto distance = [&](const Copy& c) {
    return std::fabs(std::log(static_cast<double>(c.bytes) / static_cast<double>(std::max<int64_t>(bytes, 1))));
  };
  for (const Copy& c : copies)
    if (distance(c) < distance(*nearest)) nearest = &c;
  return nearest->bytes_per_second;
}

double Ceilings::cold_copy(int64_t bytes) const {
  if (cold_copies.empty()) return copy(bytes);
  const auto seconds = [](const Copy& c) { return static_cast<double>(c.bytes) / c.bytes_per_second; };
  const double wanted = static_cast<double>(std::max<int64_t>(bytes, 1));
  // Below the smallest footprint, the time is constant: one launch and one memory latency.
  if (bytes <= cold_copies.front().bytes) return wanted / seconds(cold_copies.front());
  for (size_t i = 1; i < cold_copies.size(); ++i) {
    const Copy &below = cold_copies[i - 1], &above = cold_copies[i];
    if (bytes > above.bytes) continue;
    const double part = static_cast<double>(bytes - below.bytes) / static_cast<double>(above.bytes - below.bytes);
    return wanted / (seconds(below) + part * (seconds(above) - seconds(below)));
  }
  return cold_copies.back().bytes_per_second;
}

Ceilings measure_ceilings(Context& ctx) {
  Ceilings ceilings;
#if defined(NACRE_WITH_CUDA)
  if (ctx.device().kind == Device::cuda) {
    measure_cuda_ceilings(ctx, ceilings);
    never_slower_on_less(ceilings.copies);
    return ceilings;
  }
#endif
  // Bytes per thread, read + written, from the first-level cache to memory.
  constexpr int64_t footprints[] = {32 << 10, 256 << 10, 1 << 20, 8 << 20, 64 << 20, 512 << 20};
  const int64_t threads = ctx.threads();
  const int64_t largest = footprints[5] / 8;
  Memory from_memory(ctx, static_cast<size_t>(largest * threads) * 4);
  Memory to_memory(ctx, static_cast<size_t>(largest * threads) * 4);
  float* from = reinterpret_cast<float*>(from_memory.data());
  float* to = reinterpret_cast<float*>(to_memory.data());
  for (int64_t i = 0; i < largest * threads; ++i) from[i] = static_cast<float>(i);
  for (const int64_t footprint : footprints) {
    const int64_t n = footprint / 8;
    const auto copy_with = [&](auto copy) {
      return best_time(0.08, [&] {
        parallel_ranges(ctx, n * threads, 1, [&](int64_t b, int64_t e) { copy(from + b, to + b, e - b); });
      });
    };
    const double loop = copy_with(copy_loop);
    const double libc = copy_with([](const float* f, float* t, int64_t k) { std::memcpy(t, f, size_t(k) * 4); });
    ceilings.copies.push_back({footprint * threads, static_cast<double>(footprint * threads) / std::min(loop, libc),
                               static_cast<double>(footprint * threads) / loop,
                               static_cast<double>(footprint * threads) / libc});
  }
  never_slower_on_less(ceilings.copies);
  ceilings.flops_one = measure_flops(ctx, 1);
  ceilings.flops_all = threads == 1 ? ceilings.flops_one : measure_flops(ctx, ctx.threads());
  return ceilings;
}

}  // namespace nacre::bench
