#pragma once
// Which device the emulator is: NACRE_EMULATED_DEVICE=h200 (the default), a100, rtx4090 or rtx3090. A launch that the
// device could not run is a Fault, and whatever code chooses by a device's limits chooses as it would there.
#include "runtime/runtime.h"

namespace nacre::emulation {

struct EmulatedDevice {
  const char* name;
  cuda::DeviceLimits limits;
  size_t memory;  ///< bytes
};
/// Throws Error(device) for a name that nobody has.
const EmulatedDevice& device();

}  // namespace nacre::emulation
