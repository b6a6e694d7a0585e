#pragma once
// Limits a folder to one run at a time by a kernel lock on RUN/run.lock, which is released even if the process crashes.
#include <filesystem>

namespace nacre {

class RunLock {
 public:
  /// Throws Error(usage) if the lock is taken. The message contains the text that the holder wrote into the file.
  explicit RunLock(const std::filesystem::path& file);
  ~RunLock();
  RunLock(const RunLock&) = delete;
  RunLock& operator=(const RunLock&) = delete;
  bool held() const { return held_; }

 private:
  int fd_ = -1;
  bool held_ = false;
};

}  // namespace nacre
