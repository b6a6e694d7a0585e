// The threads of a context: parts, slots, errors, float modes, and their number.
#include <atomic>
#include <limits>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>
#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

#include "catch.h"
#include "data/files.h"
#include "nacre/context.h"
#include "runtime/thread_pool.h"

using namespace nacre;

namespace {

/// Parts that wait for each other. If there are as many parts as threads, every thread runs one.
struct Meeting {
  explicit Meeting(int n) : wanted(n), slots(static_cast<size_t>(n)) {}
  const int wanted;
  std::atomic<int> here{0};
  std::vector<std::atomic<int>> slots;
  void join(int slot) {
    ++slots[static_cast<size_t>(slot)];
    ++here;
    while (here < wanted) std::this_thread::yield();
  }
};

}  // namespace

TEST_CASE("as many parts as threads run at once, each in a slot of its own") {
  for (const int threads : {2, 3, 8}) {
    ThreadPool pool(threads);
    for (int round = 0; round < 20; ++round) {
      Meeting meeting(threads);
      pool.run(
          threads, [](void* closure, int64_t, int slot) { static_cast<Meeting*>(closure)->join(slot); }, &meeting);
      for (const auto& n : meeting.slots) CHECK(n == 1);
    }
  }
}

TEST_CASE("a job runs every part once") {
  for (const int threads : {1, 2, 3, 8}) {
    ThreadPool pool(threads);
    for (const int64_t parts : {int64_t{0}, int64_t{1}, int64_t{2}, int64_t{7}, int64_t{1000}}) {
      std::vector<std::atomic<int>> runs(static_cast<size_t>(parts));
      pool.run(
          parts,
          [](void* closure, int64_t part, int) {
            ++(*static_cast<std::vector<std::atomic<int>>*>(closure))[static_cast<size_t>(part)];
          },
          &runs);
      for (const auto& n : runs) CHECK(n == 1);
    }
  }
}

TEST_CASE("contexts may go as soon as their last job is done") {
  // A late worker must notice the stop in any state.
  for (int round = 0; round < 300; ++round) {
    ThreadPool pool(3);
    std::atomic<int64_t> sum{0};
    for (int job = 0; job < round % 4; ++job)
      pool.run(
          3, [](void* closure, int64_t part, int) { *static_cast<std::atomic<int64_t>*>(closure) += part; }, &sum);
    CHECK(sum == 3 * (round % 4));
  }
}

TEST_CASE("what a part throws comes out of the job, whoever ran it, and the next job runs") {
  ThreadPool pool(3);
  for (int slot = 0; slot < 3; ++slot) {
    struct Job {
      Meeting meeting{3};
      int thrower;
    } job{.thrower = slot};
    CHECK_THROWS_AS(pool.run(
                        3,
                        [](void* closure, int64_t, int own) {
                          Job& j = *static_cast<Job*>(closure);
                          j.meeting.join(own);
                          if (own == j.thrower) throw std::out_of_range("a part");
                        },
                        &job),
                    std::out_of_range);
    std::atomic<int64_t> sum{0};
    pool.run(
        50, [](void* closure, int64_t part, int) { *static_cast<std::atomic<int64_t>*>(closure) += part; }, &sum);
    CHECK(sum == 49 * 50 / 2);
  }
}

TEST_CASE("a part may start a job, and threads may start jobs at once") {
  struct Nest {
    ThreadPool pool{4};
    std::atomic<int64_t> sum{0};
    static void inner(void* closure, int64_t part, int) { static_cast<Nest*>(closure)->sum += part; }
    static void outer(void* closure, int64_t, int) { static_cast<Nest*>(closure)->pool.run(10, inner, closure); }
  } nest;
  nest.pool.run(20, Nest::outer, &nest);
  CHECK(nest.sum == 20 * 45);
  nest.sum = 0;
  std::vector<std::thread> threads;
  for (int i = 0; i < 4; ++i)
    threads.emplace_back([&nest] {
      for (int round = 0; round < 50; ++round) nest.pool.run(10, Nest::inner, &nest);
    });
  for (std::thread& t : threads) t.join();
  CHECK(nest.sum == 4 * 50 * 45);
}

#if defined(__x86_64__)
TEST_CASE("every part has the caller's rounding and treatment of denormals") {
  ThreadPool pool(4);
  const unsigned before = _mm_getcsr();
  for (const unsigned mode : {before, before | 0x8040u, before}) {  // flush to zero, denormals are zero
    _mm_setcsr(mode);
    struct Job {
      unsigned mode;
      Meeting meeting{4};
      std::atomic<int> others{0};
    } job{.mode = mode & ~0x3fu};  // without the exception flags
    pool.run(
        4,
        [](void* closure, int64_t, int slot) {
          Job& j = *static_cast<Job*>(closure);
          j.meeting.join(slot);
          if ((_mm_getcsr() & ~0x3fu) != j.mode) ++j.others;
        },
        &job);
    CHECK(job.others == 0);
  }
  _mm_setcsr(before);
}
#endif

TEST_CASE("a quota is the least of a group's and of those above it") {
  const test::TemporaryFolder folder;
  const std::string& root = folder.path();
  const auto write = [&](const std::string& path, const std::string& text) { test::write_bytes(folder / path, text); };
  constexpr double none = std::numeric_limits<double>::infinity();
  CHECK(cpu_quota("", root) == none);
  CHECK(cpu_quota("0::/\n", root) == none);
  CHECK(cpu_quota("nonsense\n0:\n", root) == none);
  write("a/b/cpu.max", "max 100000\n");
  write("a/cpu.max", "50000 100000\n");
  CHECK(cpu_quota("0::/a/b\n", root) == 0.5);
  CHECK(cpu_quota("0::/a/b/not_there\n", root) == 0.5);
  CHECK(cpu_quota("0::/b\n", root) == none);
  write("cpu.max", "300000 100000\n");  // in the form that a container has
  CHECK(cpu_quota("0::/\n", root) == 3);
  CHECK(cpu_quota("0::/a/b\n", root) == 0.5);
  write("cpu,cpuacct/job/cpu.cfs_quota_us", "150000\n");
  write("cpu,cpuacct/job/cpu.cfs_period_us", "100000\n");
  write("cpu,cpuacct/free/cpu.cfs_quota_us", "-1\n");
  write("cpu,cpuacct/free/cpu.cfs_period_us", "100000\n");
  CHECK(cpu_quota("4:cpu,cpuacct:/job/step\n3:memory:/job\n", root) == 1.5);
  CHECK(cpu_quota("4:cpu,cpuacct:/free\n", root) == none);
  CHECK(cpu_quota("4:cpuset:/job\n", root) == none);
  write("bad/cpu.max", "lots\n");
  CHECK(cpu_quota("0::/bad\n", root) == 3);
  CHECK(usable_cores() >= 1);
}
