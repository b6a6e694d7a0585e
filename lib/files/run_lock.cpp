#include "files/run_lock.h"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <string>
#include <system_error>

#include "files/text.h"
#include "nacre/error.h"

namespace nacre {
namespace {

[[noreturn]] void fail(const std::filesystem::path& file, const char* action, int number) {
  throw Error(ErrorKind::io, file.string() + ": could not " + action + ": " +
                                 std::error_code(number, std::generic_category()).message());
}

/// The text that the holder of the lock wrote into the file, for a message.
std::string holder(int fd) {
  std::array<char, 256> text{};
  const ssize_t n = ::pread(fd, text.data(), text.size(), 0);
  std::string who(text.data(), n > 0 ? static_cast<size_t>(n) : 0);
  while (!who.empty() && who.back() == '\n') who.pop_back();
  return who.empty() ? "an unknown process" : in_quotes(who);
}

}  // namespace

RunLock::RunLock(const std::filesystem::path& file) {
  // The file is never removed: another process could hold the lock of a removed file while a third one creates a new
  // file and locks that.
  fd_ = ::open(file.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0666);
  if (fd_ < 0) fail(file, "open", errno);
  int result = 0;
  // flock belongs to the open file. The kernel releases it when the last descriptor closes, also after a crash or kill.
  do result = ::flock(fd_, LOCK_EX | LOCK_NB);
  while (result < 0 && errno == EINTR);
  if (result < 0) {
    const int number = errno;
    if (number == EWOULDBLOCK) {
      const std::string who = holder(fd_);
      ::close(fd_);
      throw Error(ErrorKind::usage, file.parent_path().string() + ": another run is using this folder: " + who +
                                        "; stop it or choose another folder");
    }
    // Not an error: held() says so, and the trainer warns.
    if (number == EOPNOTSUPP || number == ENOLCK || number == ENOSYS) return;  // this file system has no locks
    ::close(fd_);
    fail(file, "lock", number);
  }
  held_ = true;
  std::array<char, 128> host{};
  // The host's name helps where several machines share the folder.
  ::gethostname(host.data(), host.size() - 1);
  const std::string text = "pid " + std::to_string(::getpid()) + " on " + host.data() + "\n";
  // Only the message above uses the text. A full disk therefore does not matter here.
  if (::ftruncate(fd_, 0) == 0) (void)!::pwrite(fd_, text.data(), text.size(), 0);
}

RunLock::~RunLock() { ::close(fd_); }

}  // namespace nacre
