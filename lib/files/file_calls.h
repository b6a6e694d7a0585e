#pragma once
// The calls of the operating system that file writing and reading go through, so that a test can let the n-th fail.
#include <sys/types.h>

#include <cstddef>

namespace nacre {

struct FileCalls {
  int (*open)(const char* path, int flags, mode_t mode);
  ssize_t (*read)(int fd, void* data, size_t bytes);
  ssize_t (*write)(int fd, const void* data, size_t bytes);
  int (*fsync)(int fd);
  int (*close)(int fd);
  int (*rename)(const char* from, const char* to);
  int (*mkdir)(const char* path, mode_t mode);
  int (*unlink)(const char* path);
  int (*rmdir)(const char* path);
};

/// The table in use. Only tests write it.
FileCalls& file_calls() noexcept;

}  // namespace nacre
