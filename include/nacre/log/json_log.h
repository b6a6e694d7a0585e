#pragma once
// log.jsonl: one JSON object per line, passed to the operating system before write() returns.
#include <functional>
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <string>

#include "nacre/cxx20.h"

namespace nacre::training {

/// Receives one line of text when a log cannot be written for the first time.
using LogFailure = std::function<void(const std::string&)>;

/// Appends lines. A line that a killed run left incomplete remains on its own line; readers skip lines that do not
/// parse. A full disk never stops training: the line is lost, the failure is reported once, and the next line is tried
/// again.
class JsonLog {
 public:
  /// Throws Error(io) if the file cannot be opened.
  explicit JsonLog(const std::string& path, LogFailure = {});
  ~JsonLog();
  JsonLog(const JsonLog&) = delete;
  JsonLog& operator=(const JsonLog&) = delete;

  /// Numbers that are not finite become null. Text that is not UTF-8 is replaced.
  void write(const nlohmann::ordered_json& object);
  /// The number of lines lost so far.
  int64_t lost() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

/// Rewrites a log atomically without the lines whose "step" is beyond `step` and without incomplete lines. These are
/// the lines that a run wrote after the checkpoint from which it continues. A log that needs no change or does not
/// exist is left alone. If the log cannot be rewritten, the failure is reported and the log does not change.
void drop_log_lines_after(const std::string& path, int64_t step, const LogFailure& = {});

}  // namespace nacre::training
