#include "runtime/emulated/devices.h"

#include <cstdlib>
#include <string>

#include "nacre/error.h"

namespace nacre::emulation {
namespace {

constexpr size_t kib = 1024, gib = 1024 * 1024 * kib;

// Compute capability, multiprocessors, shared memory per block and multiprocessor, registers, threads: CUDA C++
// Programming Guide, "Technical Specifications per Compute Capability", and the data sheets.
constexpr EmulatedDevice devices[] = {
    {"h200", cuda::h200_limits, 141 * gib},
    {"a100", {8, 0, 108, 163 * kib, 164 * kib, 65536, 2048}, 80 * gib},
    {"rtx4090", {8, 9, 128, 99 * kib, 100 * kib, 65536, 1536}, 24 * gib},
    {"rtx3090", {8, 6, 82, 99 * kib, 100 * kib, 65536, 1536}, 24 * gib},
};

/// The first one of the table, unless the environment names another.
const EmulatedDevice& chosen() {
  const char* text = std::getenv("NACRE_EMULATED_DEVICE");
  const std::string name = text != nullptr ? text : devices[0].name;
  std::string known;
  for (const EmulatedDevice& d : devices) {
    if (name == d.name) return d;
    known += (known.empty() ? "" : ", ") + std::string(d.name);
  }
  throw Error(ErrorKind::device, "NACRE_EMULATED_DEVICE is \"" + name + "\"; expected one of " + known);
}

}  // namespace

const EmulatedDevice& device() {
  static const EmulatedDevice& d = chosen();
  return d;
}

}  // namespace nacre::emulation
