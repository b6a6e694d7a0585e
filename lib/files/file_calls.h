#pragma once
// The system calls that reading and writing of files use. A test can make the n-th call fail.
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

/// The table in use. Only tests modify it.
FileCalls& file_calls() noexcept;

}  // namespace nacre
