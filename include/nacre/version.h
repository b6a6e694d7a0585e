#pragma once
// What this build was made of.
#include "nacre/cxx20.h"

namespace nacre {

/// The commit as `git describe --always --dirty` shortens it ("-dirty" behind it: with changes that were not committed), or
/// "unknown" where the sources lay in no repository.
const char* commit() noexcept;
/// The compilers and their versions: "GNU 12.2.0, nvcc 13.0.48".
const char* compiler() noexcept;

}  // namespace nacre
