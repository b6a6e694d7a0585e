#pragma once
// Runs words of a shell, for what only a shell can do to a program's streams.
#include <cstdlib>

#include "cli/program.h"

namespace nacre::test {

/// The exit code of a command of bash in the folder; what it says on standard error is in shell.err there. No single quotes.
inline int in_shell(const Folder& folder, const std::string& command) {
  const std::string line = "cd '" + folder.path().string() + "' && { " + command + "; } 2>shell.err";
  const int status = std::system(("bash -c '" + line + "'").c_str());
  return WIFEXITED(status) ? WEXITSTATUS(status) : 128;
}

}  // namespace nacre::test
