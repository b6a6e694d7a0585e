#pragma once
// In which orders of threads and blocks a launch runs:
//
//   NACRE_EMULATION=rotate                   another order at every launch: the default
//   NACRE_EMULATION=forward|reverse|random   always this one
//   NACRE_EMULATION=all                      every launch runs in four orders, which must leave equal bits
//   NACRE_EMULATION_SEED=N                   of the random orders
#include "runtime/emulated/scheduler.h"

namespace nacre::emulation {

/// `number` counts launches. Memory of the launch's device is compared.
void run_in_orders(const Kernel&, dim3 grid, dim3 size, const SharedMemory&, unsigned edge_blocks, uint64_t number);

}  // namespace nacre::emulation
