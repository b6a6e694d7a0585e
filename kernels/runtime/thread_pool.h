#pragma once
// The threads of a context. A job consists of parts, which any thread may run; results do not depend on which one does.
// The first job starts the threads. Between jobs they spin for a short time, then sleep.
#include <atomic>
#include <cstdint>
#include <string>

namespace nacre {

class ThreadPool {
 public:
  /// A part of a job, and the slot of the thread that runs it, in [0, threads): no two parts that run at the same time
  /// have the same slot.
  using Body = void (*)(void* closure, int64_t part, int slot);

  /// `threads` includes the caller of run(). Starts no thread.
  explicit ThreadPool(int threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  /// Runs every part in [0, parts) once and returns when all are done. May be called from any number of threads, from
  /// inside a part, and in a forked process. A caller that finds the threads busy runs all parts itself, in slot 0.
  /// Throws the exception of a part; parts that had not begun by then are skipped.
  void run(int64_t parts, Body body, void* closure);

 private:
  struct Crew;
  Crew& crew();
  int threads_;
  std::atomic<Crew*> crew_;
};

/// The number of forks between the first process and this one. An object made at another count belongs to a parent
/// process.
uint32_t fork_generation() noexcept;

/// The CPU quota of a process in cores: the least of its group's and of all groups above it; infinite without a quota.
/// `groups` is the content of /proc/self/cgroup, `root` the folder where cgroups are mounted.
double cpu_quota(const std::string& groups, const std::string& root);

}  // namespace nacre
