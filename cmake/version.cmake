# Writes the file OUTPUT with the version and the commit of the build. Rewrites it only if the content has changed.
#   cmake -DSOURCE=... -DOUTPUT=... -DCOMPILER=... -P version.cmake
find_package(Git QUIET)
set(commit "")
if(GIT_EXECUTABLE AND EXISTS "${SOURCE}/.git")  # an unpacked archive inside of another repository does not belong to it
  execute_process(COMMAND ${GIT_EXECUTABLE} -C "${SOURCE}" describe --always --dirty --abbrev=12 "--exclude=*"
    OUTPUT_VARIABLE commit OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
endif()
if(NOT commit)
  set(commit unknown)
endif()
# Scripts search a program for the word before the commit.
file(CONFIGURE OUTPUT "${OUTPUT}" CONTENT [[#include "nacre/version.h"

namespace nacre {
namespace {
constexpr char marked[] = "nacre-commit:@commit@";
}
const char* commit() noexcept { return marked + sizeof("nacre-commit:") - 1; }
const char* compiler() noexcept { return "@COMPILER@"; }
}  // namespace nacre
]] @ONLY)
