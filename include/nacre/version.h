#pragma once
// The commit and the compilers of this build.
#include "nacre/cxx20.h"

namespace nacre {

/// The commit, as abbreviated by `git describe --always --dirty`. The suffix "-dirty" marks uncommitted changes.
/// "unknown" if the sources were not in a repository.
const char* commit() noexcept;
/// The compilers and their versions: "GNU 12.2.0, nvcc 13.0.48".
const char* compiler() noexcept;

}  // namespace nacre
