#pragma once
// The device that is emulated: NACRE_EMULATED_DEVICE=h200 (the default), a100, rtx4090 or rtx3090. A launch that this
// device could not run is a Fault. Code that chooses by a device's limits makes the same choices as on the device.
#include "runtime/runtime.h"

namespace nacre::emulation {

struct EmulatedDevice {
  const char* name;
  cuda::DeviceLimits limits;
  size_t memory;  ///< bytes
};
/// Throws Error(device) for an unknown name.
const EmulatedDevice& device();

}  // namespace nacre::emulation
