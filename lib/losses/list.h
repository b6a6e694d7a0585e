#pragma once
// What the files of losses share.
#include "nacre/losses/loss.h"

namespace nacre {

/// Declares that a loss reads a branch of the estimate. Ops of losses overwrite gradients, so another reader of the
/// branch would lose its gradient; the function throws Error(usage) if there is one.
Input<float> read_branch(const Step&, Flow branch);

}  // namespace nacre
