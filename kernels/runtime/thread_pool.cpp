// A job is a range of parts that the caller and the workers take from shared counters. It takes no lock and, after the
// first one, allocates nothing. Below the pool: the number of cores that this process may use, with the quotas of its
// control groups.
#include "runtime/thread_pool.h"

#include <pthread.h>
#include <sched.h>
#include <signal.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cmath>
#include <exception>
#include <fstream>
#include <limits>
#include <memory>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include "nacre/context.h"
#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace nacre {
namespace {

std::atomic<uint32_t>& generation() {
  static std::atomic<uint32_t> count{0};
  return count;
}
// Runs in the child after each fork.
void count_a_fork() { generation().fetch_add(1, std::memory_order_relaxed); }

/// The floating-point mode (rounding, denormals). Workers take over the caller's, so that a part's result does not
/// depend on the thread that runs it.
uint64_t float_mode() {
#if defined(__x86_64__)
  return _mm_getcsr();
#elif defined(__aarch64__)
  uint64_t mode;
  asm volatile("mrs %0, fpcr" : "=r"(mode));
  return mode;
#else
  return 0;
#endif
}
void set_float_mode([[maybe_unused]] uint64_t mode) {
#if defined(__x86_64__)
  _mm_setcsr(static_cast<uint32_t>(mode));
#elif defined(__aarch64__)
  asm volatile("msr fpcr, %0" : : "r"(mode));
#endif
}

// Tells the core that this is a spin loop.
void relax() {
#if defined(__x86_64__)
  _mm_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

/// How long a thread spins before it sleeps. The gaps between the jobs of a step are shorter, so on an idle machine
/// threads rarely sleep. Beside other processes, a thread that slept waits some milliseconds for the scheduler before
/// it runs again. Compared with that the time is short, and shorter times were slower (docs/decisions/cpu-threads.md).
constexpr std::chrono::microseconds patience{500};

/// Spins until `condition()` holds, or time is up; returns whether it holds. Reads the clock once in 64 checks.
template <class F>
bool spin(bool patient, F&& condition) {
  if (!patient) return condition();
  for (const auto end = std::chrono::steady_clock::now() + patience;;) {
    for (int i = 0; i < 64; ++i, relax())
      if (condition()) return true;
    if (std::chrono::steady_clock::now() > end) return false;
  }
}

constexpr size_t stack_bytes = size_t{1} << 20;

}  // namespace

uint32_t fork_generation() noexcept {
  static const int registered = pthread_atfork(nullptr, nullptr, count_a_fork);
  (void)registered;
  return generation().load(std::memory_order_relaxed);
}

// The state that a process shares with its worker threads. A forked child inherits the memory without the threads. It
// leaves the object untouched, which may have been copied in any state, and creates another.
struct ThreadPool::Crew {
  explicit Crew(int n) : threads(n), shares(static_cast<size_t>(n)), patient(n <= usable_cores()) {
    workers.reserve(static_cast<size_t>(n - 1));  // so that addresses stay valid and a job allocates nothing
  }

  const int threads;
  const uint32_t born = fork_generation();
  std::atomic<bool> busy{false};

  // The job. Written only while no worker is inside the gate.
  Body body = nullptr;
  void* closure = nullptr;
  uint64_t mode = 0;
  std::atomic<bool> failed{false};
  std::exception_ptr error;
  /// The parts of one slot. Its thread takes them from the front; a thread that has none left takes from the others.
  struct alignas(64) Share {
    std::atomic<int64_t> next{0};
    int64_t end = 0;
  };
  std::vector<Share> shares;

  // The gate: number of the job << 32 | open | number of workers inside. A worker enters the open gate of a job once.
  // The caller closes it when no part is left. A worker that comes late finds it closed and does not touch the job.
  static constexpr uint64_t open = uint64_t{1} << 31, inside = open - 1;
  alignas(64) std::atomic<uint64_t> gate{0};
  alignas(64) std::atomic<uint32_t> call{0};  ///< low half of the job's number; workers sleep on it
  alignas(64) std::atomic<uint32_t> left{0};  ///< changes when the last worker leaves a closed gate; wakes the caller
  std::atomic<bool> stop{false};
  const bool patient;  ///< there is a core per thread, so spinning takes time from no other thread

  struct Worker {
    Crew* crew;
    int slot;
    pthread_t thread;
  };
  bool started = false;
  std::vector<Worker> workers;

