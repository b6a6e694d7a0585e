#pragma once
// How far a long job is: one line redrawn on a terminal, a plain line now and then in a file or a pipe.
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
  int64_t first = 0;            ///< where a resumed job begins: what was done before does not count as speed
  double redraw_seconds = 0.1;  ///< on a terminal
  double plain_seconds = 10;    ///< elsewhere
  /// Is `to` a terminal? Asked of it if not given. TERM=dumb counts as none. NO_COLOR is honoured.
  std::optional<bool> terminal = {};
};

/// For one thread.
class Progress {
 public:
  /// A total of 0: unknown, no bar and no time left.
  Progress(std::string label, int64_t total, std::string unit, ProgressOptions = {});
  ~Progress();
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;

  /// Cheap when it is not yet time to draw. `details` stand at the end of the line.
  void update(int64_t done, const std::string& details = {});
  /// Prints a line of its own without tearing the progress line; `to` is where, if not where progress goes.
  void message(const std::string& line, std::FILE* to = nullptr);
  /// The last state, with the time it took. Called by the destructor if forgotten.
  void finish();

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace nacre::training
