#pragma once
// Steps of a quantizer with two rates.
#include "nacre/nn/plan.h"

namespace nacre {

/// a + b, both float. Each gets the gradient of the sum.
Flow plan_sum(Plan&, Flow a, Flow b);
/// z - p, both float. Items whose number of `stages` is 0 pass no gradient. Without training, `stages` is not read.
Flow plan_rest(Plan&, Flow z, Flow p, View<const int32_t> stages);

}  // namespace nacre
