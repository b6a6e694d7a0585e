// A plug-in with its own copy of nacre.
#include "noise.h"

extern "C" int code_noise_of_copy() { return code_noise(); }
