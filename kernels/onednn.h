#pragma once
// The one place that knows oneDNN: convolutions of float, channels last, zero padding. A primitive with everything it
// needs is made once per problem and context and kept in ctx.impl().convolutions; running it allocates nothing of ours.
// Weights are plain [out][taps][in / groups] outside; they are reordered into the primitive's own blocks on each run
// (and weight gradients back), which is cheap because weights are small against activations.
#include <cstdint>

#include "nacre/context.h"

namespace nacre::onednn {

enum class Direction : uint8_t { forward, input_gradient, weight_gradient };

struct Problem {
  Direction direction = Direction::forward;
  bool sum = false;                         ///< forward: add to what the destination holds
  bool bias = false;                        ///< forward only
  bool transposed = false;                  ///< the weight lies as [in][taps][out]; one group, not for weight_gradient
  int64_t batch = 0, time = 0, length = 0;  ///< rows of x, rows of y
  int64_t in = 0, out = 0, taps = 0;
  int64_t stride = 1, dilation = 1, groups = 1, left = 0, right = 0;
  bool operator==(const Problem&) const = default;
};

class Convolution;

/// Finds the primitive, or makes it.
Convolution& convolution(Context&, const Problem&);
/// Floats of scratch that run() needs, for blocked weights and oneDNN's own scratchpad.
int64_t scratch_size(const Convolution&);
/// The name oneDNN gives to the implementation it picked.
const char* implementation(const Convolution&);

struct Arguments {
  const float* from = nullptr;    ///< x; input_gradient: dy
  const float* dy = nullptr;      ///< weight_gradient only
  const float* weight = nullptr;  ///< forward, input_gradient
  const float* bias = nullptr;
  float* to = nullptr;  ///< y; dx; weight_gradient: dweight, which is added to
  float* scratch = nullptr;
};
void run(Context&, Convolution&, const Arguments&);

}  // namespace nacre::onednn
