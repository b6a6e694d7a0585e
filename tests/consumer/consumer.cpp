#include "noise.h"

int main() { return code_noise(); }
