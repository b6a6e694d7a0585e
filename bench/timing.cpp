#include "timing.h"

#include <algorithm>
#include <chrono>
#include <numeric>

#if defined(NACRE_WITH_CUDA)
#include "runtime/runtime.h"
#endif

namespace nacre::bench {
namespace {

double now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

Sample sample(std::vector<double> seconds) {
  std::sort(seconds.begin(), seconds.end());
  const auto at = [&](double part) {
    return seconds[static_cast<size_t>(part * static_cast<double>(seconds.size() - 1) + 0.5)];
  };
  const double mean = std::accumulate(seconds.begin(), seconds.end(), 0.0) / static_cast<double>(seconds.size());
  return {seconds.front(), at(0.5), mean, at(0.1), at(0.9), at(0.99), static_cast<int>(seconds.size())};
}

int runs_for(double one, double budget) {
  const double fit = budget / std::max(one, 1e-9);
  return static_cast<int>(std::clamp(fit, std::clamp(10 * fit, 5.0, 50.0), 1000.0));
}

Timing measure_cpu(Context& ctx, const Run& run, double budget) {
  const auto once = [&] {
    const double start = now();
    run(ctx);
    ctx.synchronize();
    return now() - start;
  };
  std::vector<double> seconds(static_cast<size_t>(runs_for(once(), budget)));
  for (double& s : seconds) s = once();
  Timing timing;
  timing.warm = sample(seconds);
  return timing;
}

#if defined(NACRE_WITH_CUDA)
Timing measure_cuda(Context& ctx, const Run& run, const TimingOptions& options, double budget) {
  Timing timing;
  const int64_t before = cuda::runtime(ctx).launches();
  run(ctx);
  ctx.synchronize();
  timing.launches = cuda::runtime(ctx).launches() - before;
  timing.peak_bytes = memory_use(ctx.device()).peak;
  // `repeats` runs. They form one graph, so that short runs wait neither for the host nor for the start of a graph.
  const auto several = [&](int repeats) -> std::function<void()> {
    const auto all = [&ctx, &run, repeats] {
      for (int k = 0; k < repeats; ++k) run(ctx);
    };
    if (options.eager) return all;
    return [graph = std::make_shared<Graph>(ctx.capture(all))] { graph->replay(); };
  };
  const std::function<void()> once = several(1);
  if (!options.timed) {
    once();
    ctx.synchronize();
    return timing;
  }
  constexpr int depth = 32;  // runs that are queued before the host waits
  std::vector<cuda::Event> start(depth), end(depth);
  // Takes n samples of `step`, which is `repeats` runs. `before_each` is queued ahead of the first event.
  const auto take = [&](int n, const std::function<void()>& step, int repeats,
                        const std::function<void()>& before_each) {
    std::vector<double> seconds;
    while (static_cast<int>(seconds.size()) < n) {
      const int some = std::min(depth, n - static_cast<int>(seconds.size()));
      for (int i = 0; i < some; ++i) {
        if (before_each) before_each();
        start[static_cast<size_t>(i)].record(ctx);
        step();
        end[static_cast<size_t>(i)].record(ctx);
      }
      for (int i = 0; i < some; ++i)
        seconds.push_back(end[static_cast<size_t>(i)].seconds_since(start[static_cast<size_t>(i)]) / repeats);
    }
    return seconds;
  };
  const double one = sample(take(3, once, 1, {})).median;
  const int repeats = static_cast<int>(std::clamp(1e-4 / std::max(one, 1e-7), 1.0, 100.0));
  timing.warm = sample(take(runs_for(one * repeats, budget), several(repeats), repeats, {}));
  Memory flush(ctx, size_t{256} << 20);
  const View<float> all(reinterpret_cast<float*>(flush.data()), {.channels = int64_t{64} << 20});
  timing.cold = sample(take(runs_for(one, budget), once, 1, [&] { ctx.zero(all); }));
  return timing;
}
#endif

}  // namespace

Timing measure(Context& ctx, const Run& run, const TimingOptions& options) {
  const double budget = options.seconds > 0 ? options.seconds : 0.25;
#if defined(NACRE_WITH_CUDA)
  if (ctx.device().kind == Device::cuda) return measure_cuda(ctx, run, options, budget);
#endif
  run(ctx);
  ctx.synchronize();
  Timing timing;
  if (options.timed) timing = measure_cpu(ctx, run, budget);
  timing.peak_bytes = memory_use(ctx.device()).peak;
  return timing;
}

}  // namespace nacre::bench
