#include "noise.h"

int parent() { return code_noise(); }
