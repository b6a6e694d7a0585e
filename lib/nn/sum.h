#pragma once
// The sum of two activations as a step of its own, where no layer takes one of them as its residual.
#include <string>

#include "nacre/nn/plan.h"

namespace nacre {

/// a + b, of one shape and one storage. In a streaming plan, the sum is as late as the later of both.
Flow sum_of(Plan&, const std::string& name, Flow a, Flow b);

}  // namespace nacre
