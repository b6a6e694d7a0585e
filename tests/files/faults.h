#pragma once
// Makes the n-th call of the operating system fail, for one scope.
#include <cerrno>

#include "files/file_calls.h"

namespace nacre::test {

/// The error of call number `at` (from 0), and of all later ones if `for_ever`.
struct Fault {
  int at = 0;
  int error = 0;  ///< errno; 0: a short write or read of about half
  bool for_ever = false;
};

class Faults {
 public:
  explicit Faults(Fault fault) {
    state() = {fault, 0, false, file_calls()};
    file_calls() = {
        .open = [](const char* path, int flags,
                   mode_t mode) { return hit() ? -1 : state().real.open(path, flags, mode); },
        .read = [](int fd, void* data, size_t bytes) -> ssize_t {
          if (hit()) return -1;
          return state().real.read(fd, data, halved(bytes));
        },
        .write = [](int fd, const void* data, size_t bytes) -> ssize_t {
          if (hit()) return -1;
          return state().real.write(fd, data, halved(bytes));
        },
        .fsync = [](int fd) { return hit() ? -1 : state().real.fsync(fd); },
        .close =
            [](int fd) {
              const bool failed = hit();
              const int error = errno;
              const int result = state().real.close(fd);  // the descriptor is closed even on failure, as on Linux
              errno = error;
              return failed ? -1 : result;
            },
        .rename = [](const char* from, const char* to) { return hit() ? -1 : state().real.rename(from, to); },
        .mkdir = [](const char* path, mode_t mode) { return hit() ? -1 : state().real.mkdir(path, mode); },
        .unlink = [](const char* path) { return hit() ? -1 : state().real.unlink(path); },
        .rmdir = [](const char* path) { return hit() ? -1 : state().real.rmdir(path); },
    };
  }
  ~Faults() { file_calls() = state().real; }
  Faults(const Faults&) = delete;
  Faults& operator=(const Faults&) = delete;
  /// Whether the fault was reached.
  bool happened() const { return state().happened; }
  int calls() const { return state().calls; }

 private:
  struct State {
    Fault fault;
    int calls = 0;
    bool happened = false;
    FileCalls real{};
    bool halve = false;
  };
  static State& state() {
    static State s;
    return s;
  }
  static bool hit() {
    State& s = state();
    const int now = s.calls++;
    const bool here = s.fault.for_ever ? now >= s.fault.at : now == s.fault.at;
    s.halve = here && s.fault.error == 0;
    if (!here) return false;
    s.happened = true;
    if (s.fault.error == 0) return false;
    errno = s.fault.error;
    return true;
  }
  static size_t halved(size_t bytes) { return state().halve ? (bytes + 1) / 2 : bytes; }
};

/// All ways in which a call may fail: disk full, quota, hardware, interrupted, short.
inline constexpr int fault_errors[] = {ENOSPC, EDQUOT, EIO, EINTR, 0};

}  // namespace nacre::test
