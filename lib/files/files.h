#pragma once
// File descriptors that close themselves, and files that appear complete or not at all.
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

#include "nacre/error.h"

namespace nacre::training {

/// Throws Error(io) with the text "PATH: WHAT: <text of errno>".
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

/// Writes all bytes, across short writes and interrupts. Returns false with errno set on failure.
bool write_all(int fd, const void* data, size_t bytes) noexcept;
/// An open file without a name in $TMPDIR or /tmp.
Descriptor unnamed_file();
/// Copies up to the end of `from`.
void copy_all(int from, int to, const std::string& from_name, const std::string& to_name);

/// Like nacre::AtomicFile, for writers that seek and for targets that are not regular files. The file is written under
/// a temporary name beside its target. commit() synchronises, closes and renames it, and synchronises the folder.
/// Without commit() it is removed. "-" and existing targets that are not regular files (pipes, /dev/null) receive the
/// bytes at commit().
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
