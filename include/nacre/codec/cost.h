#pragma once
// Cost of a training step, computed from its plan: operations, bytes, launches, and a lower bound on the time on a
// given device. The bound of a row is max(operations / peak, bytes / copy rate). It counts every tensor as read or
// written once per launch and ignores caches and launch overhead. It is not a forecast.
#include <cstdint>
#include <string>
#include <vector>

#include "nacre/losses/adversarial.h"
#include "nacre/systems/codec_config.h"

namespace nacre {

/// Peak rates of a device, in operations and bytes per second.
struct DeviceCeilings {
  std::string name, source;
  double copy = 0;  ///< bytes per second that a copy reads and writes in total
  double fp32 = 0, tf32 = 0, bf16 = 0;
};
/// h200, h100, a100 or rtx4090. Throws Error(usage) that lists the names.
const DeviceCeilings& device_ceilings(const std::string& name);
std::vector<std::string> device_names();

enum class Arithmetic : uint8_t { fp32, tf32, bf16 };
/// "fp32", "tf32" or "bf16"; throws Error(usage) for other names.
Arithmetic arithmetic(const std::string& name);

/// Lower bound in seconds: the largest quotient of the amounts of work and the device's rates for them.
double floor_seconds(const Work&, const DeviceCeilings&, Arithmetic);

/// Costs of one step over `batch` items of `samples` samples each (rounded up to whole frames), as the CUDA back end
/// runs it: every pass has a row, or is part of one. Snake is counted in the convolution that follows it, where it is
/// computed: the convolution reads x, and its backward pass reads x again. "sums" adds the parts that the blocks of
/// weight, bias and Snake gradients leave; their number is that of a device with 132 multiprocessors. "batch" is the
/// copy of the audio. "optimizer.zeros", ".norms" and ".update" end the step; `averaged`: with moving averages of the
/// weights. With LossConfig::adversarial, the rows of discriminators count all of their passes in a step that trains
/// them. Passes that steps make sometimes, such as reading metrics, have no rows. A test compares the bytes and
/// launches with those of steps on the emulated device (tests/codec/cost_traffic_test.cpp).
std::vector<CostRow> step_cost(const CodecConfig&, const LossConfig&, int64_t batch, int64_t samples, Arithmetic,
                               const DiscriminatorConfig& = {}, bool averaged = true);

}  // namespace nacre
