#pragma once
// Shapes for the tests of elementwise ops.
#include "nacre/view.h"

namespace nacre::test {
inline const Shape elementwise_shapes[] = {
    {1, 1, 1, 1},      // the smallest
    {1, 1, 1, 2},      // less than any vector
    {1, 1, 1, 15},     // one short of a vector of 512 bits
    {1, 1, 1, 16},     // exactly one
    {1, 1, 1, 17},     // one vector and a tail of one
    {1, 31, 1, 1},     // mono, one short of a bf16 vector
    {1, 33, 1, 1},     // mono, odd
    {3, 1, 1, 1536},   // one frame: the streaming case
    {2, 37, 1, 24},    // odd rows and channels: nothing is full
    {1, 4099, 1, 7},   // long, odd, narrow
    {1, 1024, 1, 1},   // exactly one chunk of the parallel loop
    {1, 1025, 1, 1},   // one more
    {1, 8192, 1, 2},   // exactly the work of two threads
    {1, 8193, 1, 3},   // more threads than whole grains of work
    {5, 7, 11, 13},    // width in use, all odd
    {1, 3, 513, 2},    // width: frequency bins
    {16, 1, 1, 64},    // a batch of single frames
    {1, 2, 1, 4096},   // short and wide
    {2, 16000, 1, 1},  // a second of mono audio, twice
    {1, 251, 1, 128},  // a codec's inner activation
};
}  // namespace nacre::test
