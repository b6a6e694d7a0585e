#pragma once
// Records the file calls of the operating system for one scope, and the content of files at each call.
#include <fcntl.h>

#include <algorithm>
#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include "catch.h"
#include "file_tools.h"
#include "files/file_calls.h"

namespace nacre::test {

struct Call {
  enum Kind { create, open_folder, read, write, sync, sync_folder, close, rename, unlink } kind;
  std::filesystem::path path, to;              ///< to: target of a rename
  std::map<std::string, std::string> content;  ///< of a file at sync and rename: {"", bytes}; of a folder: by name
};

class CallLog {
 public:
  CallLog() {
    state() = {file_calls(), {}, {}, {}};
    file_calls() = {
        .open =
            [](const char* path, int flags, mode_t mode) {
              const int fd = state().real.open(path, flags, mode);
              if (fd < 0) return fd;
              state().paths[fd] = path;
              if ((flags & O_CREAT) != 0) note({Call::create, path, {}, {}});
              if ((flags & O_DIRECTORY) != 0) note({Call::open_folder, path, {}, {}});
              return fd;
            },
        .read =
            [](int fd, void* data, size_t bytes) {
              note({Call::read, state().paths[fd], {}, {}});
              return state().real.read(fd, data, bytes);
            },
        .write =
            [](int fd, const void* data, size_t bytes) {
              note({Call::write, state().paths[fd], {}, {}});
              const std::string& spoilt = state().spoilt;
              if (spoilt.empty() || state().paths[fd].filename() != spoilt || bytes == 0)
                return state().real.write(fd, data, bytes);
              std::string bad(static_cast<const char*>(data), bytes);
              bad[bytes / 2] = static_cast<char>(bad[bytes / 2] ^ 1);
              return state().real.write(fd, bad.data(), bytes);
            },
        .fsync =
            [](int fd) {
              const std::filesystem::path path = state().paths[fd];
              const bool folder = std::filesystem::is_directory(path);
              note({folder ? Call::sync_folder : Call::sync, path, {}, contents(path)});
              return state().real.fsync(fd);
            },
        .close =
            [](int fd) {
              note({Call::close, state().paths[fd], {}, {}});
              return state().real.close(fd);
            },
        .rename =
            [](const char* from, const char* to) {
              note({Call::rename, from, to, contents(from)});
              return state().real.rename(from, to);
            },
        .mkdir = state().real.mkdir,
        .unlink =
            [](const char* path) {
              note({Call::unlink, path, {}, {}});
              return state().real.unlink(path);
            },
        .rmdir = state().real.rmdir,
    };
  }
  ~CallLog() { file_calls() = state().real; }
  CallLog(const CallLog&) = delete;
  CallLog& operator=(const CallLog&) = delete;
  const std::vector<Call>& calls() const { return state().calls; }
  /// From now on, every write to files of this name succeeds, but one bit of the stored data is changed.
  void spoil(const std::string& name) { state().spoilt = name; }
  /// Index of the last call of this kind on this path before `end`. calls().size() if there is none.
  size_t last(Call::Kind kind, const std::filesystem::path& path, size_t end) const {
    for (size_t i = end; i-- > 0;)
      if (calls()[i].kind == kind && calls()[i].path == path) return i;
    return calls().size();
  }
  /// Index of the last rename to `target`. calls().size() if there is none.
  size_t rename_to(const std::filesystem::path& target) const {
    for (size_t i = calls().size(); i-- > 0;)
      if (calls()[i].kind == Call::rename && calls()[i].to == target) return i;
    return calls().size();
  }

 private:
  struct State {
    FileCalls real{};
    std::vector<Call> calls;
    std::map<int, std::filesystem::path> paths;
    std::string spoilt;
  };
  static State& state() {
    static State s;
    return s;
  }
  static void note(Call call) { state().calls.push_back(std::move(call)); }
  static std::map<std::string, std::string> contents(const std::filesystem::path& path) {
    std::map<std::string, std::string> found;
    if (!std::filesystem::is_directory(path)) return {{"", slurp(path)}};
    for (const auto& entry : std::filesystem::directory_iterator(path))
      found[entry.path().filename()] = entry.is_regular_file() ? slurp(entry.path()) : "";
    return found;
  }
};

/// Checks that a power cut at any moment leaves either the old content or all of the new `target`. Every file must have
/// had all of its bytes when it was synchronised, and every folder all of its names. The rename must follow, then the
/// synchronisation of its folder.
inline void expect_durable(const CallLog& log, const std::filesystem::path& target) {
  const size_t none = log.calls().size(), renamed = log.rename_to(target);
  INFO(target);
  REQUIRE(renamed < none);
  const Call& rename = log.calls()[renamed];
  const std::filesystem::path parent = target.parent_path();
  const auto file_synchronised = [&](const std::filesystem::path& file, const std::string& bytes) {
    INFO(file);
    const size_t synchronised = log.last(Call::sync, file, renamed);
    REQUIRE(synchronised < none);
    CHECK((log.calls()[synchronised].content.at("") == bytes));  // nothing was written later
    const size_t written = log.last(Call::write, file, renamed);
    CHECK((written == none || written < synchronised));
    CHECK(!bytes.empty());
  };
  if (std::filesystem::is_directory(target)) {
    const size_t names = log.last(Call::sync_folder, rename.path, renamed);
    REQUIRE(names < none);
    for (const auto& [name, bytes] : rename.content) {
      file_synchronised(rename.path / name, bytes);
      CHECK(log.calls()[names].content.count(name) == 1);
    }
    CHECK(!rename.content.empty());
  } else {
    file_synchronised(rename.path, rename.content.at(""));
  }
  const size_t placed = log.last(Call::sync_folder, parent, none);
  REQUIRE(placed < none);
  CHECK(placed > renamed);
}

}  // namespace nacre::test
