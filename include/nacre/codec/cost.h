#pragma once
// What a training step has to do, counted from its plan: operations, bytes, and the least time a device could
// take. A floor, not a forecast: max(operations / peak, bytes / copy rate) for each row, every tensor read or written
// once per row, nothing kept in caches, no launches.
#include <cstdint>
#include <string>
#include <vector>

#include "nacre/codec/codec_config.h"
#include "nacre/nn/loss.h"

namespace nacre {

/// Ceilings of a device, in operations and bytes per second.
struct DeviceCeilings {
  std::string name, source;
  double copy = 0;  ///< bytes read and written per second by a copy
  double fp32 = 0, tf32 = 0, bf16 = 0;
};
/// h200, h100, a100, rtx4090. Throws Error(usage) listing the names.
const DeviceCeilings& device_ceilings(const std::string& name);
std::vector<std::string> device_names();

enum class Arithmetic : uint8_t { fp32, tf32, bf16 };
/// "fp32", "tf32" or "bf16"; throws Error(usage).
Arithmetic arithmetic(const std::string& name);

/// The largest of the three divided by what the device does of it in a second.
double floor_seconds(const Work&, const DeviceCeilings&, Arithmetic);

/// The rows of one step over `batch` items of `samples` each (rounded up to whole frames). Snake is counted where it is
/// computed, in the convolution behind it: that one reads x, and its backward reads x again. The tanh at the waveform is
/// not counted.
std::vector<CostRow> step_cost(const CodecConfig&, const LossConfig&, int64_t batch, int64_t samples, Arithmetic);

}  // namespace nacre
