#pragma once
// One run at a time in a folder: a lock of the kernel's on RUN/run.lock, which no crash leaves behind.
#include <filesystem>

namespace nacre {

class RunLock {
 public:
  /// Throws Error(usage) with what the holder wrote about itself if the lock is taken.
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
