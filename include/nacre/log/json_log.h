#pragma once
// log.jsonl: one JSON object per line, on the disk's side of the program when write() returns.
#include <functional>
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <string>

#include "nacre/cxx20.h"

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

/// Rewrites a log, in one moment, without the lines whose "step" is beyond `step` and without torn ones: what a run wrote
/// after the checkpoint that it goes on from. A log that needs no change, or that is not there, is left alone; when it
/// cannot be rewritten, that is told and the log stays as it is.
void drop_log_lines_after(const std::string& path, int64_t step, const LogFailure& = {});

}  // namespace nacre::training
