// Files and folders that appear complete or not at all, by the sequence that makes a rename safe: write under a
// temporary name in the target's folder, fsync the content, rename, fsync the folder. A process that is killed leaves
// the old target and a temporary, which remove_leftovers() removes later.
// Descriptor checks every system call, Output adds a buffer, the size and the CRC, and AtomicFile and AtomicDirectory
// add the names. Calls go through file_calls(), so that tests can make each of them fail. files/files.h has OutputFile,
// for writers that seek.
#include "nacre/files/atomic_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <new>
#include <system_error>
#include <utility>

#include "files/file_calls.h"
#include "nacre/error.h"
#include "nacre/files/crc32c.h"

namespace nacre {

namespace fs = std::filesystem;

FileCalls& file_calls() noexcept {
  static FileCalls calls{
      .open = [](const char* path, int flags, mode_t mode) { return ::open(path, flags, mode); },
      .read = ::read,
      .write = ::write,
      .fsync = ::fsync,
      .close = ::close,
      .rename = [](const char* from, const char* to) { return std::rename(from, to); },
      .mkdir = ::mkdir,
      .unlink = ::unlink,
      .rmdir = ::rmdir,
  };
  return calls;
}

namespace {

// The dot hides temporaries from listings. remove_leftovers() finds them by the prefix.
constexpr std::string_view temporary_prefix = ".nacre-tmp-";
// 256 KiB: few system calls even if the content comes in small pieces.
constexpr size_t buffer_bytes = size_t{1} << 18;

[[noreturn]] void fail(const fs::path& path, const char* action, int number) {
  const std::string reason = std::error_code(number, std::generic_category()).message();
  throw Error(ErrorKind::io, path.string() + ": could not " + action + ": " + reason);
}

/// Repeats a call as long as signals interrupt it.
template <class F>
auto retried(F&& call) {
  while (true) {
    const auto result = call();
    if (result >= 0 || errno != EINTR) return result;
  }
}

/// A file descriptor that the destructor closes, if close() did not.
class Descriptor {
 public:
  Descriptor(fs::path path, int flags, const char* action) : path_(std::move(path)) {
    // O_CLOEXEC, so that a program that another thread starts does not keep the file open.
    fd_ = retried([&] { return file_calls().open(path_.c_str(), flags | O_CLOEXEC, 0666); });
    // No object exists yet, so the destructor does not run.
    if (fd_ < 0) fail(path_, action, errno);
  }
  ~Descriptor() {
    if (fd_ >= 0) file_calls().close(fd_);
  }
  // -1 marks a descriptor that was moved from or closed.
  Descriptor(Descriptor&& o) noexcept : path_(std::move(o.path_)), fd_(std::exchange(o.fd_, -1)) {}
  Descriptor& operator=(Descriptor&&) = delete;
  int get() const { return fd_; }
  void write(std::span<const std::byte> data) {
    while (!data.empty()) {
      const ssize_t n = retried([&] { return file_calls().write(fd_, data.data(), data.size()); });
      if (n < 0) fail(path_, "write", errno);
      // Without this check, a call that writes zero bytes without an error would repeat endlessly.
      if (n == 0) fail(path_, "write", ENOSPC);
      // A call may write less than it was given.
      data = data.subspan(static_cast<size_t>(n));
    }
  }
  void sync() {
    if (retried([&] { return file_calls().fsync(fd_); }) < 0) fail(path_, "synchronise to the disk", errno);
  }
  void close() {
    // The descriptor is released even if close fails. EINTR does not affect data that fsync has already accepted.
    if (file_calls().close(std::exchange(fd_, -1)) < 0 && errno != EINTR) fail(path_, "close", errno);
  }

