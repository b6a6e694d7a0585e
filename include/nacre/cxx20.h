#pragma once
// Every public header includes this file, directly or indirectly. A compiler set to an older standard then reports the
// cause instead of pages of errors that follow from it.
#if __cplusplus < 202002L
#error "nacre needs C++20: compile with -std=c++20 (CMake: target_link_libraries(... nacre::nacre) asks for it)"
#include "nacre needs C++20"  // no such file: this stops the compiler, whereas #error alone lets it go on
#endif
