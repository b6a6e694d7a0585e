#include "harness.h"

#include <benchmark/benchmark.h>

#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "ceilings.h"
#include "nacre/random.h"

namespace nacre::bench {
namespace {

std::vector<void (*)(Suite&)>& definitions() {
  static std::vector<void (*)(Suite&)> all;
  return all;
}

std::string number(double x) {
  char text[32];
  std::snprintf(text, sizeof(text), "%.1f", x);
  return text;
}

// The one place that takes times. Rates come from the fastest iteration, as the ceilings do; the column Time is the
// mean. On CUDA a pair of events will stand around each run.
void time_case(benchmark::State& state, Context& ctx, const Ceilings& ceilings, const Suite::Entry& entry) {
  Data data(ctx);
  const Run run = entry.setup(data);
  run(ctx);
  ctx.synchronize();
  double seconds = HUGE_VAL;
  for (auto _ : state) {
    const auto start = std::chrono::steady_clock::now();
    run(ctx);
    ctx.synchronize();
    seconds = std::min(seconds, std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
  }
  const double bytes = static_cast<double>(entry.info.bytes), flops = static_cast<double>(entry.info.flops);
  const double copy = ceilings.copy(entry.info.bytes), fma = ceilings.flops_all;
  state.counters["GB/s"] = bytes / seconds * 1e-9;
  state.counters["GFLOP/s"] = flops / seconds * 1e-9;
  state.counters["copy%"] = 100 * bytes / seconds / copy;
  state.counters["fma%"] = 100 * flops / seconds / fma;
  state.counters["floor%"] = 100 * std::max(bytes / copy, flops / fma) / seconds;
}

void describe(Context& ctx, const Ceilings& ceilings) {
  benchmark::AddCustomContext("device", str(ctx.device()));
  benchmark::AddCustomContext("threads", std::to_string(ctx.threads()));
  benchmark::AddCustomContext("instruction_set", ctx.instruction_set());
  for (size_t i = 0; i < ceilings.copies.size(); ++i)
    benchmark::AddCustomContext(
        "copy_GB/s " + std::to_string(i + 1) + " of " + std::to_string(ceilings.copies[i].bytes >> 10) + " KiB",
        number(ceilings.copies[i].bytes_per_second * 1e-9));
  benchmark::AddCustomContext("fma_GFLOP/s one thread", number(ceilings.flops_one * 1e-9));
  benchmark::AddCustomContext("fma_GFLOP/s all threads", number(ceilings.flops_all * 1e-9));
}

/// Takes "--threads N" or "--threads=N" out of the arguments.
int take_threads(std::vector<char*>& args) {
  int threads = 0;
  for (size_t i = 1; i < args.size();) {
    const bool joined = std::strncmp(args[i], "--threads=", 10) == 0;
    const bool split = std::strcmp(args[i], "--threads") == 0 && i + 1 < args.size();
    if (!joined && !split) {
      ++i;
      continue;
    }
    threads = std::atoi(joined ? args[i] + 10 : args[i + 1]);
    args.erase(args.begin() + static_cast<long>(i), args.begin() + static_cast<long>(i) + (joined ? 1 : 2));
  }
  return threads;
}

int bench_main(int argc, char** argv) {
  // Ours first, so that the same flag given by the user wins.
  static char tabular[] = "--benchmark_counters_tabular=true", quick[] = "--benchmark_min_time=0.2";
  std::vector<char*> args(argv, argv + argc);
  args.insert(args.begin() + 1, {tabular, quick});
  Context ctx({.threads = take_threads(args)});
  bool list = false;
  for (const char* arg : args) list = list || std::strncmp(arg, "--benchmark_list_tests", 22) == 0;
  int count = static_cast<int>(args.size());
  args.push_back(nullptr);
  benchmark::Initialize(&count, args.data());
  if (benchmark::ReportUnrecognizedArguments(count, args.data())) return 2;

  const Ceilings ceilings = list ? Ceilings{} : measure_ceilings(ctx);
  if (!list) describe(ctx, ceilings);
  Suite suite;
  for (const auto define : definitions()) define(suite);
  for (const Suite::Entry& entry : suite.entries)
    benchmark::RegisterBenchmark(entry.info.name.c_str(),
                                 [&](benchmark::State& state) { time_case(state, ctx, ceilings, entry); })
        ->UseRealTime()
        ->Unit(benchmark::kMicrosecond);
  benchmark::RunSpecifiedBenchmarks();
  benchmark::Shutdown();
  return 0;
}

}  // namespace

template <class T>
View<T> Data::random(Shape s, double low, double high) {
  const View<T> v = zeros<T>(s);
  const Philox draw{.seed = 1, .stream = drawn_++};
  std::vector<T> host(static_cast<size_t>(s.elements()));
  for (size_t i = 0; i < host.size(); i += 4) {
    const auto bits = draw(i / 4);
    for (size_t k = 0; k < 4 && i + k < host.size(); ++k)
      host[i + k] = store<T>(static_cast<float>(low + (high - low) * (bits[k] >> 8) * 0x1p-24));
  }
  ctx.write<T>(host, v);
  return v;
}
View<int32_t> Data::indices(Shape s, int32_t n) {
  const View<int32_t> v = zeros<int32_t>(s);
  const Philox draw{.seed = 1, .stream = drawn_++};
  std::vector<int32_t> host(static_cast<size_t>(s.elements()));
  for (size_t i = 0; i < host.size(); ++i) host[i] = static_cast<int32_t>(draw.below(i, static_cast<uint64_t>(n)));
  ctx.write<int32_t>(host, v);
  return v;
}
template View<float> Data::random<float>(Shape, double, double);
template View<bf16> Data::random<bf16>(Shape, double, double);

void Suite::add(CaseInfo info, std::function<Run(Data&)> setup) {
  entries.push_back({std::move(info), std::move(setup)});
}
Cases::Cases(void (*define)(Suite&)) { definitions().push_back(define); }

std::string label(Shape s) {
  return std::to_string(s.batch) + "x" + std::to_string(s.time) + "x" +
         (s.width != 1 ? std::to_string(s.width) + "x" : "") + std::to_string(s.channels);
}

}  // namespace nacre::bench

int main(int argc, char** argv) try { return nacre::bench::bench_main(argc, argv); } catch (const nacre::Error& error) {
  std::fprintf(stderr, "nacre_bench: %s\n", error.what());
  return error.exit_code();
}
