// Descriptors, and OutputFile: a file that gets its name when it is complete. atomic_file.cpp does the same for content
// that is written from front to back by this library. OutputFile lends its descriptor, so that libsndfile can write to
// it and go back to the header. If the target is a pipe, a device or standard output, which have no way back, the bytes
// are collected in a file without a name, and commit() copies them.
#include "files/files.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <vector>

#include "files/file_calls.h"

namespace nacre::training {

void throw_errno(const std::string& path, const char* what) {
  const int error = errno;
  throw Error(ErrorKind::io, path + ": " + what + ": " + std::strerror(error));
}

Descriptor& Descriptor::operator=(Descriptor&& other) noexcept {
  if (this != &other) {
    if (fd_ >= 0) ::close(fd_);
    fd_ = other.release();
  }
  return *this;
}
Descriptor::~Descriptor() {
  if (fd_ >= 0) ::close(fd_);
}

bool write_all(int fd, const void* data, size_t bytes) noexcept {
  const char* p = static_cast<const char*>(data);
  while (bytes > 0) {
    const ssize_t n = file_calls().write(fd, p, bytes);
    if (n < 0 && errno == EINTR) continue;
    // A call that writes nothing without an error would repeat endlessly.
    if (n == 0) errno = ENOSPC;
    if (n <= 0) return false;
    p += n;
    bytes -= static_cast<size_t>(n);
  }
  return true;
}

Descriptor unnamed_file() {
  const char* folder = std::getenv("TMPDIR");
  std::string name = std::string(folder != nullptr && *folder != '\0' ? folder : "/tmp") + "/nacre-XXXXXX";
  Descriptor fd(::mkostemp(name.data(), O_CLOEXEC));
  if (!fd) throw_errno(name, "cannot make a temporary file");
  // The file lives until its descriptor is closed, also if the process is killed.
  ::unlink(name.c_str());
  return fd;
}

void copy_all(int from, int to, const std::string& from_name, const std::string& to_name) {
  std::vector<char> buffer(1 << 18);
  for (;;) {
    const ssize_t n = ::read(from, buffer.data(), buffer.size());
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) throw_errno(from_name, "cannot read");
    if (n == 0) return;
    if (!write_all(to, buffer.data(), static_cast<size_t>(n))) throw_errno(to_name, "cannot write");
  }
}

namespace {

/// Synchronises the file with the disk; false on failure. Retries when a signal interrupts the wait.
bool synchronised(int fd) {
  while (file_calls().fsync(fd) != 0)
    if (errno != EINTR) return false;
  return true;
}

/// Synchronises the folder of `file`, so that the new name is on the disk. This is skipped in a folder that can be
/// written but not read, and on file systems that do not support it.
void synchronise_folder_of(const std::string& file, const std::string& name) {
  const std::filesystem::path parent = std::filesystem::path(file).parent_path();
  const Descriptor folder(
      file_calls().open(parent.empty() ? "." : parent.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC, 0));
  if (!folder && errno == EACCES) return;
  if (!folder || (!synchronised(folder.get()) && errno != EINVAL && errno != ENOTSUP))
    throw_errno(name, "cannot synchronise its folder");
}

}  // namespace

OutputFile::OutputFile(const std::string& path) : path_(path) {
  struct stat status {};
  // stat() follows symbolic links, so a link to a device is a device.
  if (path == "-" || (::stat(path.c_str(), &status) == 0 && !S_ISREG(status.st_mode))) {
    if (path != "-" && S_ISDIR(status.st_mode)) throw Error(ErrorKind::io, path + ": is a folder, expected a file");
    fd_ = unnamed_file();
    return;
  }
  // A symbolic link is kept; the file that it points to is replaced.
  std::error_code failed;
  // weakly_canonical() also resolves a path whose last parts do not exist yet.
  const std::filesystem::path real = std::filesystem::weakly_canonical(path, failed);
  target_ = failed ? path : real.string();
  static std::atomic<unsigned> count{0};
  for (;;) {
    // The temporary name does not contain the target's name, which may already have the maximum length.
    const std::filesystem::path name =
        ".nacre-out-" + std::to_string(::getpid()) + "-" + std::to_string(count.fetch_add(1));
    temporary_ = (std::filesystem::path(target_).parent_path() / name).string();
    fd_ = Descriptor(file_calls().open(temporary_.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0666));
    // O_EXCL: an existing file of this name, left by a killed process of the same number, is not used.
    if (fd_) return;
    if (errno != EEXIST) {
      temporary_.clear();
      throw_errno(path_, "cannot create");
    }
  }
}

OutputFile::~OutputFile() {
  // Set from the creation of the file to its rename.
  if (!temporary_.empty()) file_calls().unlink(temporary_.c_str());
}

void OutputFile::commit() {
  // No name of its own: the copy is neither atomic nor synchronised.
  if (temporary_.empty()) {
    Descriptor place;
    if (path_ != "-") {
      place = Descriptor(::open(path_.c_str(), O_WRONLY | O_CLOEXEC));
      if (!place) throw_errno(path_, "cannot open");
    }
    if (::lseek(fd_.get(), 0, SEEK_SET) != 0) throw_errno(path_, "cannot rewind the temporary file");
    copy_all(fd_.get(), path_ == "-" ? STDOUT_FILENO : place.get(), "temporary file", path_);
    if (place && ::close(place.release()) != 0) throw_errno(path_, "cannot close");
    return;
  }
  // The content is on the disk before the name points to it. If a call up to the rename fails, the destructor removes
  // the file.
  if (!synchronised(fd_.get())) throw_errno(path_, "cannot write");
  // EINTR does not affect data that is already on the disk.
  if (file_calls().close(fd_.release()) != 0 && errno != EINTR) throw_errno(path_, "cannot close");
  if (file_calls().rename(temporary_.c_str(), target_.c_str()) != 0) throw_errno(path_, "cannot rename into place");
  temporary_.clear();
  synchronise_folder_of(target_, path_);
}

}  // namespace nacre::training
