#pragma once
// log.jsonl: one JSON object per line, on the disk's side of the program when write() returns.
#include <functional>
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <string>

namespace nacre::training {

/// Gets one line of text the first time a log cannot be written.
using LogFailure = std::function<void(const std::string&)>;

/// Appends. What a killed run left half-written stays on a line of its own; readers skip lines that do not parse. A
/// full disk never stops training: the line is lost, the failure is told once, and the next line is tried again.
class JsonLog {
 public:
  /// Throws Error(io) if the file cannot be opened.
  explicit JsonLog(const std::string& path, LogFailure = {});
  ~JsonLog();
  JsonLog(const JsonLog&) = delete;
  JsonLog& operator=(const JsonLog&) = delete;

  /// Numbers that are not finite become null. Text that is not UTF-8 is replaced.
  void write(const nlohmann::ordered_json& object);
  /// Lines lost so far.
  int64_t lost() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace nacre::training