  void start() {
    if (started) return;
    started = true;
    // New threads inherit the mask of this one, which is restored below. Called under `busy`, so by one thread at a
    // time.
    sigset_t all, before;
    sigfillset(&all);  // signals are for the program's own threads, but for those that a thread's own fault sends
    for (const int fault : {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP}) sigdelset(&all, fault);
    pthread_attr_t attributes;
    if (pthread_attr_init(&attributes) != 0) return;
    pthread_attr_setstacksize(&attributes, stack_bytes);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    for (int slot = 1; slot < threads; ++slot) {
      workers.push_back({this, slot, {}});
      if (pthread_create(&workers.back().thread, &attributes, main, &workers.back()) == 0) continue;
      workers.pop_back();  // with fewer threads all works, slower
      break;
    }
    pthread_sigmask(SIG_SETMASK, &before, nullptr);
    pthread_attr_destroy(&attributes);
  }
  void end() {
    stop.store(true, std::memory_order_release);
    call.fetch_add(1, std::memory_order_release);
    call.notify_all();
    for (const Worker& w : workers) pthread_join(w.thread, nullptr);
  }

  static void* main(void* argument) {
    const auto& self = *static_cast<Worker*>(argument);
    Crew& crew = *self.crew;
    for (uint32_t seen = 0;;) {
      // A worker waits for a new job number, enters the gate if it is open and still of that job, works, and leaves.
      // The gate's load acquires the fields of the job, which were written before it opened.
      if (!spin(crew.patient, [&] { return crew.call.load(std::memory_order_acquire) != seen; }))
        crew.call.wait(seen, std::memory_order_acquire);
      seen = crew.call.load(std::memory_order_acquire);  // before `stop`: the last call comes after it
      if (crew.stop.load(std::memory_order_acquire)) return nullptr;
      uint64_t now = crew.gate.load(std::memory_order_acquire);
      while ((now & open) != 0 && static_cast<uint32_t>(now >> 32) == seen)
        if (crew.gate.compare_exchange_weak(now, now + 1, std::memory_order_acq_rel)) {
          crew.work(self.slot);
          const uint64_t before = crew.gate.fetch_sub(1, std::memory_order_acq_rel);
          if ((before & open) == 0 && (before & inside) == 1) {
            crew.left.fetch_add(1, std::memory_order_release);
            crew.left.notify_one();
          }
          break;
        }
    }
  }

  void work(int slot) {
    set_float_mode(mode);
    // Own share first, then those of the others in a ring, each from its front. A part is taken with one fetch_add; the
    // load before it keeps threads from writing to the cache lines of shares that are empty.
    const auto n = static_cast<int>(shares.size());
    for (int k = 0; k < n; ++k) {
      Share& share = shares[static_cast<size_t>((slot + k) % n)];
      for (;;) {
        if (share.next.load(std::memory_order_relaxed) >= share.end) break;
        const int64_t part = share.next.fetch_add(1, std::memory_order_relaxed);
        if (part >= share.end || failed.load(std::memory_order_relaxed)) break;
        try {
          body(closure, part, slot);
        } catch (...) {
          // The first exception wins. Its thread alone writes `error`, and the caller reads it after all workers have
          // left.
          if (!failed.exchange(true)) error = std::current_exception();
        }
      }
    }
  }

