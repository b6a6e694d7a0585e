#pragma once
// The threads of a context. A job is a number of parts, which any thread may take; which one took it changes no result.
// Threads are started by the first job, wait for the next one by a short spin, then sleep.
#include <atomic>
#include <cstdint>
#include <string>

namespace nacre {

class ThreadPool {
 public:
  /// A part of a job, and the slot of the thread that runs it, in [0, threads): no two parts that run at the same time
  /// have the same slot.
  using Body = void (*)(void* closure, int64_t part, int slot);

  /// `threads` counts the caller of run() as one. Starts none yet.
  explicit ThreadPool(int threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  /// Runs every part in [0, parts) once and returns when all are done. May be called from any number of threads, from
  /// inside a part, and in a process that was forked off. A caller that finds the threads busy runs all parts itself,
  /// in slot 0. Throws what a part threw; the parts that were not begun by then are left out.
  void run(int64_t parts, Body body, void* closure);

 private:
  struct Crew;
  Crew& crew();
  int threads_;
  std::atomic<Crew*> crew_;
};

/// Counts the forks between the first process and this one. An object with another count was made by a parent process.
uint32_t fork_generation() noexcept;

/// Cores that the CPU quotas of a process are worth, the least of its own group's and of all above it; infinite without
/// one. `groups` is what /proc/self/cgroup says, `root` where cgroups are mounted.
double cpu_quota(const std::string& groups, const std::string& root);

}  // namespace nacre
