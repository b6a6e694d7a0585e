// Probes of time: uploads beside a replaying graph, the gap between kernels, and two ceilings. On the emulated device
// they only check bytes.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <span>

#include "ceilings_cuda.h"
#include "runtime/device.cuh"
#include "probes/probes.h"
#if defined(NACRE_BENCH_CUBLAS)
#include "baselines/cublas.h"
#include "harness.h"  // Skip
#endif

namespace nacre::probes {
namespace {

using bench::kernels::number_count;
using cuda::launch;

double seconds_of(const std::function<void()>& what) {
  const auto start = std::chrono::steady_clock::now();
  what();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

// ---- uploads
// ----------------------------------------------------------------------------------------------------------

constexpr int digest_threads = 256;

/// A word's share of the digest. It depends on the word and its position. 32-bit sums wrap, so their order does not
/// matter.
__host__ __device__ inline uint32_t share(uint32_t word, int64_t place) {
  return (word ^ static_cast<uint32_t>(place) * 0x9e3779b9u) * 0x85ebca6bu;
}
/// Adds the digest of the words to results[2 counter + which].
__global__ void __launch_bounds__(digest_threads)
    digest_kernel(const uint32_t* words, int64_t n, const uint32_t* counter, int which, uint32_t* results) {
  NACRE_SHARED(uint32_t, buffer, digest_threads / 32);
  uint32_t sum = 0;
  for (int64_t i = cuda::grid_thread(); i < n; i += cuda::grid_threads()) sum += share(words[i], i);
  sum = cuda::block_sum<digest_threads>(sum, buffer);
  if (threadIdx.x == 0) atomicAdd(results + 2 * *counter + which, sum);
}
__global__ void next_kernel(uint32_t* counter) {
  if (threadIdx.x == 0) ++*counter;
}

#if !defined(NACRE_EMULATED)
/// Tests on the device's own clock whether it copies from pinned memory while a graph runs. Times are in milliseconds
/// from the moment before the graph: to the copy's start, the copy's end, and the graph's end.
struct Beside {
  float copy_starts = 0, copy_ends = 0, graph_ends = 0;
};
Beside copy_beside(Context& ctx, Graph& graph, void* to, size_t bytes) {
  const auto check = [](cudaError_t e, const char* what) {
    if (e != cudaSuccess) throw Error(ErrorKind::device, text("%s: %s", what, cudaGetErrorString(e)));
  };
  auto* const main = static_cast<cudaStream_t>(cuda::runtime(ctx).stream());
  cudaStream_t second = nullptr;
  void* pinned = nullptr;
  cudaEvent_t events[4] = {};
  check(cudaStreamCreateWithFlags(&second, cudaStreamNonBlocking), "stream");
  check(cudaMallocHost(&pinned, bytes), "cudaMallocHost");
  for (cudaEvent_t& e : events) check(cudaEventCreate(&e), "event");
  Beside b;
  for (int i = 0; i < 2; ++i) {  // the first round loads what is loaded at the first use
    ctx.synchronize();
    check(cudaEventRecord(events[0], main), "event");
    graph.replay();
    check(cudaEventRecord(events[3], main), "event");
    check(cudaEventRecord(events[1], second), "event");
    check(cudaMemcpyAsync(to, pinned, bytes, cudaMemcpyHostToDevice, second), "cudaMemcpyAsync");
    check(cudaEventRecord(events[2], second), "event");
    check(cudaStreamSynchronize(second), "cudaStreamSynchronize");
    ctx.synchronize();
    check(cudaEventElapsedTime(&b.copy_starts, events[0], events[1]), "event");
    check(cudaEventElapsedTime(&b.copy_ends, events[0], events[2]), "event");
    check(cudaEventElapsedTime(&b.graph_ends, events[0], events[3]), "event");
  }
  for (const cudaEvent_t e : events) (void)cudaEventDestroy(e);
  (void)cudaFreeHost(pinned);
  (void)cudaStreamDestroy(second);
  return b;
}
#endif

int64_t whole(double v) { return static_cast<int64_t>(std::llround(v)); }

}  // namespace

// The pattern of the trainer: upload a batch, replay the step, repeat, and never wait. Here a step takes the digest of
// the batch at its start and again at its end, with arithmetic between. Both must be the digest of the step's own
// batch.
Result upload_beside_graph(const Options& o) {
  Context ctx = context(o);
  constexpr int uploads = 200;
  const int64_t words = o.small ? 1000 : 1 << 20;  // 4 MiB: a batch of 16 x 2.7 s
  const Memory batch(ctx, static_cast<size_t>(words) * 4), results(ctx, 2 * 4 * (uploads + 1)), counter(ctx, 4),
      numbers(ctx, number_count * 4);
  const unsigned busy_blocks = o.small ? 1 : static_cast<unsigned>(cuda::limits(ctx).multiprocessors) * 8;
  const Memory busy(ctx, size_t{busy_blocks} * bench::kernels::arithmetic_threads * 4);
  auto* const at = reinterpret_cast<uint32_t*>(batch.data());
  auto* const count = reinterpret_cast<uint32_t*>(counter.data());
  auto* const sums = reinterpret_cast<uint32_t*>(results.data());
  bench::kernels::random(ctx, reinterpret_cast<float*>(numbers.data()), number_count);
  const unsigned blocks = cuda::blocks_for(words, digest_threads, o.small ? 2 : 512);
  const auto digest = [&](int which) {
    launch(ctx, {.name = "probe_digest", .grid = blocks, .block = digest_threads}, digest_kernel, at, words, count,
           which, sums);
  };
  const auto work = [&] {  // about half a millisecond on a current device
    (void)bench::kernels::multiply_add(ctx, reinterpret_cast<float*>(numbers.data()),
                                       reinterpret_cast<float*>(busy.data()), busy_blocks, o.small ? 2 : 1 << 13);
  };
  const auto step = [&] {
    digest(0), work(), digest(1);
    launch(ctx, {.name = "probe_next", .grid = 1, .block = 32}, next_kernel, count);
  };

  std::vector<std::vector<uint32_t>> contents(o.small ? 3 : 8);  // the first word is the number of the upload
  Integers draw(4);
  for (auto& c : contents) {
    c.resize(static_cast<size_t>(words));
    for (uint32_t& w : c) w = draw.bits();
  }
  std::vector<uint32_t> rest;  // digests of all but the first word
  for (const auto& c : contents) {
    uint32_t sum = 0;
    for (size_t i = 1; i < c.size(); ++i) sum += share(c[i], static_cast<int64_t>(i));
    rest.push_back(sum);
  }
  const View<uint32_t> there(at, {.channels = words});
  const auto upload = [&](int i) {
    auto& c = contents[static_cast<size_t>(i) % contents.size()];
    c[0] = static_cast<uint32_t>(i);  // upload() copied the last content, so it may change
    ctx.upload<uint32_t>(std::span<const uint32_t>(c), there);
  };
  upload(0);  // allocates
  step();     // loads the kernels
  ctx.synchronize();
  const auto restart = [&] {
    ctx.zero(View<float>(reinterpret_cast<float*>(results.data()), {.channels = 2 * (uploads + 1)}));
    ctx.zero(View<float>(reinterpret_cast<float*>(counter.data()), {.channels = 1}));
    ctx.synchronize();
  };
  restart();
  Graph graph = ctx.capture(step);

  const double both = seconds_of([&] {
    for (int i = 0; i < uploads; ++i) upload(i), graph.replay();
    ctx.synchronize();
  });
  std::vector<uint32_t> found(2 * uploads);
  ctx.read<uint32_t>(View<const uint32_t>(sums, {.channels = 2 * uploads}), std::span<uint32_t>(found));
  int64_t wrong = 0;
  for (int i = 0; i < uploads; ++i) {
    const uint32_t expected = rest[static_cast<size_t>(i) % contents.size()] + share(static_cast<uint32_t>(i), 0);
    for (int which = 0; which < 2; ++which) wrong += found[static_cast<size_t>(2 * i + which)] != expected;
  }
  Result r;
  r.outcome = wrong == 0 ? Result::ok : Result::failed;
  r.says = text("%d uploads of %lld bytes beside a replaying graph: %lld of %d digests are wrong", uploads,
                static_cast<long long>(words * 4), static_cast<long long>(wrong), 2 * uploads);
  r.figure("uploads", int64_t{uploads}).figure("bytes", words * 4).figure("wrong", wrong);
#if !defined(NACRE_EMULATED)
  if (o.small) return r;
  restart();
  const double steps_alone = seconds_of([&] {
    for (int i = 0; i < uploads; ++i) graph.replay();
    ctx.synchronize();
  });
  const double uploads_alone = seconds_of([&] {
    for (int i = 0; i < uploads; ++i) upload(i);
    ctx.synchronize();
  });
  // The times above contain the host's part. The device times itself below: about ten milliseconds of arithmetic, and a
  // copy that takes a tenth of that.
  Graph longer = ctx.capture([&] {
    for (int i = 0; i < 16; ++i) work();
  });
  const Memory aside(ctx, size_t{32} << 20);
  const Beside b = copy_beside(ctx, longer, aside.data(), aside.size());
  const bool overlaps = b.copy_ends < b.graph_ends;
  if (!overlaps) r.outcome = Result::failed;
  r.says += text(
      "; 32 MiB queued behind a graph of %.2f ms on another stream began after %.2f and ended after %.2f ms: %s; "
      "a step takes %.3f ms, an upload %.3f ms, an upload and a step %.3f ms",
      static_cast<double>(b.graph_ends), static_cast<double>(b.copy_starts), static_cast<double>(b.copy_ends),
      overlaps ? "they overlap" : "they do not overlap", 1e3 * steps_alone / uploads, 1e3 * uploads_alone / uploads,
      1e3 * both / uploads);
  r.figure("overlaps", int64_t{overlaps})
      .figure("graph_ends_seconds", 1e-3 * static_cast<double>(b.graph_ends))
      .figure("copy_starts_seconds", 1e-3 * static_cast<double>(b.copy_starts))
      .figure("copy_ends_seconds", 1e-3 * static_cast<double>(b.copy_ends))
      .figure("step_seconds", steps_alone / uploads)
      .figure("upload_seconds", uploads_alone / uploads)
      .figure("both_seconds", both / uploads);
#else
  (void)both;
#endif
  return r;
}

Result launch_gap(const Options& o) {
  Context ctx = context(o);
  constexpr int kernels = 450;  // about as many as a training step has
  const int rounds = o.small ? 1 : 20;
  const auto nothing = [&] { bench::kernels::nothing(ctx); };
  const double in_graph = bench::best_time(ctx, o.small ? 10 : kernels, rounds, nothing);
  cuda::Event start, end;
  double singly = HUGE_VAL, host = HUGE_VAL, one = HUGE_VAL;
  for (int i = 0; i < rounds; ++i) {
    ctx.synchronize();
    start.record(ctx);
    host = std::min(host, seconds_of([&] {
                            for (int k = 0; k < kernels; ++k) nothing();
                          }) / kernels);
    end.record(ctx);
    singly = std::min(singly, end.seconds_since(start) / kernels);
    one = std::min(one, seconds_of([&] { nothing(), ctx.synchronize(); }));
  }
  Graph graph = ctx.capture([&] {
    for (int k = 0; k < kernels; ++k) nothing();
  });
  graph.replay();
  ctx.synchronize();
  double launch_graph = HUGE_VAL, whole_graph = HUGE_VAL;
  for (int i = 0; i < rounds; ++i) {
    double launched = 0;
    whole_graph = std::min(whole_graph, seconds_of([&] {
                             launched = seconds_of([&] { graph.replay(); });
                             ctx.synchronize();
                           }));
    launch_graph = std::min(launch_graph, launched);
  }
  Result r;
  if (emulated) {
    r.says = "kernels ran singly and in a graph; the emulated device has no times";
    return r;
  }
  r.says = text(
      "an empty kernel takes %.2f us singly (%.2f us of the host), %.2f us in a graph; launched and waited for "
      "%.1f us; a graph of %d launches in %.1f us and ends after %.1f us",
      1e6 * singly, 1e6 * host, 1e6 * in_graph, 1e6 * one, kernels, 1e6 * launch_graph, 1e6 * whole_graph);
  return r.figure("singly_seconds", singly)
      .figure("host_seconds", host)
      .figure("in_graph_seconds", in_graph)
      .figure("launch_and_wait_seconds", one)
      .figure("graph_launch_seconds", launch_graph)
      .figure("graph_seconds", whole_graph)
      .figure("kernels", int64_t{kernels});
}

Result copy_ceiling(const Options& o) {
  Context ctx = context(o);
  // Reads 2 GiB and writes 2 GiB: forty times the largest second-level cache of current devices.
  size_t bytes = o.small ? 64 << 10 : size_t{2} << 30;
  Memory from, to;
  for (;; bytes /= 2) {  // smaller cards, and cards that others use as well
    try {
      from = Memory(ctx, bytes);
      to = Memory(ctx, bytes);
      break;
    } catch (const Error&) {
      from = Memory();
      if (bytes < (size_t{256} << 20)) throw;
    }
  }
  const int64_t n = static_cast<int64_t>(bytes);
  bench::kernels::random(ctx, reinterpret_cast<float*>(from.data()), n / 4);
  const int steps = o.small ? 1 : 4, measurements = o.small ? 1 : 8;
  const double vendor = bench::best_time(ctx, steps, measurements,
                                         [&] { cuda::runtime(ctx).copy_on_device(to.data(), from.data(), bytes); });
  const unsigned resident = static_cast<unsigned>(cuda::limits(ctx).multiprocessors) * 8;
  double own = HUGE_VAL;
  for (const unsigned blocks : {resident, bench::kernels::copy_blocks(n)})
    own = std::min(own, bench::best_time(ctx, steps, measurements, [&] {
                     bench::kernels::copy(ctx, from.data(), to.data(), n, o.small ? 2 : blocks, 1);
                   }));
  const double moved = 2 * static_cast<double>(bytes);
  Result r;
  r.figure("bytes", whole(moved));
  if (emulated) {
    r.says = "copies ran; the emulated device has no times";
    return r;
  }
  r.says = text("%.2f GiB read and written: %.1f GB/s by cudaMemcpyAsync, %.1f GB/s by a kernel", moved / (1 << 30),
                1e-9 * moved / vendor, 1e-9 * moved / own);
  return r.figure("vendor_bytes_per_second", moved / vendor).figure("own_bytes_per_second", moved / own);
}

Result product_ceiling([[maybe_unused]] const Options& o) {
#if defined(NACRE_BENCH_CUBLAS)
  Context ctx = context(o);
  const int64_t n = o.small ? 512 : 8192;
  const size_t size = static_cast<size_t>(n * n);
  const Memory from(ctx, 2 * size * 4), to(ctx, size * 4);
  Result r;
  try {
    bench::Cublas cublas(ctx);
    const auto rate = [&](std::string_view arithmetic, size_t element) {
      const bench::Cublas::Product product{.arithmetic = arithmetic,
                                           .m = n,
                                           .n = n,
                                           .k = n,
                                           .a = from.data(),
                                           .b = from.data() + size * element,
                                           .c = to.data(),
                                           .b_transposed = true,
                                           .c_is_bf16 = element == 2};
      return 2.0 * static_cast<double>(n) * static_cast<double>(n) * static_cast<double>(n) /
             bench::best_time(ctx, 4, o.small ? 1 : 8, [&] { cublas.multiply(product); });
    };
    bench::kernels::random(ctx, reinterpret_cast<bf16*>(from.data()), 2 * n * n);
    const double bf16_rate = rate("bf16", 2);
    bench::kernels::random(ctx, reinterpret_cast<float*>(from.data()), 2 * n * n);
    const double tf32_rate = rate("tf32", 4);
    r.says = text("cuBLAS %s, %lld cubed, random numbers: %.1f TFLOP/s in bf16, %.1f TFLOP/s in tf32",
                  cublas.version().c_str(), static_cast<long long>(n), 1e-12 * bf16_rate, 1e-12 * tf32_rate);
    return r.figure("cublas", cublas.version())
        .figure("n", n)
        .figure("bf16_flops", bf16_rate)
        .figure("tf32_flops", tf32_rate);
  } catch (const bench::Skip& e) {
    return skip(e.what());
  }
#else
  return skip("cuBLAS is not part of this build");
#endif
}

}  // namespace nacre::probes