  void run(int64_t parts, Body new_body, void* new_closure) {
    start();
    body = new_body, closure = new_closure, mode = float_mode(), failed = false, error = nullptr;
    const auto n = static_cast<int64_t>(shares.size());
    // Contiguous shares of nearly equal size. The relaxed stores are published by the gate below.
    for (int64_t i = 0; i < n; ++i) {
      shares[static_cast<size_t>(i)].next.store(parts * i / n, std::memory_order_relaxed);
      shares[static_cast<size_t>(i)].end = parts * (i + 1) / n;
    }
    // The order of the stores: fields and shares, gate open, new number. A worker that sees the number finds the gate
    // open, or already closed because all parts were taken.
    const uint32_t job_number = call.load(std::memory_order_relaxed) + 1,
                   left_before = left.load(std::memory_order_relaxed);
    gate.store(uint64_t{job_number} << 32 | open, std::memory_order_release);
    // seq_cst: notify_all must not check for sleepers before the new number is visible.
    call.store(job_number, std::memory_order_seq_cst);
    call.notify_all();
    work(0);
    // No part is left, but workers may still run theirs. Who enters later finds the gate closed, so `inside` only
    // falls, and the last one to leave changes `left`. After that the job's fields may be written again.
    if ((gate.fetch_and(~open, std::memory_order_acq_rel) & inside) != 0) {
      if (!spin(patient, [&] { return left.load(std::memory_order_acquire) != left_before; }))
        left.wait(left_before, std::memory_order_acquire);
    }
    if (failed) std::rethrow_exception(std::exchange(error, nullptr));
  }
};

ThreadPool::ThreadPool(int threads) : threads_(std::max(threads, 1)), crew_(new Crew(threads_)) {}
ThreadPool::~ThreadPool() {
  Crew* const crew = crew_.load();
  if (crew->born != fork_generation()) return;  // made by a parent process: its threads do not exist here
  crew->end();
  delete crew;
}

ThreadPool::Crew& ThreadPool::crew() {
  Crew* current = crew_.load(std::memory_order_acquire);
  if (current->born == fork_generation()) return *current;
  // Threads of a child may come here together: one crew is installed, the others are dropped unstarted. The parent's
  // crew is leaked: its destructor would join threads that do not exist here.
  auto fresh = std::make_unique<Crew>(threads_);
  if (crew_.compare_exchange_strong(current, fresh.get(), std::memory_order_acq_rel)) return *fresh.release();
  return *current;
}

void ThreadPool::run(int64_t parts, Body body, void* closure) {
  if (threads_ > 1 && parts > 1) {
    Crew& workers = crew();
    // Busy: another thread's job, or a part that calls run() itself. Running the parts here keeps both free of
    // deadlock.
    if (!workers.busy.exchange(true, std::memory_order_acquire)) {
      struct Release {
        std::atomic<bool>& busy;
        ~Release() { busy.store(false, std::memory_order_release); }
      } const release{workers.busy};
      return workers.run(parts, body, closure);
    }
  }
  for (int64_t part = 0; part < parts; ++part) body(closure, part, 0);
}

namespace {

/// The quota of one group, in cores.
double quota_of(const std::string& folder) {
  constexpr double none = std::numeric_limits<double>::infinity();
  // Microseconds of CPU time per period, and the period.
  double quota = 0, period = 0;
  if (std::ifstream file(folder + "/cpu.max"); file) {  // version 2: "max 100000" or "50000 100000"
    if (!(file >> quota >> period)) return none;
  } else if (std::ifstream wanted(folder + "/cpu.cfs_quota_us"), of(folder + "/cpu.cfs_period_us"); wanted && of) {
    if (!(wanted >> quota && of >> period)) return none;  // version 1: -1 is no quota
  }
  return quota > 0 && period > 0 ? quota / period : none;
}

}  // namespace

double cpu_quota(const std::string& groups, const std::string& root) {
  double least = std::numeric_limits<double>::infinity();
  std::istringstream lines(groups);
  for (std::string line; std::getline(lines, line);) {  // "0::/a/b", or "4:cpu,cpuacct:/a/b"
    const size_t first = line.find(':'), second = line.find(':', first + 1);
    if (first == std::string::npos || second == std::string::npos) continue;
    const std::string controllers = "," + line.substr(first + 1, second - first - 1) + ",";
    std::vector<std::string> mounts;
    if (controllers == ",,") mounts = {"", "/unified"};
    if (controllers.find(",cpu,") != std::string::npos) mounts = {"/cpu", "/cpu,cpuacct"};
    for (const std::string& mount : mounts)
      // From the group up to the mount itself, which is often all that a container sees of its own group.
      for (std::string path = line.substr(second + 1);; path.resize(path.rfind('/'))) {
        if (path == "/") path.clear();
        least = std::min(least, quota_of(root + mount + path));
        if (path.empty() || path[0] != '/') break;
      }
  }
  return least;
}

int usable_cores() {
  int cores = 1;
  // The kernel refuses sets smaller than its own, which may have thousands of cores.
  for (int most = 1024; most <= 1 << 20; most *= 2) {
    const std::unique_ptr<cpu_set_t, void (*)(cpu_set_t*)> set(CPU_ALLOC(most), [](cpu_set_t* s) { CPU_FREE(s); });
    if (!set) break;
    const size_t bytes = CPU_ALLOC_SIZE(most);
    CPU_ZERO_S(bytes, set.get());
    if (sched_getaffinity(0, bytes, set.get()) == 0) {
      cores = std::max(1, CPU_COUNT_S(bytes, set.get()));
      break;
    }
    if (errno != EINVAL) break;
  }
  std::ostringstream groups;
  if (std::ifstream file("/proc/self/cgroup"); file) groups << file.rdbuf();
  const double allowed = cpu_quota(groups.str(), "/sys/fs/cgroup");
  return allowed < cores ? std::max(1, static_cast<int>(std::ceil(allowed))) : cores;
}

}  // namespace nacre
