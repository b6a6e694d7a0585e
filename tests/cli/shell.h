#pragma once
// Runs shell commands, for conditions of a program's streams that only a shell can set up.
#include <cstdlib>

#include "cli/program.h"

namespace nacre::test {

/// Runs a bash command in the folder and returns its exit code. Standard error goes to shell.err there. The command
/// must not contain single quotes.
inline int in_shell(const Folder& folder, const std::string& command) {
  const std::string line = "cd '" + folder.path().string() + "' && { " + command + "; } 2>shell.err";
  const int status = std::system(("bash -c '" + line + "'").c_str());
  return WIFEXITED(status) ? WEXITSTATUS(status) : 128;
}

}  // namespace nacre::test
