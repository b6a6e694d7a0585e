#pragma once
// Progress of a long job: one line that is redrawn on a terminal, or an occasional plain line in a file or a pipe.
//
//   train  [######----------]  37 %  3700/10000 steps  12.4 steps/s  8 min 28 s left  loss 1.04
#include <cstdint>
#include <cstdio>
#include <memory>
#include <optional>
#include <string>

#include "nacre/cxx20.h"

namespace nacre::training {

struct ProgressOptions {
  std::FILE* to = stderr;
  int64_t first = 0;            ///< start of a resumed job: work done earlier does not count towards the speed
  double redraw_seconds = 0.1;  ///< on a terminal
  double plain_seconds = 10;    ///< elsewhere
  /// Whether `to` is a terminal; detected if not given. TERM=dumb counts as no terminal. NO_COLOR is honoured.
  std::optional<bool> terminal = {};
};

/// For use by one thread.
class Progress {
 public:
  /// A total of 0 means unknown: there is no bar and no remaining time.
  Progress(std::string label, int64_t total, std::string unit, ProgressOptions = {});
  ~Progress();
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;

  /// Cheap if it is not yet time to draw. `details` appear at the end of the line.
  void update(int64_t done, const std::string& details = {});
  /// Prints a separate line without breaking the progress line. `to` is its destination, if it differs from that of the
  /// progress line.
  void message(const std::string& line, std::FILE* to = nullptr);
  /// Draws the final state with the elapsed time. The destructor calls it if the caller did not.
  void finish();

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace nacre::training
