#pragma once
// File descriptors that close themselves, and files that appear whole or not at all.
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

#include "nacre/error.h"

namespace nacre::training {

/// "PATH: WHAT: <text of errno>" as Error(io).
[[noreturn]] void throw_errno(const std::string& path, const char* what);

class Descriptor {
 public:
  Descriptor() = default;
  explicit Descriptor(int fd) : fd_(fd) {}
  Descriptor(Descriptor&& other) noexcept : fd_(other.release()) {}
  Descriptor& operator=(Descriptor&& other) noexcept;
  ~Descriptor();
  int get() const { return fd_; }
  explicit operator bool() const { return fd_ >= 0; }
  int release() {
    const int fd = fd_;
    fd_ = -1;
    return fd;
  }

 private:
  int fd_ = -1;
};

/// All of it, through short writes and interrupts. False with errno set when it fails.
bool write_all(int fd, const void* data, size_t bytes) noexcept;
/// An open file without a name, in $TMPDIR or /tmp.
Descriptor unnamed_file();
/// Copies until the end of `from`.
void copy_all(int from, int to, const std::string& from_name, const std::string& to_name);

/// nacre::AtomicFile for writers that seek and for places that are no files. A file under a temporary name beside its
/// place. commit() syncs, closes, renames, syncs the folder; without it the file is removed. "-" and places that exist but
/// are no regular files (pipes, /dev/null) get the bytes at commit().
class OutputFile {
 public:
  explicit OutputFile(const std::string& path);
  OutputFile(const OutputFile&) = delete;
  OutputFile& operator=(const OutputFile&) = delete;
  ~OutputFile();
  int fd() const { return fd_.get(); }
  void commit();

 private:
  std::string path_, target_, temporary_;
  Descriptor fd_;
};

}  // namespace nacre::training
