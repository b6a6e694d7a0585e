#pragma once
// The only exception type. Host functions throw it before they launch or write anything. Its text is one line that
// names the operation, the argument, what was found and what was expected. The library never prints and never aborts.
#include <stdexcept>
#include <string>

#include "nacre/cxx20.h"

namespace nacre {

/// The kind of an error. The numeric value is the exit code of the command-line program.
enum class ErrorKind : int {
  usage = 2,     ///< an argument, option, shape or configuration is invalid
  input = 3,     ///< the content of a file or stream is invalid
  io = 4,        ///< reading or writing failed
  memory = 5,    ///< not enough memory
  device = 6,    ///< the device or its driver failed
  diverged = 7,  ///< training diverged
};

class Error : public std::runtime_error {
 public:
  Error(ErrorKind kind, const std::string& text) : std::runtime_error(text), kind_(kind) {}
  ErrorKind kind() const noexcept { return kind_; }
  int exit_code() const noexcept { return static_cast<int>(kind_); }

 private:
  ErrorKind kind_;
};

}  // namespace nacre
