#pragma once
// The orders of threads and blocks in which a launch runs:
//
//   NACRE_EMULATION=rotate                   a different order at every launch (the default); of launches with equal
//                                            arguments, one of eight is checked
//   NACRE_EMULATION=forward|reverse|random   always this one
//   NACRE_EMULATION=all                      every launch runs in three orders, which must give the same bits
//   NACRE_EMULATION_SEED=N                   seed of the random orders
#include "runtime/emulated/scheduler.h"

namespace nacre::emulation {

/// Runs a kernel. `number` counts launches. The memory of the launch's device is compared between orders.
void run_in_orders(const Kernel&, dim3 grid, dim3 size, const SharedMemory&, unsigned edge_blocks, uint64_t number);

}  // namespace nacre::emulation
