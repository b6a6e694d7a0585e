#pragma once
// Included by every public header, itself or by way of another, so that a compiler set to an older standard says what is
// wrong instead of pages of what follows from it.
#if __cplusplus < 202002L
#error "nacre needs C++20: compile with -std=c++20 (CMake: target_link_libraries(... nacre::nacre) asks for it)"
#include "nacre needs C++20"  // no such file: the compiler stops here, which #error alone does not do
#endif