 private:
  fs::path path_;
  int fd_ = -1;
};

fs::path parent_of(const fs::path& path) {
  const fs::path parent = path.parent_path();
  return parent.empty() ? fs::path(".") : parent;
}

/// Makes renames in a folder durable. fsync of a file does not cover its name.
void sync_folder(const fs::path& folder) {
  Descriptor d(folder, O_RDONLY | O_DIRECTORY, "open the folder");
  d.sync();
  d.close();
}

/// Replaces `to`, if it exists, in one step.
void rename_to(const fs::path& from, const fs::path& to) {
  if (file_calls().rename(from.c_str(), to.c_str()) < 0) fail(to, "rename the temporary file to this name", errno);
}

/// A name in the folder of the target, because rename() is atomic only within one file system. Process number and
/// counter make it unique among processes and threads.
fs::path next_temporary(const fs::path& target) {
  static std::atomic<uint64_t> counter{0};
  return parent_of(target) / (std::string(temporary_prefix) + std::to_string(::getpid()) + "-" +
                              std::to_string(counter.fetch_add(1, std::memory_order_relaxed)));
}

/// A new file that is written through a buffer of buffer_bytes, with its size and CRC. Without finish(), it stays under
/// its name, and the owner removes it.
class Output {
 public:
  explicit Output(const fs::path& path)
      // O_EXCL: a file or link of this name that another program made is never written to.
      : buffer_(with_capacity(buffer_bytes)), file_(path, O_WRONLY | O_CREAT | O_EXCL, "create") {}
  void write(std::span<const std::byte> data) {
    record_.bytes += data.size();
    record_.crc = crc32c(data, record_.crc);
    // So the buffer never grows beyond its capacity, and writing does not allocate.
    if (buffer_.size() + data.size() > buffer_bytes) flush();
    // A large piece is not copied. The buffer is empty then, so the bytes stay in order.
    if (data.size() >= buffer_bytes)
      file_.write(data);
    else
      buffer_.insert(buffer_.end(), data.begin(), data.end());
  }
  // fsync comes before close, because close need not report errors of a delayed write.
  FileRecord finish() {
    flush();
    file_.sync();
    file_.close();
    return record_;
  }

