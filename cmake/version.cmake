# Writes the file OUTPUT, which says what the build is made of, and touches it only where that has changed.
#   cmake -DSOURCE=... -DOUTPUT=... -DCOMPILER=... -P version.cmake
find_package(Git QUIET)
set(commit "")
if(GIT_EXECUTABLE AND EXISTS "${SOURCE}/.git")  # an archive inside of somebody's repository is not that repository's
  execute_process(COMMAND ${GIT_EXECUTABLE} -C "${SOURCE}" describe --always --dirty --abbrev=12 "--exclude=*"
    OUTPUT_VARIABLE commit OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
endif()
if(NOT commit)
  set(commit unknown)
endif()
# The word before the commit is what scripts look for in a program.
file(CONFIGURE OUTPUT "${OUTPUT}" CONTENT [[#include "nacre/version.h"

namespace nacre {
namespace {
constexpr char marked[] = "nacre-commit:@commit@";
}
const char* commit() noexcept { return marked + sizeof("nacre-commit:") - 1; }
const char* compiler() noexcept { return "@COMPILER@"; }
}  // namespace nacre
]] @ONLY)