 private:
  void flush() {
    file_.write(buffer_);
    buffer_.clear();
  }
  static std::vector<std::byte> with_capacity(size_t bytes) {
    std::vector<std::byte> empty;
    empty.reserve(bytes);
    return empty;
  }
  std::vector<std::byte> buffer_;  // allocated before the file is created, so that running out of memory leaves no file
  Descriptor file_;
  FileRecord record_;
};

/// Opens `path`, which must be a regular file. Never blocks on a pipe.
Descriptor open_for_reading(const fs::path& path, uint64_t& size) {
  // O_NONBLOCK has no effect on regular files. A pipe opens at once and is then refused.
  Descriptor file(path, O_RDONLY | O_NONBLOCK, "open");
  struct stat status {};
  if (::fstat(file.get(), &status) < 0) fail(path, "read the status", errno);
  if (!S_ISREG(status.st_mode)) throw Error(ErrorKind::input, path.string() + ": is not a regular file");
  size = static_cast<uint64_t>(status.st_size);
  return file;
}

/// Up to into.size() bytes; 0 at the end of the file.
size_t read_some(const fs::path& path, Descriptor& file, std::span<std::byte> into) {
  const ssize_t n = retried([&] { return file_calls().read(file.get(), into.data(), into.size()); });
  if (n < 0) fail(path, "read", errno);
  return static_cast<size_t>(n);
}

[[noreturn]] void fail_changed(const fs::path& path) {
  throw Error(ErrorKind::io, path.string() + ": its length changed while it was being read");
}

}  // namespace

struct AtomicFile::Impl {
  fs::path target, temporary;
  std::unique_ptr<Output> output;
};

AtomicFile::AtomicFile(fs::path target) : impl_(std::make_unique<Impl>()) {
  std::error_code ignored;
  const auto status = fs::status(target, ignored);
  // A rename onto a device or a pipe would replace it by a file.
  if (fs::exists(status) && !fs::is_regular_file(status))
    throw Error(ErrorKind::usage, target.string() + ": exists and is not a regular file");
  impl_->target = std::move(target);
  // If this or the next line throws, no file has been created: Output allocates first and opens last. A symbolic link
  // at the target is replaced by the file.
  impl_->temporary = next_temporary(impl_->target);
  impl_->output = std::make_unique<Output>(impl_->temporary);
}

AtomicFile::~AtomicFile() {
  // commit() has renamed the file.
  if (impl_->temporary.empty()) return;
  // The descriptor is closed before the name is removed.
  impl_->output.reset();
  file_calls().unlink(impl_->temporary.c_str());
}

void AtomicFile::write(std::span<const std::byte> data) { impl_->output->write(data); }

FileRecord AtomicFile::commit() {
  FileRecord record = impl_->output->finish();
  // The content is on the disk before the name changes. After a power failure the target is the old file or the new
  // one.
  rename_to(impl_->temporary, impl_->target);
  // From here on the destructor has nothing to remove, even if the next call throws.
  impl_->temporary.clear();
  sync_folder(parent_of(impl_->target));
  record.name = impl_->target.filename().string();
  return record;
}

struct AtomicDirectory::Impl {
  fs::path target, temporary;
  std::vector<fs::path> files;  // in the temporary folder: all that write() began
};

AtomicDirectory::AtomicDirectory(fs::path target) : impl_(std::make_unique<Impl>()) {
  std::error_code ignored;
  if (fs::exists(fs::symlink_status(target, ignored)))
    throw Error(ErrorKind::usage, target.string() + ": already exists");
  impl_->target = std::move(target);
  impl_->temporary = next_temporary(impl_->target);
  if (file_calls().mkdir(impl_->temporary.c_str(), 0777) < 0) {
    const int number = errno;
    const fs::path temporary = std::exchange(impl_->temporary, {});
    fail(temporary, "create the folder", number);
  }
}

AtomicDirectory::~AtomicDirectory() {
  // commit() has renamed the folder.
  if (impl_->temporary.empty()) return;
  // Only files of this object are removed. A failure is ignored: remove_leftovers() finds the rest.
  for (const auto& file : impl_->files) file_calls().unlink(file.c_str());
  file_calls().rmdir(impl_->temporary.c_str());
}

const fs::path& AtomicDirectory::temporary() const { return impl_->temporary; }

FileRecord AtomicDirectory::write(const std::string& name, const std::function<void(const ByteSink&)>& content) {
  if (name.empty() || name.find('/') != std::string::npos || name == "." || name == ".." ||
      name.find('\0') != std::string::npos)
    throw Error(ErrorKind::usage, "\"" + name + "\" is not a plain file name");
  // Listed before it is created, so that the destructor removes it if the content throws.
  impl_->files.push_back(impl_->temporary / name);
  Output output(impl_->files.back());
  content([&](std::span<const std::byte> data) { output.write(data); });
  FileRecord record = output.finish();
  record.name = name;
  return record;
}

void AtomicDirectory::commit() {
  // write() has synchronised the content of the files, this call their names. Both are on the disk before the folder
  // gets its name.
  sync_folder(impl_->temporary);
  rename_to(impl_->temporary, impl_->target);
  impl_->temporary.clear();
  sync_folder(parent_of(impl_->target));
}

void remove_folder_atomically(const fs::path& folder) {
  // The rename makes the folder disappear as a whole. If removing it then fails or the process is killed, the rest has
  // the name of a temporary, which remove_leftovers() removes.
  const fs::path temporary = next_temporary(folder);
  if (file_calls().rename(folder.c_str(), temporary.c_str()) < 0) fail(folder, "remove", errno);
  std::error_code problem;
  fs::directory_iterator files(temporary, problem);
  for (; !problem && files != fs::directory_iterator(); files.increment(problem))
    // A folder of files: a folder inside of it is an error here.
    if (file_calls().unlink(files->path().c_str()) < 0) fail(files->path(), "remove", errno);
  if (problem) fail(temporary, "list", problem.value());
  if (file_calls().rmdir(temporary.c_str()) < 0) fail(temporary, "remove", errno);
}

void write_file_atomically(const fs::path& target, std::string_view text) {
  AtomicFile file(target);
  file.write(text);
  file.commit();
}

std::vector<std::byte> read_file(const fs::path& path, uint64_t max_bytes) {
  uint64_t size = 0;
  Descriptor file = open_for_reading(path, size);
  // Checked before anything is allocated.
  if (size > max_bytes)
    throw Error(ErrorKind::input, path.string() + ": has " + std::to_string(size) + " bytes, expected at most " +
                                      std::to_string(max_bytes));
  std::vector<std::byte> content;
  try {
    content.resize(static_cast<size_t>(size));
  } catch (const std::bad_alloc&) {
    throw Error(ErrorKind::memory, path.string() + ": not enough memory for " + std::to_string(size) + " bytes");
  }
  for (size_t done = 0; done < content.size();) {
    const size_t n = read_some(path, file, std::span(content).subspan(done));
    if (n == 0) fail_changed(path);
    done += n;
  }
  // A file that grows while it is read is refused, as is one that shrinks.
  std::byte more{};
  if (read_some(path, file, {&more, 1}) != 0) fail_changed(path);
  return content;
}

FileRecord measure_file(const fs::path& path) {
  uint64_t size = 0;
  Descriptor file = open_for_reading(path, size);
  FileRecord record{.name = path.filename().string()};
  std::vector<std::byte> buffer(buffer_bytes);
  while (const size_t n = read_some(path, file, buffer)) {
    record.bytes += n;
    record.crc = crc32c(std::span(buffer).first(n), record.crc);
  }
  return record;
}

int remove_leftovers(const fs::path& folder) {
  int removed = 0;
  try {
    std::vector<fs::path> found;
    // The names are gathered first, because removing entries while iterating may skip some.
    for (const auto& entry : fs::directory_iterator(folder))
      if (entry.path().filename().string().starts_with(temporary_prefix)) found.push_back(entry.path());
    for (const auto& path : found) removed += fs::remove_all(path) > 0;
  } catch (const fs::filesystem_error& e) {
    throw Error(ErrorKind::io,
                folder.string() + ": could not remove files that an earlier run left: " + e.code().message());
  }
  return removed;
}

}  // namespace nacre
